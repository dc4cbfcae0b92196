"""The thread that computes: takes batches from the queue of all models and brings the results back to their requests."""

import collections
import logging
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from flaxbert.serve.batching import Batch, Lane, Queue, Ticket
from flaxbert.serve.engines.base import Engine
from flaxbert.serve.rows import collate_rows
from flaxbert.serve.shapes import Costs

_LOG = logging.getLogger("flaxbert.serve")

Observer = Callable[[Batch, float], None]
"""Is told of every batch and of the seconds that it took."""


class EngineError(RuntimeError):
    """A row could not be computed, while others of its batch could."""


class Executor:
    """One thread for all models of a device.

    Args:
      observe: Is told of batches.
    """

    def __init__(self, observe: Observer = lambda batch, seconds: None) -> None:
        self._queue = Queue()
        self._condition = threading.Condition()
        self._observe = observe
        self._stopping = False
        self._last_finish = 0.0
        self._thread = threading.Thread(target=self._loop, name="flaxbert-executor", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after what is being computed; what waits fails."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Rows that wait."""
        return self._queue.num_rows

    def waiting_seconds(self) -> float:
        """Returns how long what waits now will take."""
        with self._condition:
            return sum(lane.costs.seconds((1, lane.num_tokens)) for lane in self._queue.lanes if lane.num_rows)

    def add(self, name: Hashable, engine: Engine, patience: float) -> None:
        """Takes a model.

        Args:
          name: Its name; its functions are the lanes ``(name, function)``.
          engine: What runs it.
          patience: As for ``Lane``.
        """
        with self._condition:
            for function in engine.functions:
                lane = Lane((engine, function), engine.plan, Costs(), patience)
                self._queue.add_lane((name, function), lane)

    def remove(self, name: Hashable, engine: Engine) -> None:
        """Forgets a model that no request uses any more.

        Args:
          name: Its name.
          engine: What ran it.
        """
        with self._condition:
            for function in engine.functions:
                self._queue.remove_lane((name, function))

    def submit(self, name: Hashable, function: str, ticket: Ticket) -> None:
        """Takes a request; its ``finished`` is called from another thread.

        Args:
          name: The model.
          function: The function.
          ticket: The request.
        """
        now = time.monotonic()
        ticket.arrived = now
        with self._condition:
            if self._stopping:
                ticket.fail(EngineError("The server ends."))
                return
            self._queue.add((name, function), ticket, now)
            self._condition.notify()

    def _loop(self) -> None:
        started: collections.deque[tuple[Batch, Any, float]] = collections.deque()
        while True:
            with self._condition:
                while not self._stopping and not started and self._queue.num_rows == 0:
                    self._condition.wait()
                batch = None if self._stopping else self._queue.take(time.monotonic())
                if self._stopping and not started:
                    break
            if batch is not None:
                begun = time.monotonic()
                for ticket, _ in batch.members:
                    ticket.started = ticket.started or begun
                started.append((batch, self._start(batch), begun))
            if started and (batch is None or len(started) > int(started[0][0].lane.key[0].pipelined)):
                self._finish(*started.popleft())
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        while (batch := self._queue.take(time.monotonic())) is not None:
            for ticket, _ in batch.members:
                ticket.fail(EngineError("The server ends."))

    @staticmethod
    def _start(batch: Batch) -> Any:
        """Returns the started batch, or the error that it met."""
        engine, name = batch.lane.key
        function = engine.functions[name]
        try:
            rows = batch.rows
            num_rows, length = batch.num_rows, batch.length
            if not engine.exact_shapes:
                num_rows, length = len(rows), max(row.length for row in rows)
            inputs = collate_rows(rows, num_rows, length, function.inputs, engine.pad_token_id)
            return engine.start(name, inputs)
        except Exception as error:  # noqa: BLE001  whatever an engine raises belongs to the rows, not to the thread
            return error

    def _finish(self, batch: Batch, started: Any, begun: float) -> None:
        engine, name = batch.lane.key
        if isinstance(started, Exception):
            self._isolate(batch, started)
            return
        try:
            values = engine.finish(started)
        except Exception as error:  # noqa: BLE001  see _start
            self._isolate(batch, error)
            return
        now = time.monotonic()
        seconds = now - max(begun, self._last_finish)
        self._last_finish = now
        batch.lane.costs.observe((batch.num_rows, batch.length), seconds)
        self._observe(batch, seconds)
        for ticket in dict.fromkeys(
            ticket for ticket, _ in batch.members
        ):  # once, however many of its rows are in the batch
            ticket.inference_seconds += seconds
        finite = bool(np.isfinite(values).all())
        for place, (ticket, index) in enumerate(batch.members):
            value = values[place, : ticket.rows[index].length] if engine.functions[name].keep_length else values[place]
            if finite or np.isfinite(value).all():
                ticket.put(index, value)
            else:
                ticket.fail(EngineError("The model's answer is not finite."))

    def _isolate(self, batch: Batch, error: Exception) -> None:
        """Computes the rows of a failed batch in halves, so that only those fail that can not be computed."""
        if len(batch.members) == 1:
            _LOG.error("a row could not be computed: %s: %s", type(error).__name__, error)
            batch.members[0][0].fail(EngineError("The model could not compute this input."))
            return
        middle = len(batch.members) // 2
        for members in (batch.members[:middle], batch.members[middle:]):
            counts = batch.lane.plan.row_counts(batch.length)
            fitting = next(count for count in counts if count >= len(members))
            half = Batch(batch.lane, members, fitting, batch.length)
            self._finish(half, self._start(half), time.monotonic())
