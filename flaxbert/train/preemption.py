"""Notices that the process is asked to end, so that a run can save first."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class PreemptionGuard:
    """Turns the first SIGTERM or SIGINT into a flag; a second signal ends the process as it would have without the guard.

    Outside the main thread signals can not be caught; there the guard never asks to stop.

    Args:
      check_every: Steps between questions to the other processes of a run; one process alone needs none.

    Example:
      >>> with PreemptionGuard() as guard:
      ...     while not guard.should_stop(step):
      ...         step += 1
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, check_every: int = 8) -> None:
        self._check_every = check_every
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
          Whether any process was asked to end. With several processes it is true only at multiples of ``check_every``,
          since the answer waits for all of them.
        """
        import jax

        if jax.process_count() == 1:
            return self.requested
        if step % self._check_every:
            return False
        import numpy as np
        from jax.experimental import multihost_utils

        # A signal reaches the processes at different steps, but a checkpoint needs all of them at one.
        answers = multihost_utils.process_allgather(np.asarray(self.requested))
        return bool(np.asarray(answers).any())

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
