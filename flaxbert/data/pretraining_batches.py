"""Batches for pre-training: rows of several corpora in a fixed proportion, by the number of the step."""

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.config import IGNORED_LABEL
from flaxbert.data.extended_batches import PROGRESS
from flaxbert.data.pipeline import Batch
from flaxbert.data.pretraining_rows import RowSource
from flaxbert.errors import ConfigError

_MIXTURE_ROWS, _MOST_MIXTURE_ROWS = 1 << 10, 1 << 20
"""Rows after which the order of the sources of a mixture begins again: as many as give the rarest one enough places."""

_LEAST_PLACES = 16
"""Places of the rarest source before the order begins again, so that it comes nearly as often as its weight says."""


class RowMixture:
    """An endless stream of rows of several sources; each comes as often as its weight says, epoch after epoch of its own.

    Args:
      sources: The sources.
      weights: Their weights; empty weighs every row of every source alike.

    Raises:
      ConfigError: Weights and sources do not belong together, or a source would never come.
    """

    def __init__(self, sources: Sequence[RowSource], weights: Sequence[float] = ()) -> None:
        most = max((source.max_pieces for source in sources), default=0)
        self.sources = tuple(source.widened(most) for source in sources)  # rows of all go into one batch
        shares = np.array(weights or [len(source) for source in sources], np.float64)
        if len(shares) != len(self.sources) or not (np.isfinite(shares).all() and (shares > 0).all()):
            raise ConfigError(
                f"The weights {list(weights)} do not fit {len(self.sources)} corpora; give one positive weight for each."
            )
        cycle = _MIXTURE_ROWS
        while shares.min() / shares.sum() * cycle < _LEAST_PLACES and cycle < _MOST_MIXTURE_ROWS:
            cycle *= 2
        places = _largest_remainders(shares / shares.sum(), cycle)
        if not places.all():
            what = f"weights {list(weights)}" if weights else f"numbers of rows {[len(source) for source in sources]}"
            raise ConfigError(
                f"The {what} of the corpora are too far apart: one would never come in {cycle:,} rows; set data.weights."
            )
        # Spread evenly: the k-th of n rows of a source stands at (k + 1/2) / n.
        when = np.concatenate([(np.arange(count) + 0.5) / count for count in places])
        which = np.repeat(np.arange(len(places)), places)
        self._which = which[np.argsort(when, kind="stable")]
        self._rank = np.zeros(cycle, np.int64)
        for number in range(len(places)):
            self._rank[self._which == number] = np.arange(places[number])
        self.counts = [int(count) for count in places]

    @property
    def num_rows(self) -> int:
        """Rows after which every source has been seen once on average."""
        return sum(len(source) for source in self.sources)

    def place(self, number: int) -> tuple[int, int, int]:
        """Returns source, epoch and place in the order of the epoch of a row of the stream.

        Args:
          number: Its number.
        """
        block, offset = divmod(number, len(self._which))
        which = int(self._which[offset])
        index = block * self.counts[which] + int(self._rank[offset])
        return which, *divmod(index, len(self.sources[which]))


