"""Keeps one failed save from being told two hundred times.

When a write fails, orbax logs the same exception with its traceback from each of its threads, and every other write under way
finds orbax's event loop closed and prints a traceback of its own. The store raises that exception, with its cause, itself.
"""

import gc
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

_LOGGER_NAMES = ("absl", "asyncio")
_ABANDONED_TASK = "orbax"
"""What asyncio's complaints about tasks that nobody awaits any more have in common: the path of their code."""

_ECHOES = ("_SignalingThread.run() raised an exception", "Handler Commit operations or the Commit callback")
_CLOSED_LOOP = "Event loop is closed"


class OrbaxSilence(logging.Filter):
    """Drops orbax's repetitions of an exception that the store raises; everything else is passed on.

    Works from ``install`` to ``remove``, or to the end of the process where a save failed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._previous_hook: Callable[[Any], Any] = sys.unraisablehook
        self._hook: Callable[[Any], Any] = self._pass_on

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a log record is no repetition."""
        if record.levelno < logging.ERROR:
            return True
        if record.name == "asyncio":
            return _ABANDONED_TASK not in record.getMessage()
        return not any(echo in str(record.msg) for echo in _ECHOES)

    def _pass_on(self, unraisable: Any) -> None:
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == _CLOSED_LOOP):
            self._previous_hook(unraisable)

    def install(self) -> None:
        """Starts to drop repetitions."""
        for name in _LOGGER_NAMES:
            logging.getLogger(name).addFilter(self)
        self._previous_hook = sys.unraisablehook
        sys.unraisablehook = self._hook

    def remove(self) -> None:
        """Stops to drop them; where another hook was put over this one since, this one stays and passes on."""
        for name in _LOGGER_NAMES:
            logging.getLogger(name).removeFilter(self)
        if sys.unraisablehook is self._hook:
            sys.unraisablehook = self._previous_hook


def drop_abandoned_writes(error: BaseException | None) -> None:
    """Frees the writes that a failed save left under way; at the end of the process they could only fail noisily.

    Args:
      error: The failure; it, its causes and their tracebacks stay, the local variables of their frames go.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
