"""Stock transformers on torch as the oracle: odd random models, and the distance that float32 itself has from float64."""

import copy
import dataclasses
import inspect
import pathlib
import warnings
from typing import Any

import numpy as np
import pytest

from flaxbert.architecture import Execution, ModelConfig, resolve_task
from flaxbert.families import get_family
from flaxbert.families.graph import forward, graph_definition
from flaxbert.weights.load import LoadedCheckpoint, load_checkpoint

TOLERANCE = 1e-5
"""Largest difference of logits, relative to the larger of 1 and the largest logit."""

SHARE_OF_TORCH_ERROR = 3.0
"""Or this many times the distance that torch in float32 has from torch in float64, where that is more."""

torch = pytest.importorskip("torch", reason="needs the test extra")


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and how it is fed."""

    name: str
    task: str = "sequence-classification"
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    padding: str = "right"
    length: int = 13
    batch: int = 3
    family: str = "bert"

    @property
    def architecture(self) -> str:
        """Name of the stock class."""
        return get_family(self.family).architectures[self.task]

    @property
    def settings(self) -> dict[str, Any]:
        """Keys of the stock config."""
        return {**BASE, **FAMILY_BASE.get(self.family, {}), **self.config}


BASE = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "num_labels": 3,
}


_AFTER_PADDING = {"pad_token_id": 1, "max_position_embeddings": 22, "type_vocab_size": 1}
FAMILY_BASE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _AFTER_PADDING),
    "electra": {"embedding_size": 10},
    "distilbert": {"type_vocab_size": 1},
}
"""What differs from ``BASE`` in other families."""

OWN_KEYS = {
    "distilbert": {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
}
"""Keys of stock configs that are called otherwise than BERT's."""


def make_torch_model(case: Case, seed: int = 0) -> Any:
    """Returns a stock model whose every parameter is random, biases and norms too."""
    import transformers

    torch.manual_seed(seed)
    settings = transformers.AutoConfig.for_model(
        case.family, **{OWN_KEYS.get(case.family, {}).get(key, key): value for key, value in case.settings.items()}
    )
    model = getattr(transformers, case.architecture)(settings).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = name.lower().replace("_", "").endswith("layernorm.weight")
            parameter.copy_(
                1.0 + 0.3 * noise if is_norm else noise * (0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
            )
    return model


def make_batch(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random ids of random lengths, padded on the side that the case says."""
    random = np.random.default_rng(seed)
    settings = case.settings
    ids = random.integers(5, settings["vocab_size"], (case.batch, case.length)).astype(np.int32)
    lengths = random.integers(min(2, case.length), case.length + 1, case.batch)
    lengths[0] = case.length
    if case.padding == "none":
        lengths[:] = case.length
    columns = np.arange(case.length)[None]
    real = columns >= case.length - lengths[:, None] if case.padding == "left" else columns < lengths[:, None]
    types = random.integers(0, max(1, settings["type_vocab_size"]), ids.shape).astype(np.int32)
    return {
        "input_ids": np.where(real, ids, settings.get("pad_token_id", 0)),
        "attention_mask": real.astype(np.int32),
        "token_type_ids": types * real,
    }


def torch_outputs(model: Any, batch: dict[str, np.ndarray], dtype: Any) -> dict[str, np.ndarray]:
    """Returns a stock model's outputs by the names that flaxbert gives them."""
    model = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        known = inspect.signature(model.forward).parameters
        rows = {name: torch.tensor(array, dtype=torch.long) for name, array in batch.items() if name in known}
        output = model(**rows)
    if hasattr(output, "prediction_logits"):
        found = {"logits": output.prediction_logits, "next_sentence_logits": output.seq_relationship_logits}
    elif hasattr(output, "logits"):
        found = {"logits": output.logits}
    else:
        found = {"last_hidden_state": output.last_hidden_state, "pooled": getattr(output, "pooler_output", None)}
    return {name: value.double().numpy() for name, value in found.items() if value is not None}


def save_torch(model: Any, folder: pathlib.Path) -> pathlib.Path:
    """Saves a stock model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


def load_torch(folder: pathlib.Path, case: Case) -> Any:
    """Loads a folder with stock transformers and fails if any weight is missing or left over."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = getattr(transformers, case.architecture).from_pretrained(folder, output_loading_info=True)
    problems = {key: sorted(value) for key, value in info.items() if value}
    assert not problems, problems
    return model.eval()


def our_outputs(
    config: ModelConfig, task: str, params: Any, batch: dict[str, np.ndarray], execution: Execution | None = None
) -> dict[str, np.ndarray]:
    """Returns flaxbert's outputs, compiled."""
    import jax

    graphdef = graph_definition(config, resolve_task(task), execution or Execution())
    output = jax.jit(lambda params, batch: forward(graphdef, params, batch))(params, batch)
    names = ("logits", "next_sentence_logits", "last_hidden_state", "pooled")
    return {name: np.asarray(getattr(output, name), np.float64) for name in names if getattr(output, name) is not None}


def load_ours(folder: pathlib.Path, task: str | None = None) -> LoadedCheckpoint:
    """Loads a folder with flaxbert."""
    return load_checkpoint(folder, task)


def worst_excess(
    ours: dict[str, np.ndarray],
    float32: dict[str, np.ndarray],
    float64: dict[str, np.ndarray],
    real: np.ndarray | None = None,
) -> float:
    """Returns the largest difference from torch as a share of what is allowed; at most 1 passes.

    Outputs per token are compared at real tokens only: what stands at padding means nothing.
    """
    worst = 0.0
    for name, reference in float32.items():
        mine, exact = ours[name], float64[name]
        if real is not None and reference.ndim == 3:
            mine, reference, exact = (array[real] for array in (mine, reference, exact))
        own = np.abs(reference - exact).max()
        allowed = max(TOLERANCE * max(1.0, np.abs(reference).max()), SHARE_OF_TORCH_ERROR * own)
        worst = max(worst, float(np.abs(mine - reference).max() / allowed))
    return worst
