"""DeBERTa 1, 2 and 3 against stock transformers: odd configurations, gradients, packing, padding, both ways through the files."""

import copy
import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.core.trees import flatten_names, stack_layers
from flaxbert.errors import ConfigError
from flaxbert.families import get_family
from flaxbert.families.deberta import DECODER_KEY
from flaxbert.nn.disentangled_attention import DisentangledOptions
from flaxbert.nn.relative_positions import distance_rows, ordered_rows, skew
from flaxbert.weights.save import save_checkpoint
from tests.parity.oracle import (
    GRADIENT_TOLERANCE,
    OWN_HEADS,
    Case,
    both_outputs,
    gradient_share,
    load_ours,
    load_torch,
    make_batch,
    make_torch_model,
    our_outputs,
    save_torch,
    torch,
    worst_excess,
)

SCAN_TOLERANCE = 1e-5
"""The same float32 sums in another order."""

BOTH = ("deberta", "deberta-v2")
FIVE = {"hidden_size": 15, "num_attention_heads": 5, "intermediate_size": 11}
SEVEN = {"hidden_size": 77, "num_attention_heads": 7, "intermediate_size": 101}
BIASED = {"position_biased_input": True, "max_position_embeddings": 23}
SEPARATE = {"share_att_key": False, "norm_rel_ebd": "none"}
CONVOLUTION = {"conv_kernel_size": 3, "conv_act": "gelu"}

SHARED = {
    "as it is": {},
    "five heads, relu": {**FIVE, "hidden_act": "relu"},
    "seven heads, one layer, three types": {**SEVEN, "num_hidden_layers": 1, "type_vocab_size": 3},
    "c2p only": {"pos_att_type": ["c2p"]},
    "p2c only, few distances": {"pos_att_type": "p2c", "max_relative_positions": 4, "position_buckets": -1},
    "neither": {"pos_att_type": []},
    "no distances": {"relative_attention": False, "pos_att_type": ["c2p", "p2c"]},
    "positions as input": BIASED,
    "narrow embeddings, silu": {"embedding_size": 10, "type_vocab_size": 2, "hidden_act": "silu"},
    "large epsilon": {"layer_norm_eps": 0.1, "max_relative_positions": 7},
    "one word for nothing": {"pos_att_type": "none"},
}
SECOND = {
    "layers of its own": SEPARATE,
    "layers of its own, c2p only": {**SEPARATE, "pos_att_type": "c2p"},
    "layers of its own, p2c only": {**SEPARATE, "pos_att_type": "p2c"},
    "no buckets": {"position_buckets": -1},
    "two buckets": {"position_buckets": 2},
    "five buckets": {"position_buckets": 5},
    "more buckets than positions": {"position_buckets": 32},
    "many distances, few buckets": {"position_buckets": 4, "max_relative_positions": 40},
    "convolution": CONVOLUTION,
    "convolution in groups": {**CONVOLUTION, "conv_kernel_size": 5, "conv_act": "tanh", "conv_groups": 3},
    "convolution after the only block": {**CONVOLUTION, "num_hidden_layers": 1},
    "normalised table that nothing reads": {"relative_attention": False},
}
ODD = [
    *(Case(name, config=config, family=family) for family in BOTH for name, config in SHARED.items()),
    *(Case(name, config=config, family="deberta-v2") for name, config in SECOND.items()),
]
TASKS = [
    Case("tokens, left", "token-classification", padding="left"),
    Case("spans", "question-answering", {"num_labels": 2}),
    Case("choices", "multiple-choice"),
    Case("words", "fill-mask"),
    Case("words, new head", "fill-mask", {"legacy": False, "hidden_act": "relu"}),
    Case("words, narrow embeddings", "fill-mask", {"embedding_size": 10}),
    Case("relations", "relation-classification"),
    Case("late interaction", "late-interaction"),
    Case("bare", "feature-extraction"),
    Case("replaced tokens", "replaced-token-detection"),
    Case("replaced tokens, left", "replaced-token-detection", {"hidden_act": "relu"}, padding="left"),
    Case("convolved tokens", "token-classification", {**CONVOLUTION, "type_vocab_size": 2}, padding="left"),
    Case("pooler of another kind", config={"pooler_hidden_act": "tanh", "pooler_dropout": 0.3, "cls_dropout": 0.2}),
    Case("one token", "token-classification", length=1, padding="none"),
    Case("as long as it gets", "token-classification", length=20, padding="none"),
]
ALL = ODD + [
    dataclasses.replace(case, family=family)
    for family in BOTH
    for case in TASKS
    if case.task in get_family(family).architectures and not (family == "deberta" and "conv_kernel_size" in case.config)
]


def name_of(case):
    return f"{case.family}, {case.name}"


