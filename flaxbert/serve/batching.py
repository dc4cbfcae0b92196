"""Which waiting rows form the next batch: pure bookkeeping, without threads or models."""

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from flaxbert.serve.rows import Row
from flaxbert.serve.shapes import Costs, ShapePlan


class Ticket:
    """The rows of one request that wait for one function of one model.

    Args:
      rows: The rows.
      deadline: Time after which nobody waits for the answer.
      finished: Called once, from the thread that computes, when all rows are done or one failed.
    """

    def __init__(self, rows: Sequence[Row], deadline: float, finished: Callable[["Ticket"], None]) -> None:
        self.rows = rows
        self.deadline = deadline
        self.results: list[np.ndarray | None] = [None] * len(rows)
        self.error: Exception | None = None
        self.cancelled = False
        self.arrived = 0.0
        self.started = 0.0
        self.inference_seconds = 0.0
        self._finished = finished
        self._num_left = len(rows)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(row.length for row in self.rows)

    @property
    def over(self) -> bool:
        """Whether nothing more has to be computed for it."""
        return self.cancelled or self.error is not None or self._num_left == 0

    def put(self, index: int, result: np.ndarray) -> None:
        """Takes the result of one row.

        Args:
          index: Number of the row.
          result: What the function made of it.
        """
        self.results[index] = result
        self._num_left -= 1
        if self._num_left == 0 and not self.cancelled and self.error is None:
            self._finished(self)

    def fail(self, error: Exception) -> None:
        """Ends the request with an error; only the first counts.

        Args:
          error: What is wrong.
        """
        if not self.over:
            self.error = error
            self._finished(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Rows that are computed together.

    Attributes:
      lane: Where they waited.
      members: Ticket and number of each row.
      num_rows: Rows of the shape.
      length: Tokens of each row of the shape.
    """

    lane: "Lane"
    members: Sequence[tuple[Ticket, int]]
    num_rows: int
    length: int

    @property
    def rows(self) -> list[Row]:
        """The rows."""
        return [ticket.rows[index] for ticket, index in self.members]


class Lane:
    """The rows that wait for one function of one model, by the length that they are padded to.

    Small requests come before large ones of the same moment: the rank of a request is its arrival and the time that it will take, of
    which no more than ``patience`` counts, so that a large one waits at most that long for those that came after it.

    Args:
      key: What is computed, for whoever computes it.
      plan: The shapes.
      costs: How long they take.
      patience: Seconds.
    """

    def __init__(self, key: Any, plan: ShapePlan, costs: Costs, patience: float) -> None:
        self.key = key
        self.plan = plan
        self.costs = costs
        self.patience = patience
        self.num_rows = 0
        self.num_tokens = 0
        self._numbers = itertools.count()
        self._waiting: dict[int, list[tuple[float, int, Ticket, int]]] = {length: [] for length in plan.lengths}

    def add(self, ticket: Ticket, now: float) -> None:
        """Takes the rows of a request.

        Args:
          ticket: The request.
          now: The time.
        """
        cost = self.costs.seconds((1, ticket.num_tokens))
        rank = now + min(cost, self.patience)
        for index, row in enumerate(ticket.rows):
            heapq.heappush(self._waiting[self.plan.bucket(row.length)], (rank, next(self._numbers), ticket, index))
            self.num_rows += 1
            self.num_tokens += row.length

    def _pop(self, length: int) -> tuple[Ticket, int]:
        _, _, ticket, index = heapq.heappop(self._waiting[length])
        self.num_rows -= 1
        self.num_tokens -= ticket.rows[index].length
        return ticket, index

    def _clear_front(self, length: int, now: float) -> bool:
        """Drops rows that nobody waits for from the front of a length, and returns whether another is there."""
        waiting = self._waiting[length]
        while waiting:
            ticket = waiting[0][2]
            if not ticket.over and ticket.deadline > now:
                return True
            self._pop(length)
            ticket.fail(TimeoutError())
        return False

    def first_rank(self, now: float) -> float | None:
        """Returns the rank of the row that comes next, or None where none waits.

        Args:
          now: The time.
        """
        return min((self._waiting[n][0][0] for n in self.plan.lengths if self._clear_front(n, now)), default=None)

    def take(self, now: float) -> Batch | None:
        """Returns the next batch, or None where no row waits.

        The row that comes first says the length; others of its length follow, as many as are fastest together. Where rows would only fill
        the shape, shorter ones take their place.

        Args:
          now: The time.
        """
        alive = [length for length in self.plan.lengths if self._clear_front(length, now)]
        if not alive:
            return None
        length = min(alive, key=lambda n: self._waiting[n][0][:2])
        shorter = [n for n in alive if n < length][::-1]
        num_rows = self.costs.best_rows(self.plan.row_counts(length), length, len(self._waiting[length]))
        members: list[tuple[Ticket, int]] = []
        for source in (length, *shorter):
            while len(members) < num_rows and self._clear_front(source, now):
                members.append(self._pop(source))
        fitting = next(count for count in self.plan.row_counts(length) if count >= len(members))
        return Batch(self, members, fitting, length)


class Queue:
    """Lanes of several models that share a device, each getting its turn by the time that it used.

    A lane that was idle starts where the others are, so that it does not take the device for itself when it comes back.
    """

    def __init__(self) -> None:
        self._lanes: dict[Hashable, Lane] = {}
        self._used: dict[Hashable, float] = {}
        self._clock = 0.0

    @property
    def lanes(self) -> Sequence[Lane]:
        """The lanes."""
        return tuple(self._lanes.values())

    @property
    def num_rows(self) -> int:
        """Rows that wait."""
        return sum(lane.num_rows for lane in self._lanes.values())

    def add_lane(self, name: Hashable, lane: Lane) -> None:
        """Takes a lane.

        Args:
          name: Its name.
          lane: The lane.
        """
        self._lanes[name] = lane
        self._used[name] = self._clock

    def remove_lane(self, name: Hashable) -> None:
        """Forgets a lane; nothing waits in it any more.

        Args:
          name: Its name.
        """
        self._lanes.pop(name, None)
        self._used.pop(name, None)

    def add(self, name: Hashable, ticket: Ticket, now: float) -> None:
        """Takes the rows of a request.

        Args:
          name: Its lane.
          ticket: The request.
          now: The time.
        """
        lane = self._lanes[name]
        if lane.num_rows == 0:
            self._used[name] = max(self._used[name], self._clock)
        lane.add(ticket, now)

    def take(self, now: float) -> Batch | None:
        """Returns the next batch of the lane that used least, or None where nothing waits.

        Args:
          now: The time.
        """
        for name in sorted(self._lanes, key=lambda name: self._used[name]):
            lane = self._lanes[name]
            if lane.num_rows and (batch := lane.take(now)) is not None:
                self._clock = self._used[name]
                self._used[name] += lane.costs.seconds((batch.num_rows, batch.length))
                return batch
        return None
