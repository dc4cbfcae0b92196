"""NomicBERT against stock transformers: odd configurations, gradients, scanned layers, packed rows, config.json."""

import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.core.trees import stack_layers
from flaxbert.errors import ConfigError
from flaxbert.families import get_family
from flaxbert.families.nomic_bert import NomicBertOptions
from flaxbert.weights.load import load_checkpoint
from flaxbert.weights.save import save_checkpoint
from tests.helpers import slow_unless
from tests.parity.oracle import (
    GRADIENT_TOLERANCE,
    Case,
    both_outputs,
    gradient_share,
    load_torch,
    make_batch,
    make_torch_model,
    our_outputs,
    save_torch,
    worst_excess,
)

pytestmark = pytest.mark.parity

ROPE = {"rope_parameters": {"rope_theta": 17.0, "rope_type": "default"}}
CASES = [
    Case("five heads of 6, relu", config={"hidden_size": 30, "num_attention_heads": 5, "hidden_act": "relu"}),
    Case("seven heads of 10", config={"hidden_size": 70, "num_attention_heads": 7, **ROPE}),
    Case("one layer, left", "token-classification", {"num_hidden_layers": 1, "type_vocab_size": 3}, "left"),
    Case("masked words", "fill-mask", ROPE),
    Case("bare, as long as it takes", "feature-extraction", padding="none", length=20),
]


def nomic(case):
    return Case(**{**vars(case), "family": "nomic_bert"})


def load_pair(case, tmp_path):
    model = make_torch_model(case, seed=len(case.name))
    return model, load_checkpoint(save_torch(model, tmp_path / "theirs"))


@pytest.mark.parametrize("case", slow_unless(CASES[1:3].__contains__, CASES), ids=lambda case: case.name)
def test_equals_torch_and_comes_back(case, tmp_path):
    case = nomic(case)
    model, loaded = load_pair(case, tmp_path)
    assert (loaded.task, loaded.account.initialized, loaded.account.unused) == (case.task, (), ())
    batch = make_batch(case)
    ours = our_outputs(loaded.config, loaded.task, loaded.params, batch)
    theirs = both_outputs(model, batch)
    assert worst_excess({name: ours[name] for name in theirs[0]}, *theirs, batch) <= 1.0
    folder = save_checkpoint(tmp_path / "ours", config=loaded.config, task=case.task, params=loaded.params)
    again = both_outputs(load_torch(folder, case), batch)
    assert all(np.array_equal(theirs[0][name], again[0][name]) for name in theirs[0])
    assert load_checkpoint(folder).config == loaded.config


@pytest.mark.parametrize("case", slow_unless(CASES[1:2].__contains__, CASES[:4]), ids=lambda case: case.name)
def test_gradients_equal_those_of_torch(case, tmp_path):
    case = nomic(case)
    model, loaded = load_pair(case, tmp_path)
    batch = make_batch(case)
    assert gradient_share(case, model, loaded, batch, tmp_path / "gradients") <= GRADIENT_TOLERANCE


def test_scanned_layers_and_packed_rows(tmp_path):
    case = nomic(Case("packed", "token-classification"))
    model, loaded = load_pair(case, tmp_path)
    random = np.random.default_rng(0)
    texts = [random.integers(5, 61, size) for size in (3, 11, 1)]
    numbers = np.repeat(np.arange(1, 4), [len(ids) for ids in texts])
    places = np.concatenate([np.arange(len(ids)) for ids in texts])
    packed = {"input_ids": np.concatenate(texts), "segment_ids": numbers, "position_ids": places}
    packed = {name: np.pad(array, (0, 3))[None].astype(np.int32) for name, array in packed.items()}
    for execution in (Execution(), Execution(scan_layers=True)):
        params = stack_layers(loaded.params) if execution.scan_layers else loaded.params
        ours = our_outputs(loaded.config, loaded.task, params, packed, execution)["logits"][:, : len(numbers)]
        for number, ids in enumerate(texts, start=1):
            alone = {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None]}
            assert worst_excess({"logits": ours[:, numbers == number]}, *both_outputs(model, alone)) <= 1.0


def test_config_json():
    read = get_family("nomic_bert").config_from_json
    sizes = {"vocab_size": 61, "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20}
    plain = {"model_type": "nomic_bert", "num_hidden_layers": 2, **sizes}
    assert read(plain).own(NomicBertOptions).rope_theta == 1000.0
    assert read({**plain, "rope_theta": 17.0}) == read({**plain, **ROPE, "head_dim": 4})
    assert read({**plain, "head_dim": 6}).attention_size == 18
    for keys, message in (
        ({"rope_parameters": {"rope_type": "yarn"}}, "only the rope_type 'default'"),
        ({"rope_theta": -1.0}, "must be above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            read({**plain, **keys})