@pytest.mark.parity
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if place % 32 == 0 else pytest.mark.slow) for place, case in enumerate(ALL)],
    ids=name_of,
)
def test_logits_and_gradients_are_stock_ones_and_files_go_both_ways(case, tmp_path):
    model = make_torch_model(case, seed=len(case.name))
    loaded = load_ours(save_torch(model, tmp_path / "theirs"))
    assert (loaded.task, loaded.config.family, loaded.account.initialized) == (case.task, case.family, ())
    assert loaded.account.unused == ()
    batch = make_batch(case)
    reference = both_outputs(model, batch)
    ours = our_outputs(loaded.config, loaded.task, loaded.params, batch)
    assert worst_excess(ours, *reference, batch) <= 1.0
    assert gradient_share(case, model, loaded, batch, tmp_path / "gradients") <= GRADIENT_TOLERANCE
    folder = save_checkpoint(tmp_path / "ours", config=loaded.config, task=loaded.task, params=loaded.params)
    assert worst_excess(ours, *both_outputs(load_torch(folder, case), batch), batch) <= 1.0
    again = load_ours(folder)
    assert again.config == loaded.config
    leaves = flatten_names(loaded.params)
    assert all(np.array_equal(leaves[name], leaf) for name, leaf in flatten_names(again.params).items())


VARIANTS = {
    "deberta": {"plain": {}, "positions as input": BIASED},
    "deberta-v2": {"plain": {}, "convolved": CONVOLUTION, "apart": {**SEPARATE, "position_buckets": 4}},
}
EVERY = [(family, name) for family, configs in VARIANTS.items() for name in configs]


def load_variant(family, name, folder, task="token-classification", **changes):
    config = {"num_hidden_layers": 3, "max_position_embeddings": 32, **VARIANTS[family][name]}
    case = Case(name, task, {**config, "max_position_embeddings": 32}, family=family, **changes)
    model = make_torch_model(case)
    return case, model, load_ours(save_torch(model, folder))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), EVERY)
def test_scanned_layers_and_more_padding_change_nothing(family, name, tmp_path):
    case, _, loaded = load_variant(family, name, tmp_path)
    batch = make_batch(case)
    real = batch["attention_mask"] == 1
    plain = our_outputs(loaded.config, loaded.task, loaded.params, batch)["logits"][real]
    stacked = stack_layers(loaded.params)
    scanned = our_outputs(loaded.config, loaded.task, stacked, batch, Execution(scan_layers=True))["logits"][real]
    np.testing.assert_allclose(scanned, plain, atol=SCAN_TOLERANCE, rtol=0)
    longer = {key: np.pad(array, ((0, 0), (0, 7))) for key, array in batch.items()}
    padded = our_outputs(loaded.config, loaded.task, loaded.params, longer)["logits"][:, : case.length][real]
    np.testing.assert_allclose(padded, plain, atol=SCAN_TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("family", "name", "task"),
    [(*variant, "token-classification") for variant in EVERY] + [("deberta-v2", "plain", "replaced-token-detection")],
)
def test_packed_rows_equal_texts_alone(family, name, task, tmp_path):
    case, model, loaded = load_variant(family, name, tmp_path, task)
    random = np.random.default_rng(0)
    texts = [random.integers(5, case.settings["vocab_size"], size) for size in (3, 9, 1, 6)]
    numbers = np.repeat(np.arange(1, 5), [len(ids) for ids in texts])
    packed = {
        "input_ids": np.concatenate(texts)[None].astype(np.int32),
        "segment_ids": numbers[None].astype(np.int32),
        "position_ids": np.concatenate([np.arange(len(ids)) for ids in texts])[None].astype(np.int32),
    }
    ours = our_outputs(loaded.config, loaded.task, loaded.params, packed)["logits"][0]
    for number, ids in enumerate(texts, start=1):
        alone = {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None]}
        assert worst_excess({"logits": ours[None, numbers == number]}, *both_outputs(model, alone), alone) <= 1.0


@pytest.mark.parametrize("family", BOTH)
def test_positions_that_are_given_give_what_those_in_order_give(family, tmp_path):
    case, _, loaded = load_variant(family, "plain", tmp_path)
    batch = make_batch(case)
    placed = {
        **batch,
        "position_ids": np.broadcast_to(np.arange(case.length, dtype=np.int32), batch["input_ids"].shape),
    }
    first, second = (our_outputs(loaded.config, loaded.task, loaded.params, each)["logits"] for each in (batch, placed))
    np.testing.assert_allclose(first, second, atol=SCAN_TOLERANCE, rtol=0)


