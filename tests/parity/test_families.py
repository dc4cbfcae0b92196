"""Every other family against stock transformers: odd configurations, every head, both ways through the files."""

import dataclasses

import numpy as np
import pytest
import torch

from flaxbert.architecture import Execution
from flaxbert.core.trees import stack_layers
from flaxbert.families import FAMILIES
from flaxbert.weights.save import save_checkpoint
from tests.parity.oracle import (
    Case,
    load_ours,
    load_torch,
    make_batch,
    make_torch_model,
    our_outputs,
    save_torch,
    torch_outputs,
    worst_excess,
)

pytestmark = pytest.mark.parity

CASES = [
    Case("plain"),
    Case("five heads of 3, relu", config={"hidden_size": 15, "num_attention_heads": 5, "hidden_act": "relu"}),
    Case("seven heads of 11", config={"hidden_size": 77, "num_attention_heads": 7, "intermediate_size": 101}),
    Case("one layer, three token types", config={"num_hidden_layers": 1, "type_vocab_size": 3}),
    Case("padding on the left", padding="left"),
    Case("as long as the model takes", length=20, padding="none"),
    Case("one label", config={"num_labels": 1}),
    Case("tokens", task="token-classification"),
    Case("tokens, tanh GELU, left", task="token-classification", config={"hidden_act": "gelu_new"}, padding="left"),
    Case("masked words", task="fill-mask"),
    Case("masked words, silu, large epsilon", task="fill-mask", config={"hidden_act": "silu", "layer_norm_eps": 0.1}),
    Case("bare encoder", task="feature-extraction"),
    Case("bare encoder of one head", task="feature-extraction", config={"hidden_size": 7, "num_attention_heads": 1}),
]
OTHERS = [dataclasses.replace(case, family=name) for name in FAMILIES if name != "bert" for case in CASES]


def both_outputs(model, batch):
    return [torch_outputs(model, batch, dtype) for dtype in (torch.float32, torch.float64)]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"{case.family}, {case.name}")
def test_equals_torch_and_comes_back(case, tmp_path):
    model = make_torch_model(case, seed=len(case.name))
    loaded = load_ours(save_torch(model, tmp_path / "theirs"))
    assert loaded.task == case.task
    assert loaded.config.family == case.family
    assert loaded.account.initialized == ()
    batch = make_batch(case)
    real = batch["attention_mask"] == 1
    ours = our_outputs(loaded.config, loaded.task, loaded.params, batch)
    assert worst_excess(ours, *both_outputs(model, batch), real) <= 1.0
    folder = save_checkpoint(tmp_path / "ours", config=loaded.config, task=loaded.task, params=loaded.params)
    assert worst_excess(ours, *both_outputs(load_torch(folder, case), batch), real) <= 1.0
    again = load_ours(folder)
    assert again.config == loaded.config
    second = our_outputs(again.config, again.task, again.params, batch)
    assert all(np.array_equal(ours[name], second[name]) for name in ours)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bert"])
def test_scanned_equals_unrolled_and_padding_changes_nothing(family, tmp_path):
    case = Case("scanned", task="token-classification", config={"num_hidden_layers": 3}, family=family)
    loaded = load_ours(save_torch(make_torch_model(case), tmp_path))
    batch = make_batch(case)
    real = batch["attention_mask"] == 1
    unrolled = our_outputs(loaded.config, loaded.task, loaded.params, batch)["logits"][real]
    stacked = stack_layers(loaded.params)
    scanned = our_outputs(loaded.config, loaded.task, stacked, batch, Execution(scan_layers=True))["logits"][real]
    np.testing.assert_allclose(unrolled, scanned, atol=1e-5, rtol=0)
    fill = {"input_ids": loaded.config.pad_token_id}
    longer = {name: np.pad(array, ((0, 0), (0, 7)), constant_values=fill.get(name, 0)) for name, array in batch.items()}
    longer_logits = our_outputs(loaded.config, loaded.task, loaded.params, longer)["logits"][:, : case.length][real]
    np.testing.assert_allclose(unrolled, longer_logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bert"])
def test_packed_rows_equal_separate_rows(family, tmp_path):
    case = Case("packed", task="token-classification", length=8, batch=4, family=family)
    model = make_torch_model(case)
    loaded = load_ours(save_torch(model, tmp_path))
    random = np.random.default_rng(0)
    texts = [random.integers(5, case.settings["vocab_size"], size) for size in (3, 5, 1, 6)]
    numbers = np.repeat(np.arange(1, 5), [len(ids) for ids in texts])
    packed = {
        "input_ids": np.concatenate(texts)[None].astype(np.int32),
        "segment_ids": numbers[None].astype(np.int32),
        "position_ids": np.concatenate([np.arange(len(ids)) for ids in texts])[None].astype(np.int32),
    }
    ours = our_outputs(loaded.config, loaded.task, loaded.params, packed)["logits"][0]
    for number, ids in enumerate(texts, start=1):
        alone = {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None]}
        assert worst_excess({"logits": ours[None, numbers == number]}, *both_outputs(model, alone)) <= 1.0
