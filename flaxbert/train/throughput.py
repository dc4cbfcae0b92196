"""How fast training goes: tokens and examples per second, model FLOPs against the device's peak, memory in use."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flaxbert.architecture import ModelConfig
from flaxbert.train.callbacks import Callback, CallbackBase, RunInfo


def train_flops_per_token(
    config: ModelConfig, length: float, *, masked_rate: float = 0.0, first_token_only: bool = False
) -> float:
    """Returns the floating point operations of one training step per real token.

    With ``L`` layers, ``h`` hidden size, ``a`` width of all heads, ``f`` feed-forward size, ``n`` tokens, vocabulary ``V``
    and masked share ``p``: ``3 * (2 * L * (4*h*a + 2*h*f) + 4 * L * a * n + 2 * p * (h*h + h*V))``. The backward pass costs
    twice the forward pass; embeddings, norms, pooler and classifier are left out, and frozen layers count as if trained.

    Args:
      config: Architecture.
      length: Real tokens of one input, or their mean.
      masked_rate: Share of the tokens that a masked language model head predicts; 0 without such a head.
      first_token_only: Whether the last layer computes what comes after its attention for one token of each input.

    Example:
      >>> round(train_flops_per_token(ModelConfig(), 128, masked_rate=0.15) / 1e9, 3)
      0.545
    """
    hidden, attention = config.hidden_size, config.attention_size
    after_attention = hidden * attention + 2 * hidden * config.intermediate_size
    weights = config.num_hidden_layers * (3 * hidden * attention + after_attention)
    if first_token_only:
        weights -= after_attention * (1.0 - 1.0 / length)
    scores = 4 * config.num_hidden_layers * attention * length
    head = 2 * masked_rate * (hidden * hidden + hidden * config.vocab_size)
    return 3.0 * (2 * weights + scores + head)


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
        self._steps, self._examples, self._tokens, self._slots = 0, 0, 0.0, 0
        self._seconds = 0.0
        self._since: float | None = self._clock()

    def add(self, num_examples: int, num_tokens: float, num_slots: int) -> None:
        """Counts one optimizer step.

        Args:
          num_examples: Real examples over all devices.
          num_tokens: Real tokens over all devices.
          num_slots: Tokens with padding over all devices.
        """
        self._steps += 1
        self._examples += num_examples
        self._tokens += num_tokens
        self._slots += num_slots

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
          slots that is padding) and ``tokens_per_example``; empty if no step was counted.
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
        counted = self._steps > 0
        self._restart()
        return rates if counted else {}


def model_flops_utilization(
    tokens_per_second: float, flops_per_token: float, peak_flops_per_second: float | None
) -> float | None:
    """Returns the share of the peak that the model's own operations reach (MFU), or None where the peak is not known.

    The peak is the bfloat16 one whatever the precision of the run. Recomputation and padding do not count as work.

    Args:
      tokens_per_second: Real tokens over all devices.
      flops_per_token: From ``train_flops_per_token``.
      peak_flops_per_second: Of all devices together.
    """
    if not peak_flops_per_second or not math.isfinite(tokens_per_second):
        return None
    return tokens_per_second * flops_per_token / peak_flops_per_second


class MeasuredCallbacks(CallbackBase):
    """Passes everything on to other callbacks, training metrics with MFU and memory added.

    Adds ``model_flops_utilization`` where the devices' peak is known, ``memory_bytes``, and ``tokens_per_example`` where
    the metrics give it.

    Args:
      callbacks: Who is told, in this order.
      masked_rate: As for ``train_flops_per_token``.
      first_token_only: As for ``train_flops_per_token``.
      peak: Returns the FLOP/s of all devices together, or None.
      memory: Returns the bytes in use and whose they are.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        masked_rate: float = 0.0,
        first_token_only: bool = False,
        peak: Callable[[], float | None] = all_devices_peak_flops,
        memory: Callable[[], tuple[int, str]] = memory_in_use_bytes,
    ) -> None:
        self.callbacks = tuple(callbacks)
        self._masked_rate, self._first_token_only = masked_rate, first_token_only
        self._find_peak, self._memory = peak, memory
        self._peak: float | None = None
        self._config: ModelConfig | None = None

    def on_start(self, run: RunInfo) -> None:
        """Remembers the architecture and passes the start on.

        Args:
          run: What is known about the run.
        """
        self._config, self._peak = run.model_config, self._find_peak()
        for callback in self.callbacks:
            callback.on_start(run)

    def _measured(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        added: dict[str, Any] = {"memory_bytes": self._memory()[0]}
        rate, examples = metrics.get("tokens_per_second"), metrics.get("examples_per_second")
        if self._config is not None and rate and examples:
            added["tokens_per_example"] = rate / examples
            work = train_flops_per_token(
                self._config, rate / examples, masked_rate=self._masked_rate, first_token_only=self._first_token_only
            )
            utilization = model_flops_utilization(rate, work, self._peak)
            if utilization is not None:
                added["model_flops_utilization"] = utilization
        return {**metrics, **{name: value for name, value in added.items() if name not in metrics}}

    def on_log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Passes training metrics on with speed and memory.

        Args:
          step: Last step they cover.
          metrics: Numbers by name.
        """
        measured = self._measured(metrics)
        for callback in self.callbacks:
            callback.on_log(step, measured)

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
        """Passes the end on.

        Args:
          summary: As for ``Callback.on_end``.
        """
        for callback in self.callbacks:
            callback.on_end(summary)

    def close(self) -> None:
        """Lets those that hold something, such as a terminal or a file, give it back; also after an error."""
        for callback in self.callbacks:
            close = getattr(callback, "close", None)
            if close is not None:
                close()