@pytest.mark.parametrize("num_positions", [3, 9, 20, 28, 64, 109, 512, 1024])
@pytest.mark.parametrize("num_buckets", [2, 3, 4, 5, 8, 32, 100, 256])
def test_buckets_are_those_of_stock_transformers(num_buckets, num_positions):
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = np.arange(1 - num_positions, num_positions)
    bucket = make_log_bucket_position(torch.tensor(distances), num_buckets, num_positions).long()
    expected = torch.clamp(bucket + num_buckets, 0, 2 * num_buckets - 1).numpy()
    np.testing.assert_array_equal(distance_rows(distances, num_buckets, num_positions), expected)


def test_rows_in_order_are_those_that_occur():
    rows, places = ordered_rows(5, 0, 3)
    assert rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert places.tolist() == [0, 0, 1, 2, 3, 4, 5, 5, 5]
    assert ordered_rows(2, -1, 9)[0].tolist() == [8, 9, 10]


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_skewed_scores_stand_at_their_offsets(length):
    scores = np.random.default_rng(0).standard_normal((2, 3, length, 2 * length - 1)).astype(np.float32)
    skewed = np.asarray(skew(jnp.asarray(scores)))
    for row in range(length):
        for column in range(length):
            np.testing.assert_array_equal(skewed[..., row, column], scores[..., row, length - 1 + column - row])


def rename_tensors(folder, change, config=None):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({change(name): array for name, array in tensors.items()}, folder / "model.safetensors")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **(config or {})}), "utf-8")


@pytest.mark.parametrize("family", BOTH)
@pytest.mark.parametrize("legacy", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_names_of_a_head_count_more_than_the_config(family, legacy, tmp_path):
    case = Case("words", "fill-mask", {"legacy": legacy}, family=family)
    model = make_torch_model(case)
    folder = save_torch(model, tmp_path / "theirs")
    rename_tensors(folder, lambda name: name, {"legacy": not legacy})
    loaded = load_ours(folder)
    assert loaded.account.initialized == ()
    assert loaded.config.own(DisentangledOptions).legacy == legacy
    saved = save_checkpoint(tmp_path / "ours", config=loaded.config, task=loaded.task, params=loaded.params)
    assert json.loads((saved / "config.json").read_text("utf-8"))["legacy"] == legacy
    batch = make_batch(case)
    ours = our_outputs(loaded.config, loaded.task, loaded.params, batch)
    assert worst_excess(ours, *both_outputs(load_torch(saved, case), batch), batch) <= 1.0


@pytest.mark.parametrize("family", BOTH)
def test_tensors_of_published_checkpoints_are_accounted_for(family, tmp_path):
    case = Case("words", "fill-mask", {"legacy": False}, family=family)
    folder = save_torch(make_torch_model(case), tmp_path)
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["deberta.embeddings.position_embeddings.weight"] = np.ones((20, 24), np.float32)
    head = {"dense.weight": (24, 24), "dense.bias": (24,), "classifier.weight": (1, 24), "classifier.bias": (1,)}
    head |= {"LayerNorm.weight": (24,), "LayerNorm.bias": (24,)}
    tensors |= {f"mask_predictions.{name}": np.ones(shape, np.float32) for name, shape in head.items()}
    save_file(tensors, folder / "model.safetensors")
    classifier = load_ours(folder, "sequence-classification")
    names = {"deberta.embeddings.position_embeddings.weight", *(f"mask_predictions.{name}" for name in head)}
    assert names < set(classifier.account.unused)
    assert all(name.startswith(("pooler.", "classifier.")) for name in classifier.account.initialized)
    assert set(load_ours(folder).account.unused) == names
    detector = load_ours(folder, "replaced-token-detection")
    assert detector.account.initialized == ()
    assert not any(name.startswith("mask_predictions") for name in detector.account.unused)


PUBLISHED = {
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.1,
    "attention_head_size": 64,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 0,
    "vocab_size": 128100,
}


def test_the_published_config_is_read_and_written():
    family = get_family("deberta-v2")
    config = family.config_from_json(PUBLISHED)
    assert config.position_embedding == "none"
    assert config.own(DisentangledOptions).score_types == ("p2c", "c2p")
    assert config.own(DisentangledOptions).num_rows(config) == 512
    written = family.config_to_json(config, "fill-mask")
    assert written["pos_att_type"] == ["p2c", "c2p"]
    assert written["position_biased_input"] is False
    assert not {"embedding_size", DECODER_KEY, "flaxbert_position_embedding"} & set(written)
    assert family.config_from_json(written) == config


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("deberta", {"talking_head": True}, "talking_head"),
        ("deberta", {"pos_att_type": "c2p|p2p"}, "p2p"),
        ("deberta", {"pooler_hidden_size": 9}, "pooler_hidden_size"),
        ("deberta-v2", {"attention_head_size": 32}, "attention_head_size 32"),
        ("deberta-v2", {"position_buckets": 1}, "position_buckets is 1"),
        ("deberta-v2", {"norm_rel_ebd": "batch_norm"}, "batch_norm"),
        ("deberta-v2", {"conv_kernel_size": 4}, "conv_kernel_size is 4"),
        ("deberta-v2", {"conv_groups": 0}, "conv_groups is 0"),
        ("deberta-v2", {"conv_act": "gelo"}, "gelo"),
        ("deberta-v2", {"pooler_dropout": 1.0}, "pooler_dropout is 1.0"),
    ],
)
def test_what_can_not_be_is_refused(family, change, message):
    with pytest.raises(ConfigError, match=message):
        get_family(family).config_from_json({**PUBLISHED, **change})


