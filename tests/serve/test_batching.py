"""Which rows are computed together, in which order, and what nobody waits for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxbert.serve.batching import Lane, Queue, Ticket
from flaxbert.serve.rows import Row, collate_rows
from flaxbert.serve.shapes import Costs, plan_shapes

PLAN = plan_shapes(64, 256, 8)


def row(length, first=1):
    return Row({"input_ids": np.arange(first, first + length, dtype=np.int32)})


def ticket(*lengths, deadline=1e9, finished=None):
    return Ticket([row(length) for length in lengths], deadline, finished or (lambda done: None))


def lane(patience=1.0):
    return Lane("model", PLAN, Costs(), patience)


def drain(source, now=0.0):
    batches = []
    while (batch := source.take(now)) is not None:
        batches.append(batch)
    return batches


@given(st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=6), min_size=1, max_size=12))
def test_every_row_is_computed_once_in_a_shape_of_the_plan(requests):
    source = lane()
    tickets = [ticket(*lengths) for lengths in requests]
    for number, each in enumerate(tickets):
        source.add(each, float(number))
    seen = []
    for batch in drain(source):
        assert (batch.num_rows, batch.length) in PLAN.shapes()
        assert 1 <= len(batch.members) <= batch.num_rows
        assert all(each.rows[index].length <= batch.length for each, index in batch.members)
        seen += [(id(each), index) for each, index in batch.members]
    expected = [(id(each), index) for each in tickets for index in range(len(each.rows))]
    assert sorted(seen) == sorted(expected)
    assert (source.num_rows, source.num_tokens) == (0, 0)


def test_a_small_request_goes_before_a_large_one_of_the_same_moment_but_not_for_ever():
    source = lane(patience=0.5)
    source.costs.observe((1, 64), 0.1)
    large, small, late = ticket(*[64] * 20), ticket(16), ticket(16)
    source.add(large, 0.0)
    source.add(small, 0.01)
    first = source.take(0.1)
    source.add(late, 0.9)
    second = source.take(1.0)
    assert first.members[0][0] is small
    assert second.members[0][0] is large
    assert late in [each for batch in drain(source, 1.0) for each, _ in batch.members]


def test_shorter_rows_take_places_that_would_be_empty():
    source = lane()
    source.costs.observe((4, 64), 0.1)
    source.costs.observe((1, 64), 0.1)
    source.costs.observe((2, 64), 0.1)
    source.add(ticket(60, 60, 60), 0.0)
    source.add(ticket(20), 5.0)
    batch = source.take(0.0)
    assert (batch.num_rows, batch.length) == (4, 64)
    assert [each.rows[index].length for each, index in batch.members] == [60, 60, 60, 20]


def test_requests_that_nobody_waits_for_are_left_out():
    source, failed = lane(), []
    late = ticket(10, 10, deadline=1.0, finished=failed.append)
    gone, alive = ticket(10), ticket(10)
    for each in (late, gone, alive):
        source.add(each, 0.0)
    gone.cancelled = True
    (batch,) = drain(source, 2.0)
    assert [each for each, _ in batch.members] == [alive]
    assert failed == [late]
    assert isinstance(late.error, TimeoutError)


def test_a_ticket_is_finished_once():
    done = []
    each = ticket(3, 3, finished=done.append)
    each.put(1, np.ones(2))
    assert done == []
    each.put(0, np.zeros(2))
    assert done == [each]
    each.fail(ValueError("late"))
    assert done == [each]
    assert each.error is None


def test_a_busy_model_does_not_starve_another():
    queue = Queue()
    for name in ("busy", "quiet"):
        queue.add_lane(name, Lane(name, PLAN, Costs(), 0.0))
    for _ in range(50):
        queue.add("busy", ticket(64), 0.0)
    first = [queue.take(0.0).lane.key for _ in range(10)]
    assert set(first) == {"busy"}
    queue.add("quiet", ticket(16), 1.0)
    queue.add("quiet", ticket(64), 1.0)
    after = [queue.take(1.0).lane.key for _ in range(4)]
    assert after.count("quiet") == 2  # its turns come at once, not after the 40 that wait
    queue.remove_lane("busy")
    assert queue.take(1.0) is None


def test_batches_are_padded_and_filled():
    rows = [Row({"input_ids": np.array([5, 6]), "token_type_ids": np.array([0, 1])}), row(3, 1)]
    batch = collate_rows(rows, 4, 4, ("input_ids", "attention_mask", "token_type_ids"), pad_token_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 9, 9], [1, 2, 3, 9], [5, 6, 9, 9], [5, 6, 9, 9]]
    assert batch["attention_mask"].sum(axis=1).tolist() == [2, 3, 2, 2]
    assert batch["token_type_ids"].tolist()[0] == [0, 1, 0, 0]
    slots = [Row({"input_ids": np.array([5])}, {"masked_positions": np.array([0, 0])})]
    assert collate_rows(slots, 2, 4, ("input_ids", "masked_positions"), 0)["masked_positions"].shape == (2, 2)


@pytest.mark.parametrize("lengths", [(1,), (64, 1), (17, 18, 19)])
def test_rows_that_wait_are_counted(lengths):
    source = lane()
    source.add(ticket(*lengths), 0.0)
    assert (source.num_rows, source.num_tokens) == (len(lengths), sum(lengths))
