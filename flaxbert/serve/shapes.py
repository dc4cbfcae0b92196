"""The small set of shapes that a server compiles, and which of them a batch takes."""

import dataclasses
import threading
from collections.abc import Sequence

from flaxbert.data.ordering import default_length_buckets

Shape = tuple[int, int]
"""Rows and tokens of each row."""

_FIXED_TOKENS = 48
"""What a batch costs beside its tokens, in tokens, before anything is measured."""

_WEIGHT_OF_NEWEST = 0.2


@dataclasses.dataclass(frozen=True)
class ShapePlan:
    """All shapes of one model.

    Attributes:
      lengths: Tokens of a row, rising.
      rows: Rows of a batch, rising from 1.
      max_batch_tokens: Most tokens of a batch with more than one row.
    """

    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    max_batch_tokens: int

    def bucket(self, length: int) -> int:
        """Returns the shortest row that holds some tokens.

        Args:
          length: The tokens; at most those of the longest row.
        """
        return next(bucket for bucket in self.lengths if bucket >= length)

    def row_counts(self, length: int) -> tuple[int, ...]:
        """Returns the numbers of rows that batches of a length may have.

        Args:
          length: One of ``lengths``.
        """
        return tuple(count for count in self.rows if count == 1 or count * length <= self.max_batch_tokens)

    def shapes(self) -> list[Shape]:
        """Returns all shapes, the smallest first."""
        found = [(count, length) for length in self.lengths for count in self.row_counts(length)]
        return sorted(found, key=lambda shape: (shape[0] * shape[1], shape))


def plan_shapes(max_length: int, max_batch_tokens: int, max_rows: int, growth: int = 2) -> ShapePlan:
    """Returns the shapes for a longest text and a largest batch.

    Args:
      max_length: Tokens of the longest text.
      max_batch_tokens: Most tokens of a batch.
      max_rows: Most rows of a batch.
      growth: How many times as many rows the next larger batch has.
    """
    rows = [1]
    while rows[-1] * growth <= max_rows:
        rows.append(rows[-1] * growth)
    return ShapePlan(tuple(default_length_buckets(max_length)), tuple(rows), max_batch_tokens)


class Costs:
    """Seconds that shapes take, learned from the batches that were run; safe to be used by several threads."""

    def __init__(self) -> None:
        self._seconds: dict[Shape, float] = {}
        self._per_token = 1e-4
        self._lock = threading.Lock()

    def observe(self, shape: Shape, seconds: float) -> None:
        """Notes how long a batch took.

        Args:
          shape: Its shape.
          seconds: The time.
        """
        with self._lock:
            before = self._seconds.get(shape, seconds)
            self._seconds[shape] = before + _WEIGHT_OF_NEWEST * (seconds - before)
            rate = seconds / (shape[0] * shape[1] + _FIXED_TOKENS)
            weight = _WEIGHT_OF_NEWEST if len(self._seconds) > 1 else 1.0
            self._per_token += weight * (rate - self._per_token)

    def seconds(self, shape: Shape) -> float:
        """Returns how long a batch of a shape takes, guessed from others where none was seen.

        Args:
          shape: The shape.
        """
        found = self._seconds.get(shape)
        return found if found is not None else self._per_token * (shape[0] * shape[1] + _FIXED_TOKENS)

    def best_rows(self, counts: Sequence[int], length: int, waiting: int) -> int:
        """Returns the number of rows with which waiting rows are computed fastest, each on average.

        Args:
          counts: Numbers of rows to choose from, rising.
          length: Tokens of a row.
          waiting: Rows that wait, at least 1.
        """
        useful = [count for count in counts if count < 2 * waiting] or [counts[0]]
        return min(useful, key=lambda count: self.seconds((count, length)) / min(count, waiting))