def _largest_remainders(shares: np.ndarray, total: int) -> Int[np.ndarray, "sources"]:
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    rest = total - int(counts.sum())
    counts[np.argsort(-(exact - counts), kind="stable")[:rest]] += 1
    return counts


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps with batches of one shape.

    Attributes:
      mixture: The rows.
      batch_size: Rows per global batch.
      num_steps: Its steps.
    """

    mixture: RowMixture
    batch_size: int
    num_steps: int


@dataclasses.dataclass(frozen=True)
class PretrainingBatches:
    """The training batches of one process by the number of the step.

    Attributes:
      phases: What the run consists of, in order. Those that share a mixture show its rows one after the other, as one long phase would.
      process_index: Number of this process.
      process_count: Number of processes.
      tokenizer: What tells the tokenizer from others; empty where nobody asks.
      shows_progress: Whether batches say how far the run is.
    """

    phases: Sequence[Phase]
    process_index: int = 0
    process_count: int = 1
    tokenizer: str = ""
    shows_progress: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a process that makes batches needs: the fields, not what was worked out from them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __len__(self) -> int:
        return sum(phase.num_steps for phase in self.phases)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first phase that show as many rows as there are."""
        return -(-self.phases[0].mixture.num_rows // self.phases[0].batch_size)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What order and content of the batches depend on; fit for JSON. How long the last phase is does not matter to the others."""
        found: dict[str, Any] = {"tokenizer": self.tokenizer} if self.tokenizer else {}
        for number, (first, phase) in enumerate(zip(self._firsts, self.phases, strict=True)):
            found |= {
                f"phases.{number}.first_step": first,
                f"phases.{number}.batch_size": phase.batch_size,
                f"phases.{number}.sources": [source.identity for source in phase.mixture.sources],
                f"phases.{number}.counts": phase.mixture.counts,
            }
            if self._first_rows[number]:
                found[f"phases.{number}.first_row"] = self._first_rows[number]
        return found

    @functools.cached_property
    def _firsts(self) -> list[int]:
        return [sum(phase.num_steps for phase in self.phases[:number]) for number in range(len(self.phases))]

    @functools.cached_property
    def _first_rows(self) -> list[int]:
        """Where each phase begins in its mixture: after the rows that earlier phases have shown of the same one."""
        return [
            sum(
                before.batch_size * before.num_steps
                for before in self.phases[:number]
                if before.mixture is phase.mixture
            )
            for number, phase in enumerate(self.phases)
        ]

    @functools.cached_property
    def _order(self) -> Any:
        @functools.lru_cache(maxsize=2 * max(len(phase.mixture.sources) for phase in self.phases))
        def order(number: int, which: int, epoch: int) -> Int[np.ndarray, "rows"]:
            return self.phases[number].mixture.sources[which].order(epoch)

        return order

    def __getitem__(self, index: int) -> Batch:
        """Returns this process's rows of the batch of step ``index``."""
        number = bisect.bisect_right(self._firsts, int(index)) - 1
        phase = self.phases[number]
        share = phase.batch_size // self.process_count
        first = (int(index) - self._firsts[number]) * phase.batch_size + self.process_index * share
        first += self._first_rows[number]
        rows = []
        for place_number in range(first, first + share):
            which, epoch, place = phase.mixture.place(place_number)
            source = phase.mixture.sources[which]
            rows.append(source.rows([int(self._order(number, which, epoch)[place])], epoch))
        return self.complete({name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, int(index))

    def complete(self, rows: Mapping[str, np.ndarray], index: int) -> Batch:
        """Returns the batch of some rows.

        Args:
          rows: Arrays by name.
          index: Number of the step.
        """
        batch = _complete(rows)
        if self.shows_progress:
            batch[PROGRESS] = np.full(len(batch["input_ids"]), min(1.0, index / max(1, len(self))), np.float32)
        return batch


def split_steps(num_steps: int, shares: Sequence[float]) -> list[int]:
    """Returns the steps of every phase, at least one each.

    Args:
      num_steps: Steps of the run.
      shares: Relative shares of the phases.

    Raises:
      ConfigError: There are fewer steps than phases.
    """
    if num_steps < len(shares):
        raise ConfigError(f"A run of {num_steps} steps can not have {len(shares)} phases; set train.num_steps higher.")
    counts = _largest_remainders(np.array(shares, np.float64) / sum(shares), num_steps)
    while not counts.all():
        counts[counts.argmin()] += 1
        counts[counts.argmax()] -= 1
    return counts.tolist()


@dataclasses.dataclass(frozen=True)
class EvaluationRows:
    """Held-out rows in batches of one shape; the last one is filled with rows without labels.

    Attributes:
      source: The rows.
      batch_size: Rows per global batch.
      max_rows: Most rows; 0 takes all.
      process_index: Number of this process.
      process_count: Number of processes.
    """

    source: RowSource
    batch_size: int
    max_rows: int = 0
    process_index: int = 0
    process_count: int = 1

    def __len__(self) -> int:
        return (self.num_rows + self.batch_size - 1) // self.batch_size

    @property
    def num_rows(self) -> int:
        """Rows that are scored."""
        return min(len(self.source), self.max_rows) if self.max_rows else len(self.source)

    @functools.cached_property
    def _order(self) -> Int[np.ndarray, "rows"]:
        """The rows that are scored: all, or as many drawn from all, since rows lie by the length of their pieces."""
        return self.source.sample(self.num_rows)

    def __iter__(self) -> Iterator[Batch]:
        share = self.batch_size // self.process_count
        for step in range(len(self)):
            first = step * self.batch_size + self.process_index * share
            numbers = np.arange(first, first + share)
            batch = _complete(self.source.rows(self._order[np.minimum(numbers, self.num_rows - 1)].tolist(), -1))
            filling = numbers >= self.num_rows
            for name in ("labels", "pair_labels"):
                if name in batch:
                    batch[name][filling] = IGNORED_LABEL
            batch["example_weight"][filling] = 0.0
            yield batch


def _complete(rows: Mapping[str, np.ndarray]) -> Batch:
    return {**rows, "example_weight": np.ones(len(rows["input_ids"]), np.float32)}
