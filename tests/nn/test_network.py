"""The whole network: padding, packing, precision, defaults of inputs, and safety from NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.errors import ShapeError
from flaxbert.families.graph import forward, graph_definition
from tests.nn.models import run, small_batch, small_config, small_params

CONFIG = small_config()
TASK = "token-classification"

TOLERANCE = 2e-5
"""Absolute, for token vectors of size 1: float32 sums in another order over three layers."""

BFLOAT16_TOLERANCE = 0.1
"""Absolute, for normalised token vectors of size up to 4: about 20 roundings at 2**-9 a layer add up."""


def hidden(batch, config=CONFIG, execution=Execution(), task=TASK, params=None):
    params = small_params(config, task, execution.scan_layers) if params is None else params
    return np.asarray(run(params, batch, config=config, execution=execution, task=task).last_hidden_state, np.float32)


def test_what_stands_in_padding_does_not_matter():
    batch = small_batch(CONFIG)
    mask = batch["attention_mask"]
    filled = {**batch, "input_ids": np.where(mask > 0, batch["input_ids"], np.int32(33))}
    real = mask > 0
    assert np.abs(hidden(batch) - hidden(filled))[real].max() < TOLERANCE


def test_how_much_padding_follows_does_not_matter():
    batch = small_batch(CONFIG, lengths=(7, 12, 3, 12))
    wider = {name: np.pad(array, ((0, 0), (0, 4))) for name, array in batch.items()}
    real = batch["attention_mask"] > 0
    assert np.abs(hidden(batch) - hidden(wider)[:, :12])[real].max() < TOLERANCE


def test_padding_on_the_left_with_positions_gives_the_same_vectors():
    right = small_batch(CONFIG, lengths=(5, 8))
    shift = {0: 3, 1: 0}
    left = {name: np.stack([np.roll(row, shift[i]) for i, row in enumerate(array)]) for name, array in right.items()}
    positions = np.clip(np.cumsum(left["attention_mask"], axis=1) - 1, 0, None).astype(np.int32)
    expected, actual = hidden(right), hidden({**left, "position_ids": positions})
    assert np.abs(actual[0, 3:] - expected[0, :5]).max() < TOLERANCE
    assert np.abs(actual[1] - expected[1]).max() < TOLERANCE


@pytest.mark.parametrize("scanned", [False, True])
def test_packed_rows_give_what_separate_rows_give(scanned):
    batch = small_batch(CONFIG, lengths=(5, 6, 3))
    rows = [{name: array[i, :n] for name, array in batch.items()} for i, n in enumerate((5, 6, 3))]
    packed = {
        "input_ids": np.concatenate([*(row["input_ids"] for row in rows), [0, 0]])[None].astype(np.int32),
        "token_type_ids": np.concatenate([*(row["token_type_ids"] for row in rows), [0, 0]])[None].astype(np.int32),
        "position_ids": np.array([[*range(5), *range(6), *range(3), 0, 0]], np.int32),
        "segment_ids": np.array([[1] * 5 + [2] * 6 + [3] * 3 + [0] * 2], np.int32),
    }
    execution = Execution(scan_layers=scanned)
    together, apart = hidden(packed, execution=execution)[0], hidden(batch, execution=execution)
    for row, (start, length) in enumerate(((0, 5), (5, 6), (11, 3))):
        assert np.abs(together[start : start + length] - apart[row, :length]).max() < TOLERANCE


@pytest.mark.parametrize(
    ("task", "precision"),
    [("sequence-classification", "float32"), ("sequence-classification", "bfloat16"), ("fill-mask", "float16")],
)
def test_rows_without_real_tokens_give_no_nan_in_results_or_gradients(task, precision):
    batch = small_batch(CONFIG, lengths=(0, 6, 0))
    graphdef = graph_definition(CONFIG, task, Execution(precision=precision))

    def loss(params):
        logits = forward(graphdef, params, batch, dropout_key=jax.random.key(0)).logits
        return jnp.sum(logits[1]), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(small_params(CONFIG, task))
    assert np.isfinite(np.asarray(logits)).all()
    assert all(np.isfinite(np.asarray(gradient)).all() for gradient in jax.tree.leaves(gradients))


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(precision, scanned):
    batch = small_batch(CONFIG)
    low = hidden(batch, execution=Execution(precision=precision, scan_layers=scanned))
    assert np.abs(low - hidden(batch))[batch["attention_mask"] > 0].max() < BFLOAT16_TOLERANCE


def test_defaults_are_all_real_first_type_and_counted_positions():
    batch = small_batch(CONFIG, lengths=(6, 6))
    ids = batch["input_ids"]
    written = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.tile(np.arange(6, dtype=np.int32), (2, 1)),
    }
    np.testing.assert_array_equal(hidden({"input_ids": ids}), hidden(written))


def test_token_types_matter_unless_the_model_has_none():
    batch = small_batch(CONFIG)
    other = {**batch, "token_type_ids": 1 - batch["token_type_ids"]}
    assert not np.allclose(hidden(batch), hidden(other), atol=1e-3)
    config = small_config(type_vocab_size=0)
    np.testing.assert_array_equal(hidden(batch, config), hidden(other, config))


def test_labels_and_weights_in_a_batch_are_left_to_the_loss():
    batch = small_batch(CONFIG)
    more = {**batch, "labels": np.zeros(4, np.int32), "example_weight": np.ones(4, np.float32)}
    np.testing.assert_array_equal(hidden(batch), hidden(more))


def test_a_batch_without_ids_is_refused():
    graphdef = graph_definition(CONFIG, TASK, Execution())
    with pytest.raises(ShapeError, match=r"no 'input_ids'; it has \['attention_mask'\]"):
        forward(graphdef, small_params(CONFIG, TASK), {"attention_mask": np.ones((1, 4), np.int32)})


def test_more_tokens_than_positions_are_refused_instead_of_giving_nan():
    with pytest.raises(ShapeError, match="17 tokens is longer than the model's 16 positions"):
        hidden({"input_ids": np.ones((1, 17), np.int32)})


def test_a_token_outside_the_vocabulary_gives_nan_and_not_another_token():
    ids = np.ones((2, 4), np.int32)
    ids[1, 2] = CONFIG.vocab_size
    vectors = hidden({"input_ids": ids})
    assert np.isfinite(vectors[0]).all()
    assert np.isnan(vectors[1]).all()
