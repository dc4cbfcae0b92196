"""What is kept of requests and answers, and for how long."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from flaxbert.data.scripts import SCRIPTS, script_shares
from flaxbert.serve.rows import Row

MOST_OF_A_REQUEST: Final = 64
"""Inputs of a request that are looked at, so that a large one costs no more than its share."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sketch:
    """What is kept of the inputs of a request.

    Attributes:
      lengths: Tokens of each row.
      unknown: Tokens of each row that the vocabulary does not know.
      scripts: Share of each script in each text, ``[texts, scripts]``.
    """

    lengths: np.ndarray
    unknown: np.ndarray
    scripts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is kept of the answer of a request.

    Attributes:
      labels: The labels that its texts got, or words of them.
      confidences: Score of the best label of each text, of some entities, of the best answer or the best word.
    """

    labels: Sequence[str]
    confidences: Sequence[float] = ()


def sketch_of(rows: Sequence[Row], texts: Sequence[Sequence[str]], unknown_token_id: int | None) -> Sketch:
    """Looks at the inputs of a request.

    Args:
      rows: Its rows.
      texts: Its texts; second texts, if any, are a list more.
      unknown_token_id: Id of tokens that the vocabulary does not know, or None.

    Returns:
      Lengths and unknown tokens of its first rows, and scripts of its first texts.
    """
    ids = [row.values["input_ids"] for row in rows[:MOST_OF_A_REQUEST]]
    unknown = [0 if unknown_token_id is None else np.count_nonzero(row == unknown_token_id) for row in ids]
    num_texts = min(len(texts[0]), MOST_OF_A_REQUEST) if texts else 0
    scripts = np.zeros((num_texts, len(SCRIPTS)), np.float32)
    for place in range(num_texts):
        scripts[place] = script_shares([column[place] for column in texts])
    return Sketch(np.asarray([len(row) for row in ids], np.int32), np.asarray(unknown, np.int32), scripts)


class Ring:
    """The last entries of a stream, in memory that does not grow.

    Args:
      size: Entries that are kept.
      **columns: Type and shape of an entry's part, by name.
    """

    def __init__(self, size: int, **columns: tuple[Any, tuple[int, ...]]) -> None:
        self.size = size
        self.num_seen = 0
        self._times = np.zeros(size, np.float64)
        self._columns = {name: np.zeros((size, *shape), dtype) for name, (dtype, shape) in columns.items()}

    def add(self, now: float, **values: Any) -> None:
        """Takes entries in the place of the oldest.

        Args:
          now: Their time.
          **values: Their parts, one entry a row.
        """
        arrays = {name: np.asarray(value)[-self.size :] for name, value in values.items()}
        total, kept = (len(rows[next(iter(values))]) for rows in (values, arrays))
        first = (self.num_seen + total - kept) % self.size
        whole = min(kept, self.size - first)
        for start, stop, place in ((0, whole, first), (whole, kept, 0)):
            if stop > start:
                self._times[place : place + stop - start] = now
                for name, array in arrays.items():
                    self._columns[name][place : place + stop - start] = array[start:stop]
        self.num_seen += total

    def since(self, time: float = -math.inf) -> dict[str, np.ndarray]:
        """Returns the entries that are not older than a time, in no order.

        Args:
          time: The time.
        """
        filled = min(self.num_seen, self.size)
        keep = self._times[:filled] >= time
        return {name: column[:filled][keep] for name, column in self._columns.items()}
