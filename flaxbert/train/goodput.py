"""Where the time of a run goes: steps, and everything else that is time lost; over restarts too."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

STEP, COMPILE, EVALUATION, CHECKPOINT, DATA, PROFILE, START, RESTART = (
    "step",
    "compile",
    "evaluation",
    "checkpoint",
    "data",
    "profile",
    "start",
    "restart",
)
"""Kinds of time. ``start`` is what comes before the first step; ``restart`` all from the last checkpoint of an interrupted run to
the first step of the next one: work that was lost, the time in between, and the new start."""

KINDS: tuple[str, ...] = (STEP, COMPILE, EVALUATION, CHECKPOINT, DATA, PROFILE, START, RESTART)


class TimeLedger:
    """Splits the time of a run into kinds; every moment belongs to one of them.

    Steps run beside the host, so that time belongs to them unless the host does something that they wait for. Time for data counts
    only as far as the device had nothing to do.

    Args:
      clock: Returns seconds; only its differences matter.
      wall: Returns seconds since a fixed moment that all processes of a run share.

    Example:
      >>> ledger = TimeLedger(clock=iter([0.0, 1.0, 4.0, 5.0, 6.0]).__next__)
      >>> with ledger.measure("step"), ledger.measure("evaluation"):
      ...     pass
      >>> ledger.seconds()["evaluation"]
      1.0
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, wall: Callable[[], float] = time.time) -> None:
        self._clock, self._wall = clock, wall
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._stack = [START]
        self._since = clock()

    def _settle(self) -> None:
        now = self._clock()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Returns a context whose time counts as one kind; contexts inside it are taken off.

        Args:
          kind: One of ``KINDS``.
        """
        self._settle()
        self._stack.append(kind)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    def move(self, seconds: float, source: str, target: str) -> None:
        """Counts time as another kind after all.

        Args:
          seconds: How much of it.
          source: The kind that it was counted as.
          target: The kind that it is.
        """
        moved = min(max(seconds, 0.0), self._seconds[source])
        self._seconds[source] -= moved
        self._seconds[target] += moved

    def finish(self) -> None:
        """Counts what follows outside of ``measure`` as evaluation: the final scores."""
        self._settle()
        self._stack[0] = EVALUATION

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each kind since the run began."""
        self._settle()
        return dict(self._seconds)

    def goodput_rate(self) -> float:
        """Returns the share of the time that went into steps."""
        seconds = self.seconds()
        return seconds[STEP] / max(sum(seconds.values()), 1e-9)

    def get_state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, fit for JSON."""
        return {"seconds": self.seconds(), "wall_seconds": self._wall()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint: all time since it was saved is lost by the restart.

        Args:
          state: What ``get_state`` returned there.
        """
        self._settle()
        self._seconds = {**dict.fromkeys(KINDS, 0.0), **state["seconds"]}
        self._seconds[RESTART] += max(0.0, self._wall() - state["wall_seconds"])
