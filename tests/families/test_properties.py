"""What holds for every family: padding, packing, compilation, scanning, meshes and files change nothing; int8 little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.config import MeshConfig
from flaxbert.core.sharding import build_mesh, param_shardings, place_batch, shard
from flaxbert.core.trees import flatten_names, leaf_names, stack_layers
from flaxbert.families import FAMILIES, get_family
from flaxbert.families.graph import forward, graph_definition
from flaxbert.transforms import quantize
from flaxbert.weights.load import load_checkpoint
from flaxbert.weights.save import save_checkpoint
from tests.helpers import slow_unless
from tests.nn.models import run, small_batch, small_config, small_params

EXACT = 2e-5
"""Absolute, for outputs of size up to 5: the same float32 numbers in another order."""

INT8_MOVEMENT = 0.1
"""Largest movement of a logit relative to the largest logit: two layers of products that each err by about 1 %."""

QUICK = {"bert", "deberta-v2", "modernbert"}
"""Families of the default run; ``make test-slow`` takes all."""

EVERY_FAMILY = pytest.mark.parametrize("family", slow_unless(QUICK.__contains__, FAMILIES))
EVERY_HEAD = pytest.mark.parametrize(
    ("family", "task"),
    [
        pytest.param(family.model_type, task, marks=() if family.model_type in QUICK else pytest.mark.slow)
        for family in FAMILIES.values()
        for task in family.architectures
    ],
)


def config_of(family, task="token-classification", **changes):
    """A small architecture; read from the family's own file, so that its own defaults hold."""
    return small_config(family, task, **changes)


def logits(config, params, batch, task="token-classification", **how):
    output = run(params, batch, config=config, task=task, **how)
    return np.asarray(output.last_hidden_state if output.logits is None else output.logits)


@EVERY_FAMILY
@pytest.mark.parametrize("side", ["right", pytest.param("left", marks=pytest.mark.slow)])
def test_padding_changes_nothing(family, side):
    config = config_of(family)
    params, batch = small_params(config, "token-classification"), small_batch(config, lengths=(5, 9, 3))
    margin = (0, 4) if side == "right" else (4, 0)
    fill = {"input_ids": config.pad_token_id}
    longer = {name: np.pad(rows, ((0, 0), margin), constant_values=fill.get(name, 0)) for name, rows in batch.items()}
    if side == "left" and not config.position_offset:  # positions that count padding would move
        longer["position_ids"] = np.pad(np.tile(np.arange(9, dtype=np.int32), (3, 1)), ((0, 0), margin))
    real = batch["attention_mask"] == 1
    place = slice(None, 9) if side == "right" else slice(4, None)
    expected = logits(config, params, batch)[real]
    np.testing.assert_allclose(logits(config, params, longer)[:, place][real], expected, atol=EXACT)


@EVERY_FAMILY
def test_packed_rows_equal_separate_rows(family):
    config = config_of(family)
    params, lengths = small_params(config, "token-classification"), (5, 1, 6)
    random = np.random.default_rng(0)
    ids = [random.integers(5, config.vocab_size, size).astype(np.int32) for size in lengths]
    packed = {
        "input_ids": np.concatenate([*ids, np.full(2, config.pad_token_id, np.int32)])[None],
        "segment_ids": np.repeat([1, 2, 3, 0], [*lengths, 2]).astype(np.int32)[None],
        "position_ids": np.concatenate([np.arange(size) for size in (*lengths, 2)]).astype(np.int32)[None],
    }
    together = logits(config, params, packed)[0]
    for number, row in enumerate(ids, start=1):
        alone = logits(config, params, {"input_ids": row[None], "attention_mask": np.ones_like(row)[None]})[0]
        np.testing.assert_allclose(together[packed["segment_ids"][0] == number], alone, atol=EXACT)


@pytest.mark.parametrize("family", slow_unless({"bert", "modernbert"}.__contains__, FAMILIES))
def test_masked_positions_are_those_of_all_scores(family):
    config = config_of(family, num_hidden_layers=2)
    params, batch = small_params(config, "fill-mask"), small_batch(config)
    places = np.random.default_rng(0).integers(0, 9, (len(batch["input_ids"]), 4)).astype(np.int32)
    whole = logits(config, params, batch, "fill-mask")
    some = logits(config, params, {**batch, "masked_positions": places}, "fill-mask")
    np.testing.assert_allclose(some, np.take_along_axis(whole, places[..., None], axis=1), atol=EXACT)


