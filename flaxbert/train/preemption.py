"""Notices that the process is asked to end, so that a run can save first."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_MOST_STEPS = 256
"""Most steps between two questions."""


class PreemptionGuard:
    """Turns the first SIGTERM or SIGINT into a flag; a second signal ends the process as it would have without the guard.

    Outside the main thread signals can not be caught; there the guard never asks to stop.

    Several processes ask each other, since a signal reaches them at different steps (or only one of them), but a checkpoint needs
    all of them at one. Each question waits for the devices, so it is put every few seconds; in the same exchange the processes
    agree on the step of the next one, from the time that steps take.

    Args:
      check_every: Steps before the first question to the other processes; one process alone needs none.
      check_seconds: Time between further questions, which is also how long a signal may go unnoticed.
      clock: Returns seconds; only its differences matter.

    Example:
      >>> with PreemptionGuard() as guard:
      ...     while not guard.should_stop(step):
      ...         step += 1
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(
        self, check_every: int = 8, check_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._check_every, self._check_seconds, self._clock = check_every, check_seconds, clock
        self._asked: tuple[int, float] | None = None
        self._next = -1
        self.signal_name = ""
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether this process was asked to end."""
        return bool(self.signal_name)

    def should_stop(self, step: int) -> bool:
        """Returns whether the run ends after this step; the same answer on all processes.

        Args:
          step: Optimizer steps taken; every process asks at the same steps, from its main thread.

        Returns:
          Whether any process was asked to end. With several processes it is true only at the steps at which they ask.
        """
        import jax

        if jax.process_count() == 1:
            return self.requested
        if self._asked is None:
            self._asked = (step, self._clock())
            self._next = -(-max(step, 1) // self._check_every) * self._check_every
        if step < self._next:
            return False
        import numpy as np
        from jax.experimental import multihost_utils

        answers = np.asarray(
            multihost_utils.process_allgather(np.asarray([int(self.requested), self._steps_until_next(step)], np.int32))
        )
        self._asked = (step, self._clock())
        self._next = step + int(answers[..., 1].min())
        return bool(answers[..., 0].any())

    def _steps_until_next(self, step: int) -> int:
        """Returns how many steps this process would let pass before the next question."""
        if self._asked is None or step <= self._asked[0]:
            return self._check_every
        seconds_per_step = (self._clock() - self._asked[1]) / (step - self._asked[0])
        return max(1, min(_MOST_STEPS, int(self._check_seconds / max(seconds_per_step, 1e-9))))

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self.requested:
            self.signal_name = signal.Signals(number).name
            return
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __enter__(self) -> "PreemptionGuard":  # noqa: PYI034 - beartype can not check Self here
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()
