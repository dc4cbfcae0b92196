"""Notices that a run makes no more steps, writes where every thread stands, and ends the process so that it can be restarted."""

import collections
import contextlib
import faulthandler
import os
import pathlib
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

EXIT_HANG = 75
"""Exit code of a run that hung: EX_TEMPFAIL, try again."""

_REMEMBERED = 64
_LONGEST_PAUSE = 1.0
_STOPPED_FACTOR = 5.0


class HangWatchdog:
    """A thread that ends the process when no step was completed for too long.

    A step counts when its result is there, not when it was handed to the device: the thread asks the arrays, which waits for
    nothing. Time inside ``paused`` (compilation, evaluation, checkpoints) does not count as time without a step, but has a limit of its own.
    Time in which the whole process was stopped does not count at all. A thread can only look while the interpreter runs: code that never gives it free is not noticed.

    Args:
      folder: Where the stacks are written.
      factor: Times the median step that a step may take; 0 switches the watchdog off.
      least_seconds: Shortest limit.
      process: Number of this process, for the name of the file.
      clock: Returns seconds; only its differences matter.
      end: Ends the process with an exit code.
      pause_seconds: Longest that one ``paused`` may take; 0 lets it take any time.

    Example:
      >>> with HangWatchdog(pathlib.Path("runs/sst2"), factor=10.0, least_seconds=300.0) as watchdog:
      ...     watchdog.dispatched(1, loss)
    """

    def __init__(
        self,
        folder: pathlib.Path,
        factor: float,
        least_seconds: float,
        process: int = 0,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], Any] = os._exit,
        pause_seconds: float = 0.0,
    ) -> None:
        self._pause_seconds = pause_seconds
        self._folder, self._factor, self._least_seconds, self._process = folder, factor, least_seconds, process
        self._clock, self._end = clock, end
        self._lock = threading.Lock()
        self._pending: collections.deque[tuple[int, Any]] = collections.deque()
        self._durations: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)
        self._pauses = 0
        self._since = self._last_look = clock()
        self._step = 0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def limit_seconds(self) -> float:
        """Longest time without a completed step."""
        median = statistics.median(self._durations) if self._durations else 0.0
        return max(self._least_seconds, self._factor * median)

    @property
    def median_seconds(self) -> float:
        """Median time of a step so far; 0 before one was completed."""
        with self._lock:
            return statistics.median(self._durations) if self._durations else 0.0

    def dispatched(self, step: int, result: Any) -> None:
        """Notes that a step was handed to the device.

        Args:
          step: Its number.
          result: An array that is there when the step is done.
        """
        with self._lock:
            self._pending.append((step, result))
        if self._thread is None:
            self.look()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Returns a context whose time does not count as time without a step."""
        self.look()
        with self._lock:
            if not self._pauses:
                self._since = self._last_look = self._clock()
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                if not self._pauses:
                    self._since = self._last_look = self._clock()

    def look(self) -> bool:
        """Takes in which steps are done.

        Returns:
          Whether the run hangs.
        """
        with self._lock:
            now = self._clock()
            done = 0
            while self._pending and self._pending[0][1].is_ready():
                self._step = self._pending.popleft()[0]
                done += 1
            if now - self._last_look > _STOPPED_FACTOR * max(_LONGEST_PAUSE, self._pause()):
                self._since += now - self._last_look  # this thread did not run either: the process was stopped
            self._last_look = now
            if self._pauses:
                return 0 < self._pause_seconds < now - self._since
            if done:
                self._durations.extend([(now - self._since) / done] * done)
                self._since = now
                return False
            return now - self._since > self.limit_seconds

    def _pause(self) -> float:
        return min(_LONGEST_PAUSE, max(self._least_seconds / 10.0, 0.01))

    def _watch(self) -> None:
        while not self._closed.wait(self._pause()):
            if self.look():
                self._give_up()
                return

    def _give_up(self) -> None:
        waited = self._clock() - self._since
        path = self._folder / f"hang_process{self._process}_step{self._step}.txt"
        reason = (
            f"A compilation, evaluation or checkpoint after step {self._step} took {waited:.0f} s (limit {self._pause_seconds:.0f} s, "
            "train.hang_pause_seconds)"
            if self._pauses
            else f"No step was completed for {waited:.0f} s after step {self._step} (limit {self.limit_seconds:.0f} s, of "
            f"{self._factor:g} times the median step and train.hang_seconds)"
        )
        said = (
            f"{reason}. The stacks of all threads are in {path}; "
            f"the process ends with code {EXIT_HANG}, and the same command goes on from the newest checkpoint."
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                file.write(said + "\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            print(f"flaxbert: error: {said}", file=sys.stderr, flush=True)
        except OSError as error:
            print(f"flaxbert: error: {said} Writing them failed: {error}.", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(all_threads=True)
        finally:
            self._end(EXIT_HANG)

    def __enter__(self) -> "HangWatchdog":  # noqa: PYI034 - beartype can not check Self here
        self._since = self._last_look = self._clock()
        if self._factor > 0:
            self._thread = threading.Thread(target=self._watch, name="flaxbert-watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
