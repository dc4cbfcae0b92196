"""The objective of a student: means over the whole batch however it is cut, for every kind of task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import DistillationConfig
from flaxbert.data.extended_batches import PROGRESS
from flaxbert.errors import ConfigError
from flaxbert.nn.attention_capture import AttentionInputs
from flaxbert.nn.network import ModelOutput
from flaxbert.train.distillation import (
    LABEL_SHARE,
    TEACHER_IDS,
    TEACHER_LOGITS,
    TOKEN_SHARE,
    DistillationObjective,
    DistillationOutput,
    temperature_at,
)
from flaxbert.train.losses import loss_for
from tests.helpers import slow_unless

CLOSE = {"rtol": 2e-5, "atol": 1e-6}
"""Sums of a few dozen float32 numbers in another order."""

ROWS, LENGTH, LABELS, LAYERS, HEADS = 6, 5, 3, 2, 2
MASK = (np.arange(LENGTH) < np.asarray([5, 3, 2, 4, 1, 5])[:, None]).astype(np.int32)
WEIGHT = np.asarray([1, 1, 1, 1, 1, 0], np.float32)
"""The last row only fills the batch."""

ALL = {
    "soft": 1.0, "logit": 0.5, "hard": 0.3, "embedding": 1.0, "hidden": 1.0, "hidden_cosine": 1.0, "attention": 1.0,
    "attention_relation": 1.0, "query_relation": 1.0, "key_relation": 1.0, "value_relation": 1.0, "patient": 1.0,
}  # fmt: skip


def output(seed, shape=(ROWS, LABELS), last=None):
    """What a network could return; in the last row all numbers are those given."""
    random = np.random.default_rng(seed)

    def draw(*sizes):
        values = random.standard_normal(sizes).astype(np.float32)
        values[-1] = values[-1] if last is None else last
        return jnp.asarray(values)

    attention = tuple(AttentionInputs(*(draw(ROWS, HEADS, LENGTH, 4) for _ in range(3))) for _ in range(LAYERS))
    states = tuple(draw(ROWS, LENGTH, 8) for _ in range(LAYERS + 1))
    return ModelOutput(logits=draw(*shape), hidden_states=states, attention=attention)


def make(task, problem_type="", terms=ALL, config=DistillationConfig(), **changes):
    return DistillationObjective(
        config=config,
        terms=terms,
        task=task,
        problem_type=problem_type,
        hard=loss_for(task, problem_type) if "hard" in terms else None,
        layer_map=(0, 1),
        **changes,
    )


def labels_of(task, problem_type):
    random = np.random.default_rng(9)
    if problem_type == "regression":
        return random.standard_normal((ROWS, LABELS)).astype(np.float32)
    if problem_type == "multi_label_classification":
        return random.integers(0, 2, (ROWS, LABELS)).astype(np.float32)
    if task == "question-answering":
        return np.stack([np.zeros(ROWS, np.int32), MASK.sum(1) - 1], axis=1).astype(np.int32)
    if task == "token-classification":
        drawn = random.integers(0, LABELS, (ROWS, LENGTH)).astype(np.int32)
        return np.where((MASK == 1) & (np.arange(LENGTH) != 0), drawn, -100).astype(np.int32)
    return random.integers(0, LABELS, ROWS).astype(np.int32)


TASKS = {
    ("sequence-classification", "single_label_classification"): (ROWS, LABELS),
    ("sequence-classification", "multi_label_classification"): (ROWS, LABELS),
    ("sequence-classification", "regression"): (ROWS, LABELS),
    ("token-classification", ""): (ROWS, LENGTH, LABELS),
    ("question-answering", ""): (ROWS, LENGTH, 2),
}


def batch_of(task, problem_type):
    batch = {
        "input_ids": np.ones((ROWS, LENGTH), np.int32),
        "attention_mask": MASK,
        "example_weight": WEIGHT,
        "labels": labels_of(task, problem_type),
        PROGRESS: np.full(ROWS, 0.5, np.float32),
    }
    return {name: jnp.asarray(array) for name, array in batch.items()}


def rows_of(tree, rows):
    return jax.tree.map(lambda array: array[rows], tree)


@pytest.mark.parametrize(
    "kind", slow_unless(lambda kind: kind[0] == "token-classification", TASKS), ids=lambda kind: kind[1] or kind[0]
)
def test_micro_batches_add_up_and_filling_rows_count_nothing(kind):
    objective = make(*kind, teacher_heads=((1, 0), (0, 1)))
    both = DistillationOutput(output(0, TASKS[kind]), (output(1, TASKS[kind]),), {})
    weighed = objective.weigh(batch_of(*kind))
    total, weight = objective(both, weighed)
    assert float(weight) == WEIGHT.sum()
    assert 0 < float(total) < float("inf")
    parts = [slice(0, 2), slice(2, 4), slice(4, 6)]
    found = [objective(rows_of(both, rows), rows_of(weighed, rows)) for rows in parts]
    np.testing.assert_allclose(sum(float(one[0]) for one in found), total, **CLOSE)
    again = objective(DistillationOutput(output(0, TASKS[kind], last=1e4), both.teachers, {}), weighed)
    np.testing.assert_allclose(again[0], total, **CLOSE)


@pytest.mark.parametrize("kind", TASKS, ids=lambda kind: kind[1] or kind[0])
def test_a_student_like_its_teacher_has_no_loss_but_that_of_labels(kind):
    objective = make(*kind, terms={name: weight for name, weight in ALL.items() if name != "hard"})
    same = output(0, TASKS[kind])
    total, _ = objective(DistillationOutput(same, (same,), {}), objective.weigh(batch_of(*kind)))
    np.testing.assert_allclose(total, 0, atol=1e-4)  # cosines of 1 up to rounding, added up over tokens


@pytest.mark.parametrize("kind", TASKS, ids=lambda kind: kind[1] or kind[0])
def test_the_hard_term_alone_is_the_tasks_own_loss(kind):
    objective, batch = make(*kind, terms={"hard": 1.0}), batch_of(*kind)
    student = output(0, TASKS[kind])
    total, weight = objective(DistillationOutput(student, (), {}), objective.weigh(batch))
    expected, count = loss_for(*kind)(student, batch)
    np.testing.assert_allclose(total / weight, expected / count, **CLOSE)


def test_tokens_and_labels_have_equal_shares_over_the_whole_batch():
    kind = ("token-classification", "")
    weighed = make(*kind).weigh(batch_of(*kind))
    real, known = MASK * WEIGHT[:, None], (np.asarray(batch_of(*kind)["labels"]) != -100) * WEIGHT[:, None]
    np.testing.assert_allclose(weighed[TOKEN_SHARE], real * 5 / real.sum(), **CLOSE)
    np.testing.assert_allclose(weighed[LABEL_SHARE], known * 5 / known.sum(), **CLOSE)


def test_stored_scores_stand_in_for_a_teacher():
    kind = ("sequence-classification", "single_label_classification")
    objective = make(*kind, terms={"soft": 1.0, "logit": 1.0}, teacher_weights=(1.0, 3.0))
    student, teachers = output(0), (output(1), output(2))
    batch = objective.weigh(batch_of(*kind))
    stored = {TEACHER_LOGITS.format(number): teacher.logits for number, teacher in enumerate(teachers)}
    expected, _ = objective(DistillationOutput(student, teachers, {}), batch)
    found, _ = objective(DistillationOutput(student, (), {}), {**batch, **stored})
    np.testing.assert_allclose(found, expected, **CLOSE)
    top = make(*kind, terms={"soft": 1.0})
    scores = np.asarray(output(1).logits, np.float64)
    ids = np.argsort(-scores, axis=-1).astype(np.int32)
    kept = np.take_along_axis(scores - np.log(np.exp(scores).sum(-1, keepdims=True)), ids, axis=-1).astype(np.float32)
    whole, _ = top(DistillationOutput(student, (output(1),), {}), batch)
    found, _ = top(
        DistillationOutput(student, (), {}),
        {**batch, TEACHER_IDS.format(0): jnp.asarray(ids), TEACHER_LOGITS.format(0): jnp.asarray(kept)},
    )
    np.testing.assert_allclose(found, whole, rtol=1e-4)  # a rest of rounding


@pytest.mark.parametrize(
    ("schedule", "middle"), [("constant", 4.0), ("linear", 2.5), ("cosine", 2.5), ("exponential", 2.0)]
)
def test_temperatures_go_from_start_to_end(schedule, middle):
    config = DistillationConfig(temperature=4.0, end_temperature=1.0, temperature_schedule=schedule)
    found = temperature_at(config, jnp.asarray([0.0, 0.5, 1.0], jnp.float32))
    np.testing.assert_allclose(found, [4.0, middle, 4.0 if schedule == "constant" else 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"end_temperature": -1.0}, "end_temperature is -1.0"),
        ({"soft_weight": 0.0}, "All weights"),
        ({"hidden_weight": -1.0}, "hidden_weight is -1.0"),
        ({"relation_heads": -1}, "relation_heads is -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DistillationConfig(**options)
