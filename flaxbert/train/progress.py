"""The line of progress: a live line with a bar on a terminal, plain lines everywhere else."""

import atexit
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any, Literal, cast

from flaxbert.core.units import format_bytes, format_count, format_duration
from flaxbert.evaluation.report import LOWER_IS_BETTER, TextStream, format_metric
from flaxbert.train.callbacks import CallbackBase, RunInfo

SMOOTHING = 0.9
"""Weight of the earlier loss in the smoothed one, per line of metrics."""

LEAST_SECONDS = 10.0
"""Shortest time between two plain lines of training metrics."""

MOST_METRICS = 4
"""Metrics of an evaluation that stand in its line."""


class SmoothedLoss:
    """Exponential mean of the loss, corrected for its start at zero."""

    def __init__(self, smoothing: float = SMOOTHING) -> None:
        self._smoothing = smoothing
        self._sum, self._weight = 0.0, 0.0

    def add(self, loss: float) -> float:
        """Takes in a loss.

        Args:
          loss: Mean loss of some steps.

        Returns:
          The mean so far; a loss that is not finite is returned as it is and not kept.
        """
        if not math.isfinite(loss):
            return loss
        self._sum = self._smoothing * self._sum + (1.0 - self._smoothing) * loss
        self._weight = self._smoothing * self._weight + (1.0 - self._smoothing)
        return self._sum / self._weight


class EtaClock:
    """Estimates the time that is left from the pace since the first line, which holds the compilation.

    Evaluations and checkpoints in between count, so that the estimate holds for the whole rest.

    Args:
      clock: Returns seconds; only its differences matter.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start: tuple[float, int] | None = None
        self._first: tuple[float, int] | None = None

    def start(self, step: int) -> None:
        """Sets the point that the first estimate is made from.

        Args:
          step: Steps already taken.
        """
        self._start, self._first = (self._clock(), step), None

    def seconds_left(self, step: int, total_steps: int) -> float:
        """Returns the estimate in seconds; infinite before any step is done.

        Args:
          step: Steps taken.
          total_steps: Steps of the whole run.
        """
        now = self._clock()
        reference = self._first or self._start
        if self._first is None:
            self._first = (now, step)
        if reference is None or step <= reference[1]:
            return 0.0 if step >= total_steps else math.inf
        return max(0, total_steps - step) * (now - reference[0]) / (step - reference[1])


def describe_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Returns the parts of a line of training metrics, without step and time left.

    Args:
      metrics: Of one line; what is absent is left out.
    """
    shown: tuple[tuple[str, Callable[[float], str]], ...] = (
        ("smoothed_loss", lambda value: f"loss {value:.4f}"),
        ("learning_rate", lambda value: f"lr {value:.2e}"),
        ("tokens_per_second", lambda value: f"{format_count(value)} tokens/s"),
        ("examples_per_second", lambda value: f"{format_count(value)} examples/s"),
        ("model_flops_utilization", lambda value: f"MFU {value:.1%}"),
        ("memory_bytes", format_bytes),
        ("packing_efficiency", lambda value: f"packed {value:.1%}"),
        ("padding_rate", lambda value: f"padding {value:.0%}"),
        ("goodput_rate", lambda value: f"goodput {value:.0%}"),
    )
    if "packing_efficiency" in metrics:
        shown = tuple(entry for entry in shown if entry[0] != "padding_rate")
    return [describe(float(metrics[name])) for name, describe in shown if metrics.get(name) is not None]


def describe_skipped(metrics: Mapping[str, Any]) -> list[str]:
    """Returns a line for every update that was left out.

    Args:
      metrics: Of one line of training metrics.
    """
    usual = ""
    if "median_loss" in metrics:
        usual = f"; usual are {metrics['median_loss']:.4g} and {metrics['median_grad_norm']:.4g}"
    return [
        f"step {entry['step']}: update left out ({str(entry['reason']).replace('_', ' ')}): loss {entry['loss']:.4g}, "
        f"gradient norm {entry['grad_norm']:.4g}{usual}; {metrics.get('num_skipped', 1)} left out so far"
        for entry in metrics.get("skipped", ())
    ]


def describe_time(seconds_by_kind: Mapping[str, float]) -> str:
    """Returns where the time of a run went, largest share first; what is below half a per cent is left out.

    Args:
      seconds_by_kind: Seconds of each kind.
    """
    total = max(sum(seconds_by_kind.values()), 1e-9)
    shares = sorted(((seconds / total, kind) for kind, seconds in seconds_by_kind.items()), reverse=True)
    return ", ".join(f"{kind} {share:.0%}" for share, kind in shares if share >= 0.005)