@pytest.mark.parametrize(
    "change", [{"legacy": False, "embedding_size": 10}, {DECODER_KEY: True, "embedding_size": 10}, {"conv_groups": 5}]
)
def test_widths_that_do_not_go_together_are_refused(change):
    from flaxbert.families.graph import abstract_params

    family = get_family("deberta-v2")
    with pytest.raises(ConfigError):
        abstract_params(family.config_from_json({**PUBLISHED, "conv_kernel_size": 3, **change}), "fill-mask")


class QueriesApart(torch.nn.Module):
    """The joint projection of DeBERTa 1 with keys and values of other contents; stock's own way to do it takes no batches."""

    def __init__(self, layer, contents, heads):
        super().__init__()
        self.layer, self.contents, self.heads = layer, contents, heads

    def forward(self, states):
        own, other = (self.layer(each).unflatten(-1, (self.heads, 3, -1)) for each in (states, self.contents))
        return torch.cat([own[..., :1, :], other[..., 1:, :]], dim=-2).flatten(-3)


def run_layer(layer, states, contents, mask, distances):
    attention = layer.attention.self
    if not hasattr(attention, "in_proj"):
        return layer(contents, mask, query_states=states, **distances)[0]
    layer = copy.deepcopy(layer)
    layer.attention.self.in_proj = QueriesApart(attention.in_proj, contents, attention.num_attention_heads)
    return layer(states, mask, **distances)[0]


def decoded_by_stock(model, batch):
    """Logits of Microsoft's enhanced mask decoder, from the layers of a stock model."""
    model = copy.deepcopy(model)
    inputs = {name: torch.tensor(array, dtype=torch.long) for name, array in batch.items()}
    found = []
    for dtype in (torch.float32, torch.float64):
        model = model.to(dtype)
        base, length = model.deberta, inputs["input_ids"].shape[1]
        with torch.no_grad():
            kept = base(**inputs, output_hidden_states=True).hidden_states
            states = kept[-2] + base.embeddings.position_embeddings.weight[:length]
            mask = base.encoder.get_attention_mask(inputs["attention_mask"])
            distances = {"relative_pos": base.encoder.get_rel_pos(kept[-2])}
            distances["rel_embeddings"] = base.encoder.get_rel_embedding()
            for _ in range(2):
                states = run_layer(base.encoder.layer[-1], states, kept[-2], mask, distances)
            head = model.lm_predictions(states, base.embeddings.word_embeddings)
        found.append({"logits": head.double().numpy()})
    return found


@pytest.mark.parametrize("biased", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("scanned", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", BOTH)
def test_the_enhanced_mask_decoder_is_that_of_the_original(family, biased, scanned, tmp_path):
    config = {"legacy": False, "position_biased_input": biased, "num_hidden_layers": 3}
    case = Case("decoder", "fill-mask", config, family=family)
    model = make_torch_model(case)
    if not biased:
        table = torch.nn.Embedding(20, 24)
        model.deberta.embeddings.position_embeddings = table
    folder: pathlib.Path = save_torch(model, tmp_path / "theirs")
    rename_tensors(folder, lambda name: name, {DECODER_KEY: True})
    loaded = load_ours(folder)
    assert loaded.account.unused == loaded.account.initialized == ()
    batch = make_batch(case)
    params = stack_layers(loaded.params) if scanned else loaded.params
    ours = our_outputs(loaded.config, loaded.task, params, batch, Execution(scan_layers=scanned))
    assert worst_excess(ours, *decoded_by_stock(model, batch), batch) <= 1.0
    saved = save_checkpoint(tmp_path / "ours", config=loaded.config, task=loaded.task, params=loaded.params)
    assert load_ours(saved).config == loaded.config


def test_own_heads_are_listed():
    assert set(get_family("deberta").architectures) >= OWN_HEADS
    assert "multiple-choice" not in get_family("deberta").architectures