@pytest.mark.parametrize("family", slow_unless({"bert"}.__contains__, ["bert", "albert", "ernie"]))
def test_packed_pretraining_scores_every_segment(family):
    config = config_of(family, num_hidden_layers=2)
    params = small_params(config, "pretraining")
    ids = np.random.default_rng(0).integers(5, config.vocab_size, (2, 4)).astype(np.int32)
    packed = {
        "input_ids": np.concatenate([ids[0], ids[1], [config.pad_token_id]]).astype(np.int32)[None],
        "segment_ids": np.repeat([1, 2, 0], [4, 4, 1]).astype(np.int32)[None],
        "position_ids": np.concatenate([np.arange(4), np.arange(4), [0]]).astype(np.int32)[None],
        "first_positions": np.array([[0, 4]], np.int32),
        "masked_positions": np.array([[1, 6]], np.int32),
    }
    together = run(params, packed, config=config, task="pretraining")
    alone = run(params, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, config=config, task="pretraining")
    assert together.next_sentence_logits.shape == (1, 2, 2)
    np.testing.assert_allclose(together.next_sentence_logits[0], alone.next_sentence_logits, atol=EXACT)
    np.testing.assert_allclose(together.logits[0], np.stack([alone.logits[0, 1], alone.logits[1, 2]]), atol=EXACT)


@EVERY_FAMILY
def test_compiled_equals_eager(family):
    config = config_of(family, num_hidden_layers=1)
    params, batch = small_params(config, "token-classification"), small_batch(config)
    graphdef = graph_definition(config, "token-classification", Execution())
    eager = forward(graphdef, params, {name: jnp.asarray(rows) for name, rows in batch.items()}).logits
    np.testing.assert_allclose(logits(config, params, batch), eager, atol=EXACT)


@pytest.mark.slow
@EVERY_FAMILY
def test_scanned_equals_unrolled_with_dropout(family):
    config = config_of(family, num_hidden_layers=3, hidden_dropout_rate=0.1, attention_dropout_rate=0.1)
    params, batch = small_params(config, "token-classification"), small_batch(config)
    key = jax.random.key(3)

    def loss(params, execution):
        output = run(params, batch, key, config=config, task="token-classification", execution=execution)
        return jnp.sum(jnp.sin(output.logits)), output.logits

    (_, unrolled), gradients = jax.value_and_grad(loss, has_aux=True)(params, Execution())
    (_, scanned), stacked = jax.value_and_grad(loss, has_aux=True)(stack_layers(params), Execution(scan_layers=True))
    np.testing.assert_allclose(scanned, unrolled, atol=EXACT)
    expected = flatten_names(stack_layers(gradients))
    for name, gradient in flatten_names(stacked).items():
        largest = max(1.0, float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(gradient, expected[name], atol=EXACT * largest, err_msg=name)


@EVERY_FAMILY
def test_sharded_equals_single(family):
    task = "fill-mask"
    config = config_of(family, task, num_attention_heads=4)
    params, batch = small_params(config, task), small_batch(config)
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    leaf_axes = get_family(family).parameter_axes(leaf_names(params))
    placed = shard(params, param_shardings(params, leaf_axes, mesh))
    with jax.set_mesh(mesh):
        on_mesh = logits(config, placed, place_batch(batch, mesh), task)
    np.testing.assert_allclose(on_mesh, logits(config, params, batch, task), atol=EXACT)


@EVERY_FAMILY
def test_int8_moves_little(family):
    config = config_of(family)
    params, batch = small_params(config, "token-classification"), small_batch(config)
    real = batch["attention_mask"] == 1
    expected, moved = (logits(config, tree, batch)[real] for tree in (params, quantize(params)[0]))
    assert np.abs(moved - expected).max() / np.abs(expected).max() < INT8_MOVEMENT


@EVERY_HEAD
def test_a_saved_model_is_loaded_bit_for_bit(family, task, tmp_path):
    config = config_of(family, task)
    params = jax.tree.map(np.asarray, small_params(config, task))
    folder = save_checkpoint(tmp_path / "model", config=config, task=task, params=params)
    loaded = load_checkpoint(folder, task)
    assert loaded.account.initialized == loaded.account.unused == ()
    expected, again = flatten_names(params), flatten_names(loaded.params)
    assert expected.keys() == again.keys()
    assert all(np.array_equal(expected[name], again[name]) for name in expected)
