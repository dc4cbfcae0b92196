"""What the steps since the last line of metrics came to; their numbers stay on the device until a line is due."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxbert.train.flops import NetworkWork, batch_flops
from flaxbert.train.guard import REASONS, GuardState
from flaxbert.train.throughput import ThroughputMeter

LEAST_WEIGHT = 1e-9
"""Stands for a weight of zero where a mean is formed."""


@dataclasses.dataclass(frozen=True)
class _Pending:
    step: int
    metrics: Any
    examples: int
    slots: int
    flops: float
    packed: bool


class StepLog:
    """Keeps step metrics on the device and fetches them only when a line is due.

    Args:
      networks: What is trained, for the operations behind MFU; empty counts none.
      processes: Number of processes, each of which sees its share of a batch.
    """

    def __init__(self, networks: Sequence[NetworkWork] = (), processes: int = 1) -> None:
        self.throughput = ThroughputMeter()
        self._networks, self._processes = tuple(networks), processes
        self._pending: list[_Pending] = []

    def __bool__(self) -> bool:
        """Whether any step was added since the last line."""
        return bool(self._pending)

    def add(self, step: int, metrics: Any, batch: Mapping[str, np.ndarray]) -> None:
        """Takes in a step.

        Args:
          step: Its number, from 1.
          metrics: Its ``StepMetrics``.
          batch: This process's share of its batch, on the host.
        """
        times = self._processes
        self._pending.append(
            _Pending(
                step=step,
                metrics=metrics,
                examples=int((batch["example_weight"] > 0).sum()) * times,
                slots=batch["input_ids"].size * times,
                flops=batch_flops(self._networks, batch) * times if self._networks else 0.0,
                packed="segment_ids" in batch,
            )
        )

    def flush(self, guard: GuardState, norms: Callable[[Any], Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """Waits for the steps and returns the line of metrics.

        Args:
          guard: What the guard remembers after the last step.
          norms: Returns the norms after the last step, given its learning rate.
        """
        pending, self._pending = self._pending, []
        fetched = jax.device_get([entry.metrics for entry in pending])
        for entry, metrics in zip(pending, fetched, strict=True):
            self.throughput.add(entry.examples, float(metrics.tokens), entry.slots, entry.flops)
        last = fetched[-1]
        weight = max(sum(float(metrics.weight) for metrics in fetched), LEAST_WEIGHT)
        line = {
            "loss": sum(float(metrics.loss_sum) for metrics in fetched) / weight,
            "grad_norm": float(last.grad_norm),
            **self._norms_after(fetched[-1], norms),
            "learning_rate": float(last.learning_rate),
            "loss_scale": float(last.loss_scale),
            "step_losses": [_loss(metrics) for metrics in fetched],
            **self.throughput.measure(),
        }
        if pending[-1].packed and "padding_rate" in line:
            line["packing_efficiency"] = 1.0 - line["padding_rate"]
        skipped = [
            {
                "step": entry.step,
                "reason": REASONS[int(metrics.outcome)],
                "loss": _loss(metrics),
                "grad_norm": float(metrics.grad_norm),
            }
            for entry, metrics in zip(pending, fetched, strict=True)
            if int(metrics.outcome) in REASONS
        ]
        if skipped:
            line["skipped"] = skipped
            line |= _medians(guard)
        if num_skipped := int(guard.skipped):
            line["num_skipped"] = num_skipped
        return line

    @staticmethod
    def _norms_after(metrics: Any, norms: Callable[[Any], Mapping[str, Any]] | None) -> dict[str, float]:
        found = {} if norms is None else {name: float(value) for name, value in norms(metrics.learning_rate).items()}
        if "update_norm" in found and not metrics.applied:
            found["update_norm"] = 0.0
        return found


def _loss(metrics: Any) -> float:
    return float(metrics.loss_sum) / max(float(metrics.weight), LEAST_WEIGHT)


def _medians(guard: GuardState) -> dict[str, float]:
    count = min(int(guard.count), len(guard.losses))
    if not count:
        return {}
    return {
        "median_loss": float(np.median(np.asarray(guard.losses)[:count])),
        "median_grad_norm": float(np.median(np.asarray(guard.grad_norms)[:count])),
    }
