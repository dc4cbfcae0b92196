"""ModernBERT against stock transformers: odd configurations, gradients, windows, files both ways, config.json of both majors."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.core.trees import flatten_names, stack_layers
from flaxbert.errors import ConfigError
from flaxbert.families import get_family
from flaxbert.families.graph import abstract_params, forward, graph_definition, initialize_params
from flaxbert.families.modernbert_encoder import FULL, SLIDING, ModernBertOptions
from flaxbert.nn import local_attention
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
    our_gradients,
    our_outputs,
    random_weights,
    save_torch,
    torch_gradients,
    worst_excess,
)

pytestmark = pytest.mark.parity

SAME_RESULTS = 1e-5
"""Absolute, for sums in another order."""

BIASES = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True)
CASES = [
    Case("five heads of 6, mean", config={"hidden_size": 30, "num_attention_heads": 5, "classifier_pooling": "mean"}),
    Case("seven heads of 10, relu", config={"hidden_size": 70, "num_attention_heads": 7, "hidden_act": "relu"}),
    Case("one layer, one head", config={"num_hidden_layers": 1, "hidden_size": 6, "num_attention_heads": 1}),
    Case("one layer that sees a window", config={"num_hidden_layers": 1, "layer_types": [SLIDING]}),
    Case("all biases, masked words", task="fill-mask", config={**BIASES, "norm_eps": 0.1}),
    Case("masked words, no decoder bias, tanh", "fill-mask", {"decoder_bias": False, "classifier_activation": "tanh"}),
    Case("tokens, window of 2, left", "token-classification", {"local_attention": 2, "num_hidden_layers": 4}, "left"),
    Case("all layers see all", "token-classification", {"layer_types": [FULL] * 3}),
    Case("another order", "token-classification", {"layer_types": [SLIDING, FULL, SLIDING], **BIASES}),
    Case("answers, odd window", "question-answering", {"num_labels": 2, "local_attention": 7, "hidden_act": "silu"}),
    Case("choices, left", "multiple-choice", {"num_labels": 1, "classifier_activation": "relu"}, "left", length=7),
    Case("choices, mean", "multiple-choice", {"num_labels": 1, "classifier_pooling": "mean"}, length=7),
    Case("bare, as long as it takes", "feature-extraction", {"max_position_embeddings": 31}, "none", length=31),
    Case("relations", "relation-classification", {"mlp_bias": True}),
    Case("late interaction", "late-interaction", {"norm_bias": True}),
]
OLD_KEYS = {"global_attn_every_n_layers": 2, "global_rope_theta": 50.0, "local_rope_theta": 7.0}


def modern(case):
    return Case(**{**vars(case), "family": "modernbert"})


def load_pair(case, tmp_path):
    model = make_torch_model(modern(case), seed=len(case.name))
    loaded = load_checkpoint(save_torch(model, tmp_path / "theirs"))
    return model, dataclasses.replace(loaded, params=jax.tree.map(jnp.asarray, loaded.params))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_torch_and_comes_back(case, tmp_path):
    case = modern(case)
    model, loaded = load_pair(case, tmp_path)
    assert (loaded.task, loaded.account.initialized, loaded.account.unused) == (case.task, (), ())
    batch = make_batch(case)
    ours = our_outputs(loaded.config, loaded.task, loaded.params, batch)
    theirs = both_outputs(model, batch, "modernbert")
    assert worst_excess({name: ours[name] for name in theirs[0]}, *theirs, batch) <= 1.0
    folder = save_checkpoint(tmp_path / "ours", config=loaded.config, task=case.task, params=loaded.params)
    again = both_outputs(load_torch(folder, case), batch, "modernbert")
    assert all(np.array_equal(theirs[0][name], again[0][name]) for name in theirs[0])
    assert load_checkpoint(folder).config == loaded.config


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_equal_those_of_torch(case, tmp_path):
    case = modern(case)
    model, loaded = load_pair(case, tmp_path)
    batch = make_batch(case)
    assert gradient_share(case, model, loaded, batch, tmp_path / "gradients") <= GRADIENT_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("layers", [[FULL, SLIDING, FULL], [FULL] * 3, [SLIDING] * 3])
def test_scanned_layers_give_the_same_results_and_gradients(layers, tmp_path):
    case = modern(Case("scanned", "token-classification", {"layer_types": layers}))
    _, loaded = load_pair(case, tmp_path)
    batch = make_batch(case)

    def total(params, execution):
        graphdef = graph_definition(loaded.config, loaded.task, execution)
        output = forward(graphdef, params, batch, keep_hidden=True)
        return jnp.sum(output.logits[batch["attention_mask"] == 1] ** 2), output.hidden_states

    run = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)
    (plain, kept), gradients = run(loaded.params, Execution())
    assert len(kept) == 4
    for execution in (
        Execution(scan_layers=True),
        Execution(scan_layers=True, remat="full"),
        Execution(remat="attention"),
    ):
        tree = stack_layers(loaded.params) if execution.scan_layers else loaded.params
        (value, states), found = run(tree, execution)
        np.testing.assert_allclose(value, plain, rtol=SAME_RESULTS)
        for mine, reference in zip(states, kept, strict=True):
            np.testing.assert_allclose(mine, reference, atol=SAME_RESULTS)
        expected = flatten_names(stack_layers(gradients) if execution.scan_layers else gradients)
        for name, gradient in flatten_names(found).items():
            scale = max(1.0, float(np.abs(expected[name]).max()))
            np.testing.assert_allclose(gradient, expected[name], atol=10 * SAME_RESULTS * scale, err_msg=name)


def in_blocks(monkeypatch, size):
    monkeypatch.setattr(local_attention, "choose_block", lambda length, radius: size if length > size else 0)
    jax.clear_caches()


@pytest.mark.parametrize("padding", [pytest.param("left", marks=pytest.mark.slow), "right"])
@pytest.mark.parametrize("block", [pytest.param(4, marks=pytest.mark.slow), 5, pytest.param(8, marks=pytest.mark.slow)])
def test_a_long_input_in_blocks_equals_torch(block, padding, tmp_path, monkeypatch):
    case = modern(Case("long", "token-classification", {"max_position_embeddings": 40}, padding, length=37))
    model, loaded = load_pair(case, tmp_path)
    batch = make_batch(case)
    in_blocks(monkeypatch, block)
    theirs = both_outputs(model, batch, "modernbert")
    ours = our_outputs(loaded.config, loaded.task, loaded.params, batch)
    assert worst_excess(ours, *theirs, batch) <= 1.0
    weights = random_weights(theirs[0], batch)
    reference = torch_gradients(model, batch, weights, tmp_path / "gradients")["model.layers.1.attn.Wqkv.weight"].T
    gradient = flatten_names(our_gradients(loaded, batch, weights))["encoder.layers.1.attention.query_key_value.kernel"]
    assert np.abs(gradient - reference).max() <= GRADIENT_TOLERANCE * np.abs(reference).max()
    jax.clear_caches()


@pytest.mark.parametrize(
    ("block", "scan_layers"),
    slow_unless(lambda case: case[0] == 4 * case[1], [(0, False), (4, False), (0, True), (4, True)], several=True),
)
def test_packed_rows_equal_separate_rows(block, scan_layers, tmp_path, monkeypatch):
    case = modern(Case("packed", "token-classification"))
    model, loaded = load_pair(case, tmp_path)
    random = np.random.default_rng(0)
    texts = [random.integers(5, 61, size) for size in (3, 11, 1, 6)]
    numbers = np.repeat(np.arange(1, 5), [len(ids) for ids in texts])
    places = np.concatenate([np.arange(len(ids)) for ids in texts])
    packed = {"input_ids": np.concatenate(texts), "segment_ids": numbers, "position_ids": places}
    packed = {name: np.pad(array, (0, 3))[None].astype(np.int32) for name, array in packed.items()}
    in_blocks(monkeypatch, block or 100)
    params = stack_layers(loaded.params) if scan_layers else loaded.params
    ours = our_outputs(loaded.config, loaded.task, params, packed, Execution(scan_layers=scan_layers))["logits"]
    for number, ids in enumerate(texts, start=1):
        alone = {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None]}
        mine = ours[:, : len(numbers)][:, numbers == number]
        assert worst_excess({"logits": mine}, *both_outputs(model, alone, "modernbert")) <= 1.0
    jax.clear_caches()


@pytest.mark.parametrize("block", [0, 4])
def test_padding_changes_nothing(block, tmp_path, monkeypatch):
    case = modern(Case("padded", "token-classification"))
    _, loaded = load_pair(case, tmp_path)
    batch = make_batch(case)
    in_blocks(monkeypatch, block or 100)
    plain = our_outputs(loaded.config, loaded.task, loaded.params, batch)["logits"]
    longer = {name: np.pad(array, ((0, 0), (0, 9))) for name, array in batch.items()}
    padded = our_outputs(loaded.config, loaded.task, loaded.params, longer)["logits"][:, : case.length]
    real = batch["attention_mask"] == 1
    np.testing.assert_allclose(padded[real], plain[real], atol=SAME_RESULTS)
    jax.clear_caches()


def stock_json(**keys):
    sizes = {"vocab_size": 61, "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20}
    return {"model_type": "modernbert", "num_hidden_layers": 5, "pad_token_id": 0, **sizes, **keys}


def test_keys_of_transformers_4_and_5_say_the_same():
    read = get_family("modernbert").config_from_json
    kinds = [FULL, SLIDING, FULL, SLIDING, FULL]
    ropes = {FULL: {"rope_theta": 50.0, "rope_type": "default"}, SLIDING: {"rope_theta": 7.0}}
    old, new = read(stock_json(**OLD_KEYS)), read(stock_json(layer_types=kinds, rope_parameters=ropes))
    assert old == new
    options = old.own(ModernBertOptions)
    assert (options.global_every, options.global_rope_theta, options.local_rope_theta) == (2, 50.0, 7.0)
    assert options.kinds(5) == tuple(kinds)
    written = json.loads(json.dumps(get_family("modernbert").config_to_json(new, "fill-mask")))
    assert {key: written[key] for key in OLD_KEYS} == OLD_KEYS
    assert written["layer_types"] == kinds
    assert written["rope_parameters"][SLIDING] == {"rope_theta": 7.0, "rope_type": "default"}
    assert read(written) == new
    assert read(stock_json(local_rope_theta=None)).own(ModernBertOptions).local_rope_theta == 160000.0


def test_an_order_of_layers_that_transformers_4_can_not_say():
    family = get_family("modernbert")
    config = family.config_from_json(stock_json(layer_types=[SLIDING, FULL, FULL, SLIDING, FULL]))
    written = family.config_to_json(config, "fill-mask")
    assert "global_attn_every_n_layers" not in written
    assert family.config_from_json(written) == config


def test_old_keys_are_read_by_stock_transformers_as_by_us(tmp_path):
    case = modern(Case("old keys", "token-classification", OLD_KEYS))
    model, loaded = load_pair(case, tmp_path)
    assert model.config.layer_types == [FULL, SLIDING, FULL]
    old = {
        key: value
        for key, value in json.loads((tmp_path / "theirs" / "config.json").read_text()).items()
        if key not in ("layer_types", "rope_parameters")
    }
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**old, **OLD_KEYS}))
    assert load_checkpoint(tmp_path / "theirs").config == loaded.config
    batch = make_batch(case)
    ours = our_outputs(loaded.config, loaded.task, loaded.params, batch)
    assert worst_excess(ours, *both_outputs(load_torch(tmp_path / "theirs", case), batch), batch) <= 1.0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_parameters": {FULL: {"rope_type": "linear", "factor": 2.0}}}, "only the rope_type 'default'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "only the rope_type 'default'"),
        ({"rope_parameters": {SLIDING: {"partial_rotary_factor": 0.5}}}, "only the rope_type 'default'"),
        ({"rope_parameters": {FULL: 7}}, "must be settings by name"),
        ({"layer_types": [FULL]}, "layer_types has 1 entries, but the model 5 layers"),
        ({"layer_types": [FULL] * 4 + ["chunked"]}, "layer_types names chunked"),
        ({"classifier_pooling": "max"}, "choose cls or mean"),
        ({"classifier_activation": "gelo"}, "Did you mean 'gelu'"),
        ({"global_attn_every_n_layers": 0}, "must be at least 1"),
        ({"mlp_dropout": 1.0}, "lies in"),
        ({"global_rope_theta": 0.0}, "must be above 0"),
        ({"norm_bias": 1}, "must be true or false"),
    ],
)
def test_what_can_not_be_read_is_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        get_family("modernbert").config_from_json(stock_json(**keys))


def test_heads_of_odd_width_are_refused():
    config = get_family("modernbert").config_from_json(stock_json(hidden_size=15))
    with pytest.raises(ConfigError, match="a head has 5, an odd number"):
        abstract_params(config, "fill-mask")


def test_a_masked_language_checkpoint_gives_the_classifier_its_head(tmp_path):
    _, loaded = load_pair(Case("masked", "fill-mask"), tmp_path)
    classifier = load_checkpoint(tmp_path / "theirs", "sequence-classification")
    assert classifier.account.initialized == ("classifier.kernel", "classifier.bias")
    mine, theirs = flatten_names(classifier.params), flatten_names(loaded.params)
    np.testing.assert_array_equal(mine["prediction.dense.kernel"], theirs["prediction.dense.kernel"])


def test_a_question_answering_checkpoint_keeps_its_head_to_itself(tmp_path):
    load_pair(CASES[9], tmp_path)
    classifier = load_checkpoint(tmp_path / "theirs", "token-classification")
    assert set(classifier.account.initialized) == {"classifier.kernel", "classifier.bias"}
    assert len(classifier.account.unused) == 2


def test_new_weights_are_narrower_where_they_write_to_the_residual_stream():
    config = get_family("modernbert").config_from_json(stock_json(hidden_size=96, num_hidden_layers=8))
    leaves = flatten_names(initialize_params(config, "sequence-classification", 0))
    into, out = (
        np.asarray(leaves[f"encoder.layers.3.attention.{name}.kernel"]) for name in ("query_key_value", "output")
    )
    assert np.abs(into).max() <= 0.04
    assert np.abs(out).max() <= 0.01
    assert np.abs(out).max() > 0.008


@pytest.mark.slow
def test_the_first_token_is_computed_alone_only_where_it_is_classified(tmp_path):
    for pooling, length in (("cls", 1), ("mean", 13)):
        case = modern(Case("pooled", config={"classifier_pooling": pooling}))
        _, loaded = load_pair(case, tmp_path / pooling)
        batch = make_batch(case)
        graphdef = graph_definition(loaded.config, loaded.task, Execution())
        output = forward(graphdef, loaded.params, batch)
        assert (output.last_hidden_state is None) == (length == 1)
        kept = forward(graphdef, loaded.params, batch, keep_hidden=True)
        np.testing.assert_allclose(kept.logits, output.logits, atol=SAME_RESULTS)


@pytest.mark.slow
def test_dropout_at_every_place_changes_the_result_and_follows_the_key(tmp_path):
    case = modern(Case("dropout", "token-classification", {"max_position_embeddings": 40}, length=37))
    _, loaded = load_pair(case, tmp_path)
    batch = make_batch(case)
    plain = our_outputs(loaded.config, loaded.task, loaded.params, batch)["logits"]
    options = loaded.config.own(ModernBertOptions)
    for changes in (
        {"hidden_dropout_rate": 0.3},
        {"attention_dropout_rate": 0.3},
        {"classifier_dropout_rate": 0.3},
        {"options": ModernBertOptions(**{**vars(options), "mlp_dropout": 0.3})},
    ):
        graphdef = graph_definition(loaded.config.replace(**changes), loaded.task, Execution())
        run = jax.jit(lambda key, graphdef=graphdef: forward(graphdef, loaded.params, batch, dropout_key=key).logits)
        first, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (0, 0, 1))
        assert np.isfinite(first).all()
        assert np.array_equal(first, again)
        assert np.abs(first - plain).max() > 1e-3
        assert np.abs(first - other).max() > 1e-3


def test_all_layers_have_the_same_leaves():
    config = get_family("modernbert").config_from_json(stock_json(**OLD_KEYS))
    params = initialize_params(config, "fill-mask", 0)
    stacked = flatten_names(stack_layers(params))
    assert stacked["encoder.layers.stacked.norm.scale"].shape == (5, 12)
    assert not [name for name in stacked if ".stacked." not in name and "layers" in name]
