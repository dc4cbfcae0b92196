"""What DeBERTa's forward pass holds beside weights and inputs, against what stock transformers on torch holds."""

import weakref

import jax
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.families import get_family
from flaxbert.families.graph import abstract_params, forward, graph_definition
from tests.parity.oracle import Case, make_batch, make_torch_model, to_torch

torch = pytest.importorskip("torch", reason="needs the test extra")
dispatch = pytest.importorskip("torch.utils._python_dispatch", reason="needs the test extra")

pytestmark = pytest.mark.parity

PUBLISHED = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_hidden_layers": 1,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
}
V3 = {"position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}


class LiveBytes(dispatch.TorchDispatchMode):
    """Counts the bytes of all storages that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.live = self.peak = 0

    def keep_out(self, tensors) -> None:
        """Leaves storages out that are there already."""
        self.known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Runs an operation and counts what it made."""
        result = function(*args, **(kwargs or {}))
        for tensor in jax.tree.leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result


@pytest.mark.parametrize(
    "length", [pytest.param(128, marks=pytest.mark.slow), pytest.param(384, marks=pytest.mark.slow), 512]
)
@pytest.mark.parametrize(("family", "settings"), [("deberta", {}), ("deberta-v2", V3)], ids=["v1", "v3"])
def test_deberta_holds_no_more_than_the_reference(family, settings, length):
    case = Case(
        "published",
        "feature-extraction",
        {**PUBLISHED, **settings},
        family=family,
        length=length,
        batch=2,
        padding="none",
    )
    model = make_torch_model(case)
    batch = make_batch(case)
    inputs = to_torch(model, batch)
    with torch.inference_mode(), LiveBytes() as counted:
        counted.keep_out([*model.parameters(), *model.buffers(), *inputs.values()])
        model(**inputs)
    config = get_family(family).config_from_json(model.config.to_dict())
    graphdef = graph_definition(config, case.task, Execution())
    shapes = {name: jax.ShapeDtypeStruct(array.shape, np.int32) for name, array in batch.items()}
    program = jax.jit(lambda params, batch: forward(graphdef, params, batch).last_hidden_state)
    analysis = program.lower(abstract_params(config, case.task), shapes).compile().memory_analysis()
    held = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    print(f"{family}, {length} tokens: {held / 1e6:.0f} MB, torch {counted.peak / 1e6:.0f} MB")
    assert held <= counted.peak
