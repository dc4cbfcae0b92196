"""A window of steps that is traced for xprof."""

import logging
import pathlib
from types import TracebackType
from typing import Any

import jax

from flaxbert.errors import ConfigError, TrainingError

LOGGER = logging.getLogger(__name__)

PROFILE_FOLDER = "profile"
"""Folder of traces inside the folder of a run; ``xprof`` and TensorBoard's profile page read it."""


def trace_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the trace files that are not empty, oldest first.

    Args:
      folder: Folder that was traced into.
    """
    found = folder.glob("plugins/profile/*/*.xplane.pb")
    return sorted((path for path in found if path.stat().st_size), key=lambda path: path.stat().st_mtime)


class ProfileWindow:
    """Traces host and devices from the start of one step to the end of another.

    Args:
      folder: Folder of the run.
      steps: First and last step, counted from 1; None traces nothing. Processes other than the first trace nothing either.
      total_steps: Steps of the whole run.
      steps_taken: Steps already taken; a window that they reach into is left out, which is logged.

    Raises:
      ConfigError: The run ends before the window.
    """

    def __init__(
        self, folder: pathlib.Path, steps: tuple[int, int] | None, total_steps: int, steps_taken: int = 0
    ) -> None:
        self.folder = folder / PROFILE_FOLDER
        self._steps = steps
        self._running = False
        if steps is not None and steps[1] > total_steps:
            raise ConfigError(
                f"train.profile is {steps[0]}:{steps[1]}, but the run has {total_steps} steps; choose steps among them."
            )
        if steps is not None and steps[0] <= steps_taken:
            LOGGER.warning("Steps %d to %d are not traced: the run goes on after step %d.", *steps, steps_taken)
            self._steps = None
        if jax.process_index() > 0:
            self._steps = None

    def starts_at(self, step: int) -> bool:
        """Returns whether a step is the first one of the window.

        Args:
          step: Number of the step, from 1.
        """
        return self._steps is not None and step == self._steps[0]

    def ends_at(self, step: int) -> bool:
        """Returns whether a step is the last one of a window that is being traced.

        Args:
          step: Number of the step, from 1.
        """
        return self._running and self._steps is not None and step >= self._steps[1]

    def start(self) -> None:
        """Starts to trace."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every Python call would make the file huge and the host slow
        self.folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(self.folder, profiler_options=options)
        self._running = True

    def stop(self, result: Any = None) -> pathlib.Path:
        """Waits for the last step and writes the trace.

        Args:
          result: What the last step returned.

        Returns:
          The file.

        Raises:
          TrainingError: No trace was written.
        """
        before = set(trace_files(self.folder))
        jax.block_until_ready(result)
        self._running = False
        jax.profiler.stop_trace()
        new = [path for path in trace_files(self.folder) if path not in before]
        if not new:
            raise TrainingError(
                f"The profiler wrote no trace into {self.folder}; see its messages, or start the run without train.profile."
            )
        return new[-1]

    def __enter__(self) -> "ProfileWindow":  # noqa: PYI034 - beartype can not check Self here
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._running:  # the run ended inside the window
            self._running = False
            jax.profiler.stop_trace()
