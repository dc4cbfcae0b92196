"""From a request to its answer: tokens off the event loop, a place in the queue, the computation, a deadline."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from flaxbert.config import BatchingConfig, DriftConfig, LimitsConfig
from flaxbert.serve.batching import Ticket
from flaxbert.serve.drift_board import DriftBoard
from flaxbert.serve.drift_windows import Sketch
from flaxbert.serve.errors import RequestError
from flaxbert.serve.executor import Executor
from flaxbert.serve.loading import Served
from flaxbert.serve.metrics import Metrics
from flaxbert.serve.operations.work import Subject, Work
from flaxbert.serve.places import Places

T = TypeVar("T")

SMALL_TOKENS = 2048
"""Answers of fewer tokens are finished on the event loop: handing them to a thread would take longer."""


@dataclasses.dataclass(eq=False)
class Timing:
    """What happened to a request, for its headers, log line and metrics; seconds.

    Attributes:
      started: When it was taken, on the monotonic clock.
      tokenization: Making tokens.
      queue: Waiting.
      inference: The batches that it was part of.
      num_tokens: Its tokens.
      num_characters: Its characters.
      num_inputs: Its rows.
      model: Name of the model.
      version: Its version.
      phases: Name, begin and end of its parts, on the monotonic clock.
    """

    started: float = dataclasses.field(default_factory=time.monotonic)
    tokenization: float = 0.0
    queue: float = 0.0
    inference: float = 0.0
    num_tokens: int = 0
    num_characters: int = 0
    num_inputs: int = 0
    model: str = ""
    version: str = ""
    phases: list[tuple[str, float, float]] = dataclasses.field(default_factory=list)

    def add(self, part: "Timing") -> None:
        """Takes what happened to a part of the request into its own sums.

        Args:
          part: A line of it.
        """
        self.model, self.version = part.model, part.version
        for name in ("tokenization", "queue", "inference", "num_tokens", "num_characters", "num_inputs"):
            setattr(self, name, getattr(self, name) + getattr(part, name))


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One request, whichever way it came.

    Attributes:
      request_id: Its id.
      model: The model that its address names, or empty.
      deadline: Time on the monotonic clock after which its client does not wait.
      timing: Is filled.
      in_turn: Whether it waits for a place instead of being refused where there is none.
    """

    request_id: str
    model: str = ""
    deadline: float = math.inf
    timing: Timing = dataclasses.field(default_factory=Timing)
    in_turn: bool = False