class ProgressReporter(CallbackBase):
    """Shows where the run stands: step, percent, loss, learning rate, speed, MFU, memory, padding, time left.

    Args:
      mode: auto shows a live line on a terminal and plain lines elsewhere; plain and off choose.
      metric: Metric that stands first in the line of an evaluation.
      stream: Where to; None takes standard error.
      least_seconds: Shortest time between two plain lines of training metrics; the first and the last always show.
      clock: Returns seconds; only its differences matter.
    """

    def __init__(
        self,
        mode: Literal["auto", "plain", "off"] = "auto",
        metric: str = "",
        stream: TextStream | None = None,
        least_seconds: float = LEAST_SECONDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._mode = ("live" if terminal else "plain") if mode == "auto" else mode
        self._metric = metric
        self._least_seconds = least_seconds
        self._clock = clock
        self._eta = EtaClock(clock)
        self._loss = SmoothedLoss()
        self._last_line = -math.inf
        self._total_steps = 0
        self._best: float | None = None
        self._resumed = False
        self._live: Any = None
        self._task: Any = None

    def on_start(self, run: RunInfo) -> None:
        """Starts the clock and, on a terminal, the live line.

        Args:
          run: What is known about the run.
        """
        self._total_steps, self._resumed = run.total_steps, run.resumed
        self._eta.start(run.first_step)
        if self._mode == "live":
            self._start_live(run)

    def _start_live(self, run: RunInfo) -> None:
        import rich.console
        import rich.progress
        import rich.table

        column = rich.table.Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self._live = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed}/{task.total}", markup=False),
            rich.progress.BarColumn(bar_width=16),
            rich.progress.TextColumn("{task.percentage:.1f}%", markup=False),
            rich.progress.TextColumn("{task.fields[status]}", markup=False, table_column=column),
            console=rich.console.Console(file=cast("IO[str]", self._stream)),
            expand=True,
            refresh_per_second=4,
        )
        self._task = self._live.add_task("", total=run.total_steps, completed=run.first_step, status="compiling…")
        self._live.start()
        atexit.register(self.close)

    def _print(self, line: str) -> None:
        if self._mode == "live" and self._live is not None:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif self._mode != "off":
            print(line, file=self._stream, flush=True)

    def on_log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Moves the live line, or prints a plain one if enough time has passed.

        Args:
          step: Last step that the metrics cover.
          metrics: Numbers by name.
        """
        if self._mode == "off":
            return
        for line in describe_skipped(metrics):
            self._print(line)
        left = self._eta.seconds_left(step, self._total_steps)
        shown = dict(metrics)
        if metrics.get("loss") is not None:
            shown["smoothed_loss"] = self._loss.add(float(metrics["loss"]))
        parts = describe_metrics(shown)
        if self._live is not None:
            eta = f"ETA {format_duration(left)}"
            self._live.update(self._task, completed=step, status=" · ".join([eta, *parts]))
            return
        now = self._clock()
        if now - self._last_line < self._least_seconds and step < self._total_steps:
            return
        self._last_line = now
        percent = 100.0 * step / max(self._total_steps, 1)
        head = f"step {step}/{self._total_steps} ({percent:.1f}%)"
        self._print(" | ".join([head, *parts, f"ETA {format_duration(left)}"]))

    def on_evaluation(self, step: int, metrics: Mapping[str, float], split: str = "validation") -> None:
        """Prints the first few metrics.

        Args:
          step: Steps taken before the evaluation.
          metrics: Numbers by name.
          split: Which examples.
        """
        names = sorted(metrics, key=lambda name: name != self._metric)[:MOST_METRICS]
        shown = {name: f"{name} {format_metric(metrics[name])}" for name in names}
        if split == "validation" and step and self._metric in metrics and self._is_best(metrics[self._metric]):
            shown[self._metric] += " (best so far)"
        self._print(f"step {step}: {split} {', '.join(shown.values())}")

    def _is_best(self, value: float) -> bool:
        sign = -1.0 if self._metric in LOWER_IS_BETTER else 1.0
        if self._best is not None and sign * value <= sign * self._best:
            return False
        self._best = value
        return not self._resumed

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Ends the live line and says how the run ended.

        Args:
          summary: As for ``Callback.on_end``.
        """
        self.close()
        reason = str(summary.get("reason", "finished")).replace("_", " ")
        taken = f" in {format_duration(float(summary['seconds']))}" if "seconds" in summary else ""
        self._print(f"{reason[:1].upper()}{reason[1:]} after {summary.get('step', '?')} steps{taken}.")
        if summary.get("seconds_by_kind"):
            self._print(f"Time of the run: {describe_time(summary['seconds_by_kind'])}.")

    def close(self) -> None:
        """Ends the live line and gives the terminal back; also done when the process ends."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self.close)
