"""Batches: each example once, the same after a stop at any point, and process slices that make up the global batch."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.data.batches import BatchPipeline, collate, evaluation_batches
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, DataError, MeshError


def make_examples(lengths, types=False, labels=None):
    lengths = np.asarray(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.concatenate([np.full(length, 10 + number) for number, length in enumerate(lengths)]).astype(np.int32)
    return TokenizedExamples(
        input_ids=ids,
        token_type_ids=(ids % 2).astype(np.int32) if types else None,
        offsets=offsets,
        truncated=np.zeros(len(lengths), bool),
        labels=np.arange(len(lengths), dtype=np.int32) if labels is None else labels,
        pad_token_id=7,
    )


def assert_equal_batches(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=60)
OPTIONS = {
    "seed": st.integers(0, 2**32 - 1),
    "shuffle": st.booleans(),
    "group_by_length": st.booleans(),
    "window_batches": st.integers(1, 5),
}


def test_a_batch_is_padded_on_the_right():
    batch = collate(make_examples([2, 3, 1], types=True), np.array([1, -1, 0]), 4)
    assert batch["input_ids"].tolist() == [[11, 11, 11, 7], [11, 11, 11, 7], [10, 10, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert batch["labels"].tolist() == [1, 1, 0]
    assert batch["example_weight"].tolist() == [1.0, 0.0, 1.0]
    assert batch["example_index"].tolist() == [1, -1, 0]
    types = {name: array.dtype.name for name, array in batch.items()}
    assert types.pop("example_weight") == "float32"
    assert set(types.values()) == {"int32"}


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 9), **OPTIONS)
def test_every_epoch_shows_each_example_once_with_its_own_tokens(lengths, batch_size, **options):
    examples = make_examples(lengths)
    pipeline = BatchPipeline(examples, batch_size=batch_size, num_epochs=2, **options)
    batches = list(pipeline)
    assert len(batches) == 2 * pipeline.steps_per_epoch
    for epoch in (batches[: pipeline.steps_per_epoch], batches[pipeline.steps_per_epoch :]):
        seen = []
        for batch in epoch:
            length = batch["input_ids"].shape[1]
            assert batch["input_ids"].shape == (batch_size, length)
            assert length in pipeline.length_buckets
            real = batch["example_weight"] == 1
            assert (batch["attention_mask"].sum(axis=1) > 0).all()
            rows = batch["example_index"][real]
            np.testing.assert_array_equal(batch["attention_mask"].sum(axis=1)[real], np.asarray(lengths)[rows])
            np.testing.assert_array_equal(batch["input_ids"][real, 0], rows + 10)
            np.testing.assert_array_equal(batch["labels"][real], rows)
            seen.extend(rows.tolist())
        assert sorted(seen) == list(range(len(lengths)))
    pipeline.close()


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 9), stop=st.floats(0, 1), prefetch=st.integers(0, 5), **OPTIONS)
def test_a_run_that_stops_anywhere_continues_with_exactly_the_same_batches(
    lengths, batch_size, stop, prefetch, **options
):
    examples = make_examples(lengths)

    def make():
        return BatchPipeline(examples, batch_size=batch_size, num_epochs=3, prefetch=prefetch, **options)

    whole = list(make())
    stopped = make()
    point = round(stop * len(whole))
    for batch in whole[:point]:
        assert_equal_batches(next(stopped), batch)
    state = json.loads(json.dumps(stopped.get_state()))
    assert state["step"] == point
    resumed = make()
    next(resumed)
    resumed.set_state(state)
    rest = list(resumed)
    assert len(rest) == len(whole) - point
    for left, right in zip(rest, whole[point:], strict=True):
        assert_equal_batches(left, right)


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, share=st.integers(1, 4), process_count=st.sampled_from([1, 2, 3, 4]), **OPTIONS)
def test_slices_of_all_processes_make_up_the_global_batch(lengths, share, process_count, **options):
    examples = make_examples(lengths)
    batch_size = share * process_count
    whole = BatchPipeline(examples, batch_size=batch_size, num_epochs=1, **options)
    parts = [
        BatchPipeline(
            examples, batch_size=batch_size, num_epochs=1, process_index=index, process_count=process_count, **options
        )
        for index in range(process_count)
    ]
    steps = list(zip(whole, *parts, strict=True))
    assert len(steps) == whole.steps_per_epoch
    for batch, *slices in steps:
        assert all(len(part["input_ids"]) == share for part in slices)
        joined = {name: np.concatenate([part[name] for part in slices]) for name in batch}
        assert_equal_batches(joined, batch)


def test_a_position_moves_to_another_number_of_processes():
    examples = make_examples(range(1, 30))
    one = BatchPipeline(examples, batch_size=4, seed=3)
    for _ in range(11):
        next(one)
    parts = [BatchPipeline(examples, batch_size=4, seed=3, process_index=index, process_count=2) for index in range(2)]
    for part in parts:
        part.set_state(one.get_state())
    expected = next(one)
    joined = [next(part) for part in parts]
    assert_equal_batches({name: np.concatenate([part[name] for part in joined]) for name in expected}, expected)
    one.set_state({**parts[1].get_state()})
    assert one.step == 12


def test_continuing_plans_one_epoch_only(monkeypatch):
    planned = []
    from flaxbert.data import batches

    original = batches.plan_epoch
    monkeypatch.setattr(
        batches, "plan_epoch", lambda *args, **options: planned.append(options["epoch"]) or original(*args, **options)
    )
    examples = make_examples([3] * 100)
    pipeline = BatchPipeline(examples, batch_size=4, prefetch=0)
    pipeline.set_state({**pipeline.get_state(), "step": 25 * 1000 + 7})
    next(pipeline)
    assert (planned, pipeline.epoch, pipeline.step) == ([1000], 1000, 25_008)


def test_without_number_of_epochs_batches_never_end():
    pipeline = BatchPipeline(make_examples([1, 2, 3]), batch_size=2)
    assert len(list(itertools.islice(pipeline, 50))) == 50
    assert pipeline.epoch == 25
    pipeline.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 8}, "batch_size was 8 and is 4"),
        ({"seed": 1}, "seed was 1 and is 0"),
        ({"digest": "other"}, "digest was 'other'"),
        ({"step": -1}, "step is -1"),
        ({"step": 10**6}, "step is 1000000 of 3"),
        ({"step": None}, "step is None"),
    ],
)
def test_positions_of_other_runs_are_refused(change, message):
    pipeline = BatchPipeline(make_examples(range(1, 11)), batch_size=4, num_epochs=1)
    with pytest.raises(DataError, match=message):
        pipeline.set_state({**pipeline.get_state(), **change})
    assert pipeline.step == 0


def test_a_position_knows_the_contents_of_the_examples():
    examples = make_examples(range(1, 11))
    state = BatchPipeline(examples, batch_size=4).get_state()
    changed = dataclasses.replace(examples, labels=examples.labels[::-1].copy())
    with pytest.raises(DataError, match="digest"):
        BatchPipeline(changed, batch_size=4).set_state(state)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ConfigError, "batch size is 0"),
        ({"batch_size": 5, "process_count": 2}, MeshError, "5 examples .* over 2 processes.*for example 4 or 6"),
        ({"batch_size": 4, "process_index": 2, "process_count": 2}, MeshError, "process 2 of 2"),
        ({"batch_size": 4, "length_buckets": (4, 8)}, DataError, "Example 9 has 10 tokens.*buckets is 8"),
    ],
)
def test_shapes_that_can_not_be_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        BatchPipeline(make_examples(range(1, 11)), **options)


def test_no_examples_are_refused():
    empty = TokenizedExamples(np.zeros(0, np.int32), None, np.zeros(1, np.int64), np.zeros(0, bool))
    with pytest.raises(DataError, match="no examples"):
        BatchPipeline(empty, batch_size=2)


def test_evaluation_shows_every_example_once_from_short_to_long():
    lengths = np.random.default_rng(0).integers(1, 100, 77)
    examples = make_examples(lengths)
    seen, longest = [], 0
    for batch in evaluation_batches(examples, 8, (32, 64, 100)):
        real = batch["example_index"][batch["example_weight"] > 0]
        assert batch["input_ids"].shape[1] in (32, 64, 100)
        assert lengths[real].min() >= longest
        longest = lengths[real].max()
        seen.extend(real.tolist())
    assert sorted(seen) == list(range(77))


@pytest.mark.parametrize("labels", [np.zeros((3, 5), np.float32), np.zeros(3, np.float32)])
def test_labels_of_every_shape_are_carried(labels):
    (batch,) = evaluation_batches(make_examples([1, 2, 3], labels=labels), 4)
    assert batch["labels"].shape == (4, *labels.shape[1:])
    assert batch["labels"].dtype == np.float32


def test_grouping_saves_padding():
    lengths = np.random.default_rng(0).integers(1, 129, 4000)
    examples = make_examples(lengths)

    def padded(group):
        pipeline = BatchPipeline(examples, batch_size=16, num_epochs=1, group_by_length=group)
        return sum(batch["input_ids"].size for batch in pipeline)

    assert padded(True) < 1.25 * lengths.sum() < 0.75 * padded(False)
