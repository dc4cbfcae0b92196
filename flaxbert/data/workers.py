"""Batches made ahead by processes of their own, for devices that learn faster than one Python thread builds rows."""

import collections
import concurrent.futures
import concurrent.futures.process
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from flaxbert.errors import DataError

_BATCHES_PER_WORKER = 2
"""Batches that are begun for each process before the first of them is asked for."""

_held: list[Any] = []
"""In a worker: the source of its batches."""


class WorkerBatches(Iterator[dict[str, np.ndarray]]):
    """Iterates over the batches of a source in their order, while several processes make the next ones.

    The batches are those of ``source[step]``, bit for bit, whatever the number of processes. Each process holds a copy of the source.

    Args:
      source: Random access to batches by the number of the step; can be pickled.
      num_workers: Number of processes.
      first: Number of the first batch.

    Raises:
      DataError: A process was ended from outside, for example for lack of memory.
    """

    def __init__(self, source: Any, num_workers: int, first: int = 0) -> None:
        # Started anew rather than forked: a fork would copy the threads' locks of JAX.
        self._pool = concurrent.futures.ProcessPoolExecutor(
            num_workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(source,)
        )
        self._waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        self._depth = _BATCHES_PER_WORKER * num_workers
        self._next, self._end = first, len(source)

    def __iter__(self) -> "WorkerBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            while self._next < self._end and len(self._waiting) < self._depth:
                self._waiting.append(self._pool.submit(_make, self._next))
                self._next += 1
            if not self._waiting:
                raise StopIteration
            return self._waiting.popleft().result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise DataError(
                "A process that makes batches has ended, perhaps for lack of memory: each one holds the numbers of all pieces of the corpora. "
                "Lower data.num_workers."
            ) from error

    def close(self) -> None:
        """Ends the processes; batches that are not handed out yet are lost."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _start(source: Any) -> None:
    _held[:] = [source]
    # Who is asked to stop is the run, which saves its state first; its processes end with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _make(step: int) -> dict[str, np.ndarray]:
    return _held[0][step]
