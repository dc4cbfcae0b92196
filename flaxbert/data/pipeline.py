"""Batches by the number of the step, read ahead, with a position that is saved and restored."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flaxbert.data.workers import WorkerBatches
from flaxbert.errors import DataError

PREFETCHED_BATCHES = 4

Batch = dict[str, np.ndarray]

_YOUNG = frozenset({"tokenizer"})
"""Parts of an identity that older versions did not save."""


class StepPipeline(Iterator[Batch]):
    """Iterates over the batches of a source. Going on at a position reads nothing of what went before.

    Args:
      source: Random access to the batches of one process by the number of the step (``len`` and ``source[step]``), with
        ``steps_per_epoch`` and with ``identity``, which says what order and content depend on and is fit for JSON.
      prefetch: Batches that a thread prepares ahead.
      num_workers: Processes that make batches ahead; 0 leaves it to the thread.
    """

    def __init__(self, source: Any, prefetch: int = PREFETCHED_BATCHES, num_workers: int = 0) -> None:
        self._source, self._prefetch, self._num_workers = source, prefetch, num_workers
        self._step = 0
        self._iterator: Any = None

    def _start(self) -> Any:
        if self._num_workers:
            return WorkerBatches(self._source, self._num_workers, self._step)
        import grain

        options = grain.ReadOptions(num_threads=1 if self._prefetch else 0, prefetch_buffer_size=self._prefetch)
        return iter(grain.MapDataset.source(self._source)[self._step :].to_iter_dataset(options))

    def __iter__(self) -> "StepPipeline":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._step += 1
        return batch

    @property
    def source(self) -> Any:
        """Random access to the batches by the number of the step."""
        return self._source

    @property
    def steps_per_epoch(self) -> int:
        """Steps that show every example once."""
        return self._source.steps_per_epoch

    @property
    def step(self) -> int:
        """Number of batches handed out so far, over all epochs."""
        return self._step

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next batch belongs to, from 0."""
        return self.step // self.steps_per_epoch

    def get_state(self) -> dict[str, Any]:
        """Returns the position: the number of the next step, and what the order depends on; fit for JSON."""
        return {"step": self.step, **self._source.identity}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raises what ``set_state`` would raise, without going anywhere.

        Args:
          state: What ``get_state`` returned.

        Raises:
          DataError: The position belongs to other examples, another seed or another batch size.
        """
        identity = {name: value for name, value in self._source.identity.items() if name in state or name not in _YOUNG}
        now, saved = _flatten(identity), _flatten({name: state[name] for name in identity if name in state})
        differing = [
            f"{name} was {saved.get(name)!r} and is {now.get(name)!r}"
            for name in dict.fromkeys([*now, *saved])
            if saved.get(name) != now.get(name)
        ]
        step = state.get("step")
        if differing or not isinstance(step, int) or not 0 <= step <= len(self._source):
            reason = "; ".join(differing) or f"step is {step!r} of {len(self._source)}"
            raise DataError(
                f"The saved data position does not belong to this run's batches: {reason}. Resume with the data, seed and "
                "batch size of the saved run, or start a new run in another output folder."
            )

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues at a position, also one that was saved with another number of processes.

        Args:
          state: What ``get_state`` returned.

        Raises:
          DataError: The position belongs to other examples, another seed or another batch size.
        """
        self.check_state(state)
        self.close()
        self._step = state["step"]

    def close(self) -> None:
        """Stops reading ahead; what was read ahead is read again where the pipeline goes on."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings and lists by dotted names."""
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
        entries = enumerate(value)
    else:
        return {prefix: list(value) if isinstance(value, tuple) else value}
    return {
        name: leaf
        for key, entry in entries
        for name, leaf in _flatten(entry, f"{prefix}.{key}" if prefix else str(key)).items()
    }
