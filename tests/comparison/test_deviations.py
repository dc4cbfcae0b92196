"""Errors of hidden states and weights against the reference."""

import numpy as np
import pytest

from flaxbert.comparison.deviations import (
    HiddenStates,
    hidden_states,
    layer_errors,
    matching_layers,
    output_error,
    relative_error,
    weight_errors,
    worst_leaves,
)
from flaxbert.comparison.texts import fit_task, padded_batch, random_examples
from flaxbert.core.arrays import SparseArray
from flaxbert.errors import ConfigError
from flaxbert.model import load


@pytest.mark.parametrize(
    ("layers", "reference", "expected"),
    [(3, 3, (0, 1, 2, 3)), (2, 6, (0, 3, 6)), (3, 12, (0, 4, 8, 12)), (2, 3, (0, 2, 3)), (0, 4, (0,))],
)
def test_fewer_blocks_are_spread_over_the_reference(layers, reference, expected):
    assert matching_layers(layers, reference) == expected


def test_more_blocks_or_other_widths_are_refused():
    with pytest.raises(ConfigError, match="4 blocks and the reference 3"):
        matching_layers(4, 3)
    narrow, wide = (HiddenStates((np.ones((2, width)),), np.ones(2)) for width in (3, 5))
    with pytest.raises(ConfigError, match="width 3, the reference's 5"):
        layer_errors(narrow, wide)


def test_relative_errors_are_of_norms():
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(4 / 3)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0.0
    assert relative_error(np.ones(2), np.zeros(2)) == float("inf")


def test_a_model_is_no_distance_from_itself_and_padding_is_not_compared(models):
    model = load(models["float"])
    examples = random_examples(model, 4, 9, seed=1)
    batch = padded_batch(model.task, examples)
    found = hidden_states(model, batch)
    assert len(found.states) == model.config.num_hidden_layers + 1
    assert found.states[0].shape == (examples.lengths.sum(), model.config.hidden_size)
    assert found.outputs.shape == (4, 3)
    assert all(entry.relative_error == 0.0 for entry in layer_errors(found, found))
    assert output_error(found, found) == 0.0
    wider = {name: np.pad(rows, ((0, 0), (0, 3))) for name, rows in batch.items()}
    again = hidden_states(model, wider)
    assert max(entry.relative_error for entry in layer_errors(again, found)) < 1e-5  # the same sums in another order
    assert output_error(found, HiddenStates(found.states, np.ones((4, 2)))) is None


def test_sentence_models_are_compared_by_their_vectors(models):
    model = load(models["float"], task="sentence-similarity")
    found = hidden_states(model, padded_batch(model.task, random_examples(model, 3, 9, seed=1)))
    assert found.outputs.shape == (3, model.config.hidden_size)


def test_scores_of_words_are_taken_at_a_few_tokens(tmp_path):
    from tests.weights.tiny import write_tiny

    model = load(write_tiny(tmp_path / "lm", task="fill-mask"))
    found = hidden_states(model, padded_batch(model.task, random_examples(model, 3, 9, seed=1)))
    assert found.outputs.shape == (3, 4, model.config.vocab_size)


@pytest.mark.parametrize(
    ("task", "shape"), [("multiple-choice", (2, 1, 6)), ("relation-classification", (2, 6)), ("fill-mask", (2, 6))]
)
def test_batches_have_the_form_of_the_task(task, shape):
    batch = fit_task(task, {"input_ids": np.ones((2, 6), np.int32)})
    assert batch["input_ids"].shape == shape
    assert ("entity_mask" in batch) == (task == "relation-classification")


def test_weights_are_compared_leaf_by_leaf_with_reasons_for_the_others():
    dense = np.array([[1.0, -2.0], [0.5, 4.0]], np.float32)
    reference = {
        "encoder": {"layers": {"0": {"kernel": dense}}},
        "head": {"kernel": dense, "bias": np.ones(3, np.float32)},
        "gone": np.ones(2, np.float32),
    }
    mask = np.array([[True, True], [True, False]])
    found = {
        "encoder": {"layers": {"0": {"kernel": dense}}},
        "head": {"kernel": SparseArray(dense, mask), "bias": np.ones(4, np.float32)},
        "new": np.ones(2, np.float32),
    }
    errors = weight_errors(found, reference)
    by_name = {leaf.name: leaf for leaf in errors.leaves}
    assert by_name["encoder.layers.0.kernel"].max_relative_error == 0.0
    sparse = by_name["head.kernel"]
    assert (sparse.form, sparse.kept_share, sparse.max_relative_error) == ("sparse", 0.75, 1.0)
    assert sparse.rms_relative_error == pytest.approx(4 / np.sqrt(1 + 4 + 0.25 + 16))
    assert (sparse.bytes_before, sparse.bytes_after) == (16, 20)
    assert set(errors.left_out) == {"gone", "new", "head.bias"}
    assert "(4,), the reference's (3,)" in errors.left_out["head.bias"]
    other_blocks = weight_errors(found, reference, same_layers=False)
    assert "blocks" in other_blocks.left_out["encoder.layers.0.kernel"]
    assert [leaf.name for leaf in worst_leaves(errors.leaves, 5)] == ["head.kernel"]
