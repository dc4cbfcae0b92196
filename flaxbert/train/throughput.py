"""How fast training goes: tokens and examples per second, model FLOPs against the device's peak, memory in use."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flaxbert.train.callbacks import Callback, CallbackBase, RunInfo
from flaxbert.train.goodput import TimeLedger


def all_devices_peak_flops() -> float | None:
    """Returns the bfloat16 peak of all devices of the run together in FLOP/s, or None where a device's is not known."""
    import jax

    from flaxbert.core.runtime import peak_flops

    peaks = [peak_flops(device) for device in jax.devices()]
    return sum(peak for peak in peaks if peak is not None) if all(peaks) else None


def memory_in_use_bytes() -> tuple[int, str]:
    """Returns the memory in use in bytes and whose: ``device`` (the fullest local accelerator) or ``host`` (this process)."""
    import jax
    import psutil

    found = [device.memory_stats() or {} for device in jax.local_devices() if device.platform != "cpu"]
    used = [int(statistics["bytes_in_use"]) for statistics in found if "bytes_in_use" in statistics]
    return (max(used), "device") if used else (int(psutil.Process().memory_info().rss), "host")


class ThroughputMeter:
    """Counts what steps work through, and gives rates since it was last asked.

    Time between ``pause`` and ``resume`` (evaluation, a checkpoint that is waited for) does not count.

    Args:
      clock: Returns seconds; only its differences matter.

    Example:
      >>> meter = ThroughputMeter(clock=iter([0.0, 2.0, 2.0]).__next__)
      >>> meter.add(num_examples=16, num_tokens=300, num_slots=400)
      >>> meter.measure()["tokens_per_second"]
      150.0
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._restart()

    def _restart(self) -> None:
        self._steps, self._examples, self._tokens, self._slots, self._flops = 0, 0, 0.0, 0, 0.0
        self._seconds = 0.0
        self._since: float | None = self._clock()

    def add(self, num_examples: int, num_tokens: float, num_slots: int, num_flops: float = 0.0) -> None:
        """Counts one optimizer step.

        Args:
          num_examples: Real examples over all devices.
          num_tokens: Real tokens over all devices.
          num_slots: Tokens with padding over all devices.
          num_flops: Operations that the step needs; 0 where they are not known.
        """
        self._steps += 1
        self._examples += num_examples
        self._tokens += num_tokens
        self._slots += num_slots
        self._flops += num_flops

    def pause(self) -> None:
        """Stops the clock."""
        if self._since is not None:
            self._seconds += self._clock() - self._since
            self._since = None

    def resume(self) -> None:
        """Starts the clock again."""
        if self._since is None:
            self._since = self._clock()

    def measure(self) -> dict[str, float]:
        """Returns the rates since the last call and starts over.

        Returns:
          ``tokens_per_second`` (real tokens), ``examples_per_second``, ``seconds_per_step``, ``padding_rate`` (share of the
          slots that is padding), ``tokens_per_example``, and ``model_flops_per_second`` where operations were counted; empty if no
          step was.
        """
        self.pause()
        seconds = max(self._seconds, 1e-9)
        rates = {
            "tokens_per_second": self._tokens / seconds,
            "examples_per_second": self._examples / seconds,
            "seconds_per_step": seconds / max(self._steps, 1),
            "padding_rate": 1.0 - self._tokens / max(self._slots, 1),
            "tokens_per_example": self._tokens / max(self._examples, 1),
        }
        if self._flops:
            rates["model_flops_per_second"] = self._flops / seconds
        counted = self._steps > 0
        self._restart()
        return rates if counted else {}


def model_flops_utilization(model_flops_per_second: float | None, peak_flops_per_second: float | None) -> float | None:
    """Returns the share of the peak that the model's own operations reach (MFU), or None where one of both is not known.

    The peak is the bfloat16 one whatever the precision of the run. Recomputation and padding do not count as work.

    Args:
      model_flops_per_second: From ``batch_flops``, over all devices.
      peak_flops_per_second: Of all devices together.
    """
    if not peak_flops_per_second or not model_flops_per_second or not math.isfinite(model_flops_per_second):
        return None
    return model_flops_per_second / peak_flops_per_second


class MeasuredCallbacks(CallbackBase):
    """Passes everything on to other callbacks, training metrics with MFU, memory and goodput added.

    Adds ``model_flops_utilization`` where the operations of the steps and the devices' peak are known, ``memory_bytes`` and
    ``goodput_rate``; at the end ``seconds_by_kind`` too.

    Args:
      callbacks: Who is told, in this order.
      ledger: Where the time of the run goes; None counts from now on.
      peak: Returns the FLOP/s of all devices together, or None.
      memory: Returns the bytes in use and whose they are.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        ledger: TimeLedger | None = None,
        peak: Callable[[], float | None] = all_devices_peak_flops,
        memory: Callable[[], tuple[int, str]] = memory_in_use_bytes,
    ) -> None:
        self.callbacks = tuple(callbacks)
        self.ledger = ledger or TimeLedger()
        self._find_peak, self._memory = peak, memory
        self._peak: float | None = None

    def on_start(self, run: RunInfo) -> None:
        """Asks for the devices' peak and passes the start on.

        Args:
          run: What is known about the run.
        """
        self._peak = self._find_peak()
        for callback in self.callbacks:
            callback.on_start(run)

    def on_log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Passes training metrics on with speed, memory and goodput.

        Args:
          step: Last step they cover.
          metrics: Numbers by name.
        """
        utilization = model_flops_utilization(metrics.get("model_flops_per_second"), self._peak)
        measured: dict[str, Any] = {"memory_bytes": self._memory()[0], "goodput_rate": self.ledger.goodput_rate()}
        if utilization is not None:
            measured["model_flops_utilization"] = utilization
        for callback in self.callbacks:
            callback.on_log(step, {**measured, **metrics})

    def on_evaluation(self, step: int, metrics: Mapping[str, float], split: str = "validation") -> None:
        """Passes an evaluation on.

        Args:
          step: Steps taken before it.
          metrics: Numbers by name.
          split: Which examples.
        """
        for callback in self.callbacks:
            callback.on_evaluation(step, metrics, split)

    def on_checkpoint(self, step: int, path: str) -> None:
        """Passes a checkpoint on.

        Args:
          step: Its step.
          path: Its folder.
        """
        for callback in self.callbacks:
            callback.on_checkpoint(step, path)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Passes the end on, with where the time went.

        Args:
          summary: As for ``Callback.on_end``.
        """
        time = {"goodput_rate": self.ledger.goodput_rate(), "seconds_by_kind": self.ledger.seconds()}
        for callback in self.callbacks:
            callback.on_end({**summary, **time})

    def close(self) -> None:
        """Lets those that hold something, such as a terminal or a file, give it back; also after an error."""
        for callback in self.callbacks:
            close = getattr(callback, "close", None)
            if close is not None:
                close()
