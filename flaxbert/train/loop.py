"""The training loop: batches in, steps, evaluations, checkpoints and reports out; no mathematics."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flaxbert.config import TrainConfig
from flaxbert.core.sharding import place_batch
from flaxbert.data.pipeline import StepPipeline
from flaxbert.errors import TrainingError
from flaxbert.train.callbacks import Callback
from flaxbert.train.checkpoint import CheckpointStore
from flaxbert.train.preemption import PreemptionGuard
from flaxbert.train.state import NO_BAD_STEP, TrainState
from flaxbert.train.throughput import ThroughputMeter

LEAST_WEIGHT = 1e-9
"""Stands for a weight of zero where a mean is formed."""

Evaluate = Callable[[TrainState], dict[str, float]]
Step = Callable[[TrainState, Mapping[str, Any], Any], tuple[TrainState, Any]]


@dataclasses.dataclass
class Progress:
    """What the loop remembers besides the state; part of every checkpoint.

    Attributes:
      best_metric: Best value of the chosen metric so far, or None.
      best_step: Step of that value.
      bad_evaluations: Evaluations in a row without improvement, for early stopping.
      plateau_evaluations: The same since the last reduction of the learning rate.
      history: Every evaluation: step and metrics.
    """

    best_metric: float | None = None
    best_step: int = -1
    bad_evaluations: int = 0
    plateau_evaluations: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def record(self, step: int, metrics: Mapping[str, float], name: str, higher: bool, threshold: float) -> bool:
        """Takes in one evaluation and returns whether it is the best so far.

        Args:
          step: Optimizer step of the evaluation.
          metrics: All metrics.
          name: The metric that decides.
          higher: Whether a higher value is better.
          threshold: Least change that counts.

        Returns:
          Whether it is the best so far.
        """
        value = float(metrics[name])
        self.history.append({"step": step, **{key: float(number) for key, number in metrics.items()}})
        gain = 0.0 if self.best_metric is None else (value - self.best_metric) * (1.0 if higher else -1.0)
        improved = self.best_metric is None or gain > threshold
        if improved:
            self.best_metric, self.best_step = value, step
        self.bad_evaluations = 0 if improved else self.bad_evaluations + 1
        self.plateau_evaluations = 0 if improved else self.plateau_evaluations + 1
        return improved


@dataclasses.dataclass(frozen=True)
class LoopParts:
    """Everything that the loop puts together.

    Attributes:
      step: Compiled training step.
      evaluate: Returns the metrics of a state on the held-out examples.
      pipeline: Training batches with a position.
      store: Where checkpoints go.
      callbacks: Who is told; several as one ``MeasuredCallbacks``.
      mesh: The mesh.
      config: Training options.
      total_steps: Optimizer steps of the whole run.
      evaluate_every: Steps between evaluations.
      checkpoint_every: Steps between checkpoints.
      metric: Name of the metric that chooses the best checkpoint.
      higher_is_better: Its direction.
      kinds: Kinds of typed leaves.
      host: Further content of every checkpoint: resolved config, versions.
    """

    step: Step
    evaluate: Evaluate
    pipeline: StepPipeline
    store: CheckpointStore
    callbacks: Callback
    mesh: Mesh
    config: TrainConfig
    total_steps: int
    evaluate_every: int
    checkpoint_every: int
    metric: str
    higher_is_better: bool
    kinds: Mapping[str, str]
    host: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LoopResult:
    """How the loop ended.

    Attributes:
      state: The last state.
      progress: Evaluations and the best of them.
      step: Optimizer steps taken.
      reason: finished, early_stopping or preempted.
      seconds: Time spent in the loop of this process.
    """

    state: TrainState
    progress: Progress
    step: int
    reason: str
    seconds: float


class _Meter:
    """Keeps step metrics on the device and fetches them only when a line is due."""

    def __init__(self) -> None:
        self.pending: list[tuple[Any, int, int]] = []
        self.throughput = ThroughputMeter()

    def add(self, metrics: Any, batch: Mapping[str, np.ndarray], processes: int) -> None:
        examples = int((batch["example_weight"] > 0).sum())
        self.pending.append((metrics, examples * processes, batch["input_ids"].size * processes))

    def flush(self) -> dict[str, Any]:
        fetched = [(jax.device_get(metrics), examples, slots) for metrics, examples, slots in self.pending]
        for metrics, examples, slots in fetched:
            self.throughput.add(examples, float(metrics.tokens), slots)
        last = fetched[-1][0]
        weight = max(sum(float(metrics.weight) for metrics, _, _ in fetched), LEAST_WEIGHT)
        self.pending = []
        return {
            "loss": sum(float(metrics.loss_sum) for metrics, _, _ in fetched) / weight,
            "grad_norm": float(last.grad_norm),
            "learning_rate": float(last.learning_rate),
            "loss_scale": float(last.loss_scale),
            "step_losses": [float(m.loss_sum) / max(float(m.weight), LEAST_WEIGHT) for m, _, _ in fetched],
            **self.throughput.measure(),
        }


class _Run:
    def __init__(self, parts: LoopParts, state: TrainState, progress: Progress) -> None:
        self.parts = parts
        self.state = state
        self.progress = progress
        self.step = int(state.step)
        self.saved_step = self.step if progress.history or self.step else -1
        self.meter = _Meter()
        self.started = time.perf_counter()
        self.key = jax.random.key(parts.config.seed)

    def check_finite(self) -> None:
        bad = int(self.state.first_bad_step)
        if bad == NO_BAD_STEP:
            return
        raise self.not_finite(bad + 1)

    def not_finite(self, step: int) -> TrainingError:
        self.parts.store.wait()
        good = self.parts.store.newest_good()
        folder = self.parts.store.folder
        where = "no checkpoint was saved yet"
        if good is not None:
            where = f"the last good checkpoint is step {good.step} in {folder}"
        return TrainingError(
            f"The loss, its gradient or an output is not finite at step {step}; {where}. Lower train.learning_rate, "
            "check the data of that step, or train in bfloat16 or float32 instead of float16."
        )

    def log(self) -> None:
        if not self.meter.pending:
            return
        line = self.meter.flush()
        self.check_finite()
        self.parts.store.raise_failure()
        self.parts.callbacks.on_log(self.step, line)

    def save(self, metric: float | None) -> None:
        if self.saved_step == self.step:
            return
        self.check_finite()
        host = {
            **self.parts.host,
            "step": self.step,
            "data": self.parts.pipeline.get_state(),
            "progress": dataclasses.asdict(self.progress),
        }
        self.parts.store.save(self.step, self.state, host=host, kinds=dict(self.parts.kinds), metric=metric)
        self.saved_step = self.step
        self.parts.callbacks.on_checkpoint(self.step, str(self.parts.store.folder))

    def evaluate(self) -> bool:
        self.log()
        parts, config = self.parts, self.parts.config
        self.meter.throughput.pause()
        try:
            metrics = parts.evaluate(self.state)
        except TrainingError as error:  # an update that was finite itself can still make outputs that are not
            raise self.not_finite(self.step) from error
        threshold = config.early_stopping_threshold
        improved = self.progress.record(self.step, metrics, parts.metric, parts.higher_is_better, threshold)
        parts.callbacks.on_evaluation(self.step, metrics)
        if config.plateau_patience and self.progress.plateau_evaluations >= config.plateau_patience:
            factor = self.state.learning_rate_factor * jnp.float32(config.plateau_factor)
            self.state = dataclasses.replace(self.state, learning_rate_factor=factor)
            self.progress.plateau_evaluations = 0
        if improved or self.step % parts.checkpoint_every == 0:
            self.save(float(metrics[parts.metric]))
        self.meter.throughput.resume()
        return bool(config.early_stopping_patience) and self.progress.bad_evaluations >= config.early_stopping_patience

    def result(self, reason: str) -> LoopResult:
        self.parts.store.wait()
        seconds = time.perf_counter() - self.started
        return LoopResult(self.state, self.progress, self.step, reason, seconds)


def run_loop(parts: LoopParts, state: TrainState, progress: Progress) -> LoopResult:
    """Trains until the last step, early stopping or a request to stop.

    SIGTERM or SIGINT ends the current step, saves a checkpoint and returns; a second signal ends the process.

    Args:
      parts: What the loop puts together.
      state: State to start from; its step says where the run stands.
      progress: What an earlier part of the run remembers.

    Returns:
      The last state and how the loop ended.

    Raises:
      TrainingError: The loss is not finite; names the step and the last good checkpoint.
      CheckpointError: A checkpoint can not be written.
    """
    run = _Run(parts, state, progress)
    processes = jax.process_count()
    with PreemptionGuard() as guard, jax.set_mesh(parts.mesh):
        batches = iter(parts.pipeline)
        while run.step < parts.total_steps:
            batch = next(batches)
            run.state, metrics = parts.step(run.state, place_batch(batch, parts.mesh), run.key)
            run.step += 1
            run.meter.add(metrics, batch, processes)
            if run.step % parts.config.log_every == 0:
                run.log()
            if guard.should_stop(run.step):
                run.log()
                run.save(None)
                return run.result("preempted")
            due = run.step % parts.evaluate_every == 0 or run.step == parts.total_steps
            if due and run.evaluate():
                return run.result("early_stopping")
            if run.step % parts.checkpoint_every == 0:
                run.save(None)
        run.log()
        run.save(None)
    return run.result("finished")