class Service:
    """Answers requests by the models of one device.

    Args:
      limits: What is admitted.
      batching: Threads that tokenize.
      metrics: What is counted.
      drift: How inputs and answers are watched.
    """

    def __init__(
        self, limits: LimitsConfig, batching: BatchingConfig, metrics: Metrics, drift: DriftConfig = DriftConfig()
    ) -> None:
        self.limits = limits
        self.metrics = metrics
        self.drift = DriftBoard(drift)
        metrics.registry.register(self.drift)
        metrics.queue_limit.set(limits.max_concurrent_requests)
        self.executor = Executor(metrics.observe_batch)
        self.patience = batching.patience_seconds
        self._workers = concurrent.futures.ThreadPoolExecutor(
            max(2, batching.tokenization_workers), thread_name_prefix="flaxbert-tokenizer"
        )
        self.places = Places(limits.max_concurrent_requests, metrics.queue_size.set)

    @property
    def num_requests(self) -> int:
        """Requests that wait or are computed."""
        return self.places.num_taken

    def start(self) -> None:
        """Starts the threads."""
        self.executor.start()

    def stop(self) -> None:
        """Ends the threads."""
        self.executor.stop()
        self._workers.shutdown(cancel_futures=True)

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs a function off the event loop.

        Args:
          function: The function.
          *arguments: Its arguments.

        Returns:
          What it returns.
        """
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)

    def seconds_until(self, deadline: float) -> float:
        """Returns how long a request may still take: as long as the server lets it, or less where its client does not wait that long.

        Args:
          deadline: When its client stops waiting, on the monotonic clock.
        """
        return max(0.0, min(self.limits.deadline_seconds, deadline - time.monotonic()))

    async def run(
        self,
        served: Served,
        operation: Callable[[Subject], Work],
        timing: Timing,
        deadline: float = math.inf,
        *,
        in_turn: bool = False,
    ) -> Any:
        """Returns the answer of an operation.

        Args:
          served: The model.
          operation: Makes work of it; called off the event loop.
          timing: Is filled.
          deadline: When the client stops waiting, on the monotonic clock.
          in_turn: Whether it waits for a place instead of being refused where there is none.

        Raises:
          RequestError: The request can not be answered, or not in time.
        """
        timing.model, timing.version = served.name, served.version
        seconds = self.seconds_until(deadline)
        served.num_requests += 1
        try:
            if in_turn:
                await self.places.wait()
                seconds = self.seconds_until(deadline)
            with self.admitted():
                async with asyncio.timeout(seconds):
                    return await self._run(served, operation, timing, time.monotonic() + seconds)
        except TimeoutError:
            raise RequestError("deadline", f"The answer took more than {round(seconds, 3):g} seconds.", 1.0) from None
        finally:
            served.num_requests -= 1

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a request while the block runs.

        Yields:
          Nothing.

        Raises:
          RequestError: There are as many as the server takes.
        """
        if self.places.full:
            seconds = max(1.0, self.executor.waiting_seconds())
            raise RequestError("overloaded", "The server has as many requests as it takes; try again later.", seconds)
        with self.places.taken():
            yield

    async def _run(self, served: Served, operation: Callable[[Subject], Work], timing: Timing, deadline: float) -> Any:
        begun = time.monotonic()
        work, sketch = await self.in_thread(self._prepare, served, operation, self.drift.takes(served))
        prepared = time.monotonic()
        timing.tokenization += prepared - begun
        timing.phases.append(("tokenization", begun, prepared))
        timing.num_tokens += work.num_tokens
        timing.num_characters += work.num_characters
        timing.num_inputs += len(work.rows)
        if not work.rows:
            return work.finish([])
        ticket = await self._compute(served, work, deadline)
        timing.queue += ticket.started - ticket.arrived
        timing.inference += ticket.inference_seconds
        if ticket.started:
            timing.phases.append(("queue", ticket.arrived, ticket.started))
            timing.phases.append(("inference", ticket.started, time.monotonic()))
        if ticket.error is not None:
            raise RequestError("backend", str(ticket.error))
        if work.num_tokens <= SMALL_TOKENS:
            answer = work.finish(ticket.results)  # type: ignore[arg-type]
        else:
            answer = await self.in_thread(work.finish, ticket.results)
        self.drift.observe(served, sketch, work, answer)
        return answer

    def _prepare(
        self, served: Served, operation: Callable[[Subject], Work], observed: bool
    ) -> tuple[Work, Sketch | None]:
        work = operation(served.subject)
        return work, self.drift.sketch(served, work) if observed else None

    async def _compute(self, served: Served, work: Work, deadline: float) -> Ticket:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not done.done():
                done.set_result(None)

        def finished(_: Ticket) -> None:
            loop.call_soon_threadsafe(settle)

        ticket = Ticket(work.rows, deadline, finished)
        self.executor.submit(served.key, work.function, ticket)
        try:
            await done
        except asyncio.CancelledError:  # the deadline, or the client went away
            ticket.cancelled = True
            raise
        return ticket

    def shadow(self, served: Served, operation: Callable[[Subject], Work], answer: Any) -> "asyncio.Task[None]":
        """Computes a request again by another version, compares the answers and tells the metrics; nobody waits for it.

        Args:
          served: The other version.
          operation: As for ``run``.
          answer: What the client got.

        Returns:
          The task, which ends by itself.
        """
        return asyncio.get_running_loop().create_task(self._shadow(served, operation, answer))

    async def _shadow(self, served: Served, operation: Callable[[Subject], Work], answer: Any) -> None:
        try:
            other = await self.run(served, operation, Timing())
        except RequestError:
            self.metrics.shadow.labels(served.name, served.version, "failed").inc()
            return
        same = await self.in_thread(functools.partial(agree, answer, other))
        self.metrics.shadow.labels(served.name, served.version, "agreed" if same else "differed").inc()


SAME_SCORE, SAME_COSINE = 0.05, 0.99
"""How far scores of agreeing versions may be apart, and the least cosine of their vectors."""


def agree(first: Any, second: Any) -> bool:
    """Returns whether two versions gave the same labels, spans and order with similar scores, or vectors of nearly the same direction.

    Args:
      first: An answer.
      second: That of the other version.
    """
    if isinstance(first, np.ndarray):
        return isinstance(second, np.ndarray) and first.shape == second.shape and _near(first, second)
    if isinstance(first, float):
        return isinstance(second, float) and abs(first - second) <= SAME_SCORE
    if isinstance(first, dict):
        return (
            isinstance(second, dict)
            and first.keys() == second.keys()
            and all(agree(first[k], second[k]) for k in first)
        )
    if isinstance(first, list):
        return isinstance(second, list) and len(first) == len(second) and all(map(agree, first, second))
    return bool(first == second)


def _near(first: np.ndarray, second: np.ndarray) -> bool:
    products = (first * second).sum(axis=-1)
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return bool((products >= SAME_COSINE * lengths).all())
