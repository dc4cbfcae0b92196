"""BERT's numbers against stock transformers on torch: 30 random and odd configurations, every head."""

import numpy as np
import pytest
import torch

from flaxbert.architecture import Execution
from flaxbert.core.trees import stack_layers
from flaxbert.nn.activations import ACTIVATIONS
from flaxbert.weights.save import save_checkpoint
from tests.helpers import slow_unless
from tests.parity.oracle import (
    BASE,
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

ACTIVATION_CASES = [
    pytest.param(
        Case(f"activation {name}", config={"hidden_act": name, "num_hidden_layers": 1}), marks=pytest.mark.slow
    )
    for name in sorted(ACTIVATIONS)
]

CASES = [
    Case("plain"),
    Case("one head of odd width", config={"hidden_size": 7, "num_attention_heads": 1}),
    Case("five heads of 3", config={"hidden_size": 15, "num_attention_heads": 5, "intermediate_size": 17}),
    Case("seven heads of 11", config={"hidden_size": 77, "num_attention_heads": 7, "intermediate_size": 101}),
    Case("heads of width 1", config={"hidden_size": 6, "num_attention_heads": 6}),
    Case("feed-forward narrower than the stream", config={"intermediate_size": 5}),
    Case("one layer", config={"num_hidden_layers": 1}),
    Case("five layers", config={"num_hidden_layers": 5}),
    Case("one token type", config={"type_vocab_size": 1}),
    Case("five token types", config={"type_vocab_size": 5}),
    Case("large epsilon", config={"layer_norm_eps": 0.1}),
    Case("one label", config={"num_labels": 1}),
    Case("nineteen labels", config={"num_labels": 19}),
    Case("one token", length=1, padding="none"),
    Case("as long as the model takes", length=20, padding="none"),
    Case("padding on the left", padding="left"),
    Case("padding on the left, tokens", task="token-classification", padding="left"),
    Case("token classification", task="token-classification"),
    Case("masked words", task="fill-mask"),
    Case("masked words, odd", task="fill-mask", config={"hidden_size": 9, "hidden_act": "relu", "vocab_size": 131}),
    Case("next sentence", task="next-sentence-prediction"),
    Case("pre-training", task="pretraining"),
    Case("bare encoder", task="feature-extraction"),
    Case("bare encoder, left", task="feature-extraction", padding="left", batch=5),
]


@pytest.mark.parametrize(
    "case", [*slow_unless(CASES[::2].__contains__, CASES), *ACTIVATION_CASES], ids=lambda case: case.name
)
def test_equals_torch(case, tmp_path):
    model = make_torch_model(case)
    loaded = load_ours(save_torch(model, tmp_path / "theirs"))
    assert loaded.task == case.task
    assert loaded.account.initialized == ()
    batch = make_batch(case)
    ours = our_outputs(loaded.config, loaded.task, loaded.params, batch)
    excess = worst_excess(
        ours,
        torch_outputs(model, batch, torch.float32),
        torch_outputs(model, batch, torch.float64),
        batch,
    )
    assert excess <= 1.0


TASK_CASES = [next(case for case in CASES if case.task == task) for task in dict.fromkeys(case.task for case in CASES)]


@pytest.mark.parametrize("case", TASK_CASES, ids=lambda case: case.task)
def test_export_loads_in_stock_transformers(case, tmp_path):
    loaded = load_ours(save_torch(make_torch_model(case, seed=3), tmp_path / "theirs"))
    folder = save_checkpoint(
        tmp_path / "ours", config=loaded.config, task=loaded.task, params=loaded.params, max_shard_bytes=9000
    )
    assert (folder / "model.safetensors.index.json").is_file(), "small shards exercise the index"
    theirs = load_torch(folder, case)
    batch = make_batch(case)
    ours = our_outputs(loaded.config, loaded.task, loaded.params, batch)
    outputs = [torch_outputs(theirs, batch, dtype) for dtype in (torch.float32, torch.float64)]
    assert worst_excess(ours, *outputs, batch) <= 1.0
    again = load_ours(folder)
    assert again.config == loaded.config
    second = our_outputs(again.config, again.task, again.params, batch)
    assert all(np.array_equal(ours[name], second[name]) for name in ours)


def test_model_without_token_types_exports_with_a_row_of_zeros(tmp_path):
    case = Case("no token types", config={"type_vocab_size": 1})
    model = make_torch_model(case)
    with torch.no_grad():
        model.bert.embeddings.token_type_embeddings.weight.zero_()
    loaded = load_ours(save_torch(model, tmp_path / "theirs"))
    params = {**loaded.params, "embeddings": {**loaded.params["embeddings"]}}
    del params["embeddings"]["token_type"]
    config = loaded.config.replace(type_vocab_size=0)
    batch = make_batch(case)
    ours = our_outputs(config, loaded.task, params, batch)
    float32, float64 = (torch_outputs(model, batch, dtype) for dtype in (torch.float32, torch.float64))
    assert worst_excess(ours, float32, float64) <= 1.0
    folder = save_checkpoint(tmp_path / "ours", config=config, task=loaded.task, params=params)
    exported = torch_outputs(load_torch(folder, case), batch, torch.float32)
    assert worst_excess(ours, exported, float64) <= 1.0
    again = load_ours(folder)
    assert again.config.type_vocab_size == 0
    assert "token_type" not in again.params["embeddings"]


def test_packed_rows_equal_separate_rows(tmp_path):
    case = Case("packed", task="token-classification", length=8, batch=4)
    model = make_torch_model(case)
    loaded = load_ours(save_torch(model, tmp_path))
    random = np.random.default_rng(0)
    texts = [random.integers(5, BASE["vocab_size"], size) for size in (3, 5, 1, 6)]
    packed = {name: np.zeros((1, 18), np.int32) for name in ("input_ids", "segment_ids", "position_ids")}
    start, places = 0, []
    for number, ids in enumerate(texts, start=1):
        places.append(slice(start, start + len(ids)))
        packed["input_ids"][0, places[-1]] = ids
        packed["segment_ids"][0, places[-1]] = number
        packed["position_ids"][0, places[-1]] = np.arange(len(ids))
        start += len(ids)
    ours = our_outputs(loaded.config, loaded.task, loaded.params, packed)["logits"]
    for ids, place in zip(texts, places, strict=True):
        alone = {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None]}
        outputs = [torch_outputs(model, alone, dtype) for dtype in (torch.float32, torch.float64)]
        assert worst_excess({"logits": ours[:, place]}, *outputs) <= 1.0


def test_padding_changes_nothing(tmp_path):
    case = Case("padded further", task="token-classification")
    loaded = load_ours(save_torch(make_torch_model(case), tmp_path))
    batch = make_batch(case)
    longer = {name: np.pad(array, ((0, 0), (0, 7))) for name, array in batch.items()}
    short = our_outputs(loaded.config, loaded.task, loaded.params, batch)["logits"]
    long = our_outputs(loaded.config, loaded.task, loaded.params, longer)["logits"][:, : case.length]
    real = batch["attention_mask"] == 1
    np.testing.assert_allclose(short[real], long[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scanned_equals_unrolled(remat, tmp_path):
    case = Case("scanned", config={"num_hidden_layers": 5})
    loaded = load_ours(save_torch(make_torch_model(case), tmp_path))
    batch = make_batch(case)
    unrolled = our_outputs(loaded.config, loaded.task, loaded.params, batch)["logits"]
    execution = Execution(scan_layers=True, remat=remat)
    scanned = our_outputs(loaded.config, loaded.task, stack_layers(loaded.params), batch, execution)["logits"]
    np.testing.assert_allclose(unrolled, scanned, atol=1e-5, rtol=0)
