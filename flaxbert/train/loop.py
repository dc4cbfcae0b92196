"""The training loop: batches in, steps, evaluations, checkpoints and reports out; no mathematics."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flaxbert.config import TrainConfig
from flaxbert.core.sharding import place_batch
from flaxbert.data.pipeline import StepPipeline
from flaxbert.errors import TrainingError
from flaxbert.train.checkpoint import CheckpointStore
from flaxbert.train.flops import NetworkWork
from flaxbert.train.goodput import CHECKPOINT, COMPILE, DATA, EVALUATION, PROFILE, STEP
from flaxbert.train.guard import GRADIENT_SPIKE, LOSS_SPIKE, NOT_FINITE, GuardState
from flaxbert.train.preemption import PreemptionGuard
from flaxbert.train.profile_window import ProfileWindow
from flaxbert.train.state import NO_BAD_STEP, TrainState
from flaxbert.train.step_log import StepLog
from flaxbert.train.throughput import MeasuredCallbacks
from flaxbert.train.watchdog import HangWatchdog

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
      norms: Norms of a state, given the learning rate of its last step.
      evaluate: Returns the metrics of a state on the held-out examples.
      pipeline: Training batches with a position.
      store: Where checkpoints go.
      callbacks: Who is told; its ledger counts where the time goes.
      mesh: The mesh.
      config: Training options.
      total_steps: Optimizer steps of the whole run.
      evaluate_every: Steps between evaluations.
      checkpoint_every: Steps between checkpoints.
      metric: Name of the metric that chooses the best checkpoint.
      higher_is_better: Its direction.
      kinds: Kinds of typed leaves.
      host: Further content of every checkpoint: resolved config, versions.
      folder: Folder of the run, for traces and for the stacks of a run that hangs.
      networks: What is trained, for the operations behind MFU.
    """

    step: Step
    norms: Callable[[TrainState, Any], Mapping[str, Any]]
    evaluate: Evaluate
    pipeline: StepPipeline
    store: CheckpointStore
    callbacks: MeasuredCallbacks
    mesh: Mesh
    config: TrainConfig
    total_steps: int
    evaluate_every: int
    checkpoint_every: int
    metric: str
    higher_is_better: bool
    kinds: Mapping[str, str]
    host: Mapping[str, Any]
    folder: pathlib.Path
    networks: Sequence[NetworkWork] = ()


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


class _Run:
    def __init__(self, parts: LoopParts, state: TrainState, progress: Progress) -> None:
        config = parts.config
        self.parts = parts
        self.state = state
        self.progress = progress
        self.step = int(state.step)
        self.saved_step = self.step if progress.history or self.step else -1
        self.steps = StepLog(parts.networks, jax.process_count())
        self.ledger = parts.callbacks.ledger
        self.watchdog = HangWatchdog(
            parts.folder,
            config.hang_factor,
            config.hang_seconds,
            jax.process_index(),
            pause_seconds=config.hang_pause_seconds,
        )
        self.profile = ProfileWindow(parts.folder, config.profile_steps(), parts.total_steps, self.step)
        self.started = time.perf_counter()
        self.key = jax.random.key(config.seed)
        self.batches = iter(parts.pipeline)
        self.latest: Any = None
        self.compiled: set[Any] = set()

    def check_finite(self) -> None:
        bad = int(self.state.first_bad_step)
        if bad != NO_BAD_STEP:
            raise self.stopped(bad + 1, jax.device_get(self.state.guard))

    def stopped(self, step: int, guard: GuardState | None = None) -> TrainingError:
        with self.watchdog.paused():
            self.parts.store.wait()
            good = self.parts.store.newest_good()
        folder = self.parts.store.folder
        where = "no checkpoint was saved yet"
        if good is not None:
            where = f"the last good checkpoint is step {good.step} in {folder}"
        return TrainingError(
            f"{_describe_stop(step, guard, self.parts.config)}; {where}. Lower train.learning_rate, "
            "check the data of that step, or train in bfloat16 or float32 instead of float16."
        )

    def next_batch(self) -> Mapping[str, np.ndarray]:
        """Returns the next batch; the time for it is lost only as far as the device had nothing to do."""
        was_idle, started = self.is_idle(), time.perf_counter()
        with self.ledger.measure(DATA):
            batch = next(self.batches)
        waited = time.perf_counter() - started
        if not self.is_idle():
            self.ledger.move(waited, DATA, STEP)
        elif not was_idle:
            self.ledger.move(min(waited, self.watchdog.median_seconds), DATA, STEP)
        return batch

    def is_idle(self) -> bool:
        return self.latest is None or self.latest.is_ready()

    @contextlib.contextmanager
    def perhaps_compiling(self, program: Any) -> Iterator[None]:
        """Does not count the time of a block as a step's where it runs a program for the first time."""
        if program in self.compiled:
            yield
            return
        self.compiled.add(program)
        with self.watchdog.paused(), self.ledger.measure(COMPILE):
            yield

    def norms(self, learning_rate: Any) -> Mapping[str, Any]:
        with self.perhaps_compiling("norms"):
            return jax.device_get(self.parts.norms(self.state, learning_rate))

    def take_step(self) -> None:
        batch = self.next_batch()
        if self.profile.starts_at(self.step + 1):
            with self.watchdog.paused(), self.ledger.measure(PROFILE):
                self.profile.start()
        shapes = tuple((name, array.shape) for name, array in sorted(batch.items()))
        with self.perhaps_compiling(shapes), jax.profiler.StepTraceAnnotation("train", step_num=self.step + 1):
            self.state, metrics = self.parts.step(self.state, place_batch(batch, self.parts.mesh), self.key)
        self.step += 1
        self.latest = metrics.loss_sum
        self.watchdog.dispatched(self.step, self.latest)
        self.steps.add(self.step, metrics, batch)
        if self.profile.ends_at(self.step):
            with self.watchdog.paused(), self.ledger.measure(PROFILE):
                self.profile.stop(metrics)

    def log(self) -> None:
        if not self.steps:
            return
        line = self.steps.flush(jax.device_get(self.state.guard), self.norms)
        self.parts.store.raise_failure()
        self.parts.callbacks.on_log(self.step, line)
        self.check_finite()

    def is_due(self) -> bool:
        """Returns whether there is an evaluation after this step."""
        return self.step % self.parts.evaluate_every == 0 or self.step == self.parts.total_steps

    def owes_evaluation(self) -> bool:
        """Returns whether the run was stopped, and saved, just before an evaluation."""
        history = self.progress.history
        return self.step > 0 and self.is_due() and (not history or history[-1]["step"] < self.step)

    def save(self, metric: float | None, *, again: bool = False) -> None:
        if self.saved_step == self.step and not again:
            return
        self.check_finite()
        with self.watchdog.paused(), self.ledger.measure(CHECKPOINT):
            host = {
                **self.parts.host,
                "step": self.step,
                "data": self.parts.pipeline.get_state(),
                "progress": dataclasses.asdict(self.progress),
                "time": self.ledger.get_state(),
            }
            kinds = dict(self.parts.kinds)
            self.parts.store.save(self.step, self.state, host=host, kinds=kinds, metric=metric, replace=again)
        self.saved_step = self.step
        self.parts.callbacks.on_checkpoint(self.step, str(self.parts.store.folder))

    def evaluate(self, *, owed: bool = False) -> bool:
        """Evaluates, saves where that is due, and returns whether the run ends early.

        Args:
          owed: Whether the state is saved already, without what this evaluation finds.
        """
        self.log()
        parts, config = self.parts, self.parts.config
        self.steps.throughput.pause()
        try:
            with self.watchdog.paused(), self.ledger.measure(EVALUATION):
                metrics = parts.evaluate(self.state)
        except TrainingError as error:  # an update that was finite itself can still make outputs that are not
            raise self.stopped(self.step) from error
        threshold = config.early_stopping_threshold
        improved = self.progress.record(self.step, metrics, parts.metric, parts.higher_is_better, threshold)
        parts.callbacks.on_evaluation(self.step, metrics)
        if config.plateau_patience and self.progress.plateau_evaluations >= config.plateau_patience:
            factor = self.state.learning_rate_factor * jnp.float32(config.plateau_factor)
            self.state = dataclasses.replace(self.state, learning_rate_factor=factor)
            self.progress.plateau_evaluations = 0
        if improved or owed or self.step % parts.checkpoint_every == 0:
            self.save(float(metrics[parts.metric]), again=owed)
        self.steps.throughput.resume()
        return bool(config.early_stopping_patience) and self.progress.bad_evaluations >= config.early_stopping_patience

    def result(self, reason: str) -> LoopResult:
        with self.watchdog.paused(), self.ledger.measure(CHECKPOINT):
            self.parts.store.wait()
        seconds = time.perf_counter() - self.started
        return LoopResult(self.state, self.progress, self.step, reason, seconds)


def _describe_stop(step: int, guard: GuardState | None, config: TrainConfig) -> str:
    """Returns why no step after this one makes sense."""
    reason = NOT_FINITE if guard is None else int(guard.reason)
    words = {
        NOT_FINITE: f"The loss, its gradient or an output is not finite at step {step}",
        LOSS_SPIKE: f"The loss spiked at step {step} (train.spike_loss_factor {config.spike_loss_factor:g})",
        GRADIENT_SPIKE: f"The gradient spiked at step {step} (train.spike_grad_norm_factor {config.spike_grad_norm_factor:g})",
    }[reason]
    if guard is None or (reason == NOT_FINITE and not config.skip_not_finite):
        return words
    return (
        f"{words}, after {int(guard.skipped_in_row) - 1} updates in a row and {int(guard.skipped) - 1} in all were left out "
        f"(train.max_skipped_in_row {config.max_skipped_in_row}, train.max_skipped {config.max_skipped})"
    )


def run_loop(parts: LoopParts, state: TrainState, progress: Progress) -> LoopResult:
    """Trains until the last step, early stopping or a request to stop.

    SIGTERM or SIGINT ends the current step, saves a checkpoint and returns; a second signal ends the process. A run that makes
    no more steps ends the process with ``EXIT_HANG``.

    Args:
      parts: What the loop puts together.
      state: State to start from; its step says where the run stands.
      progress: What an earlier part of the run remembers.

    Returns:
      The last state and how the loop ended.

    Raises:
      TrainingError: The loss is not finite, or too many updates were left out; names the step and the last good checkpoint.
      ConfigError: The steps to trace are not among those of the run.
      CheckpointError: A checkpoint can not be written.
    """
    run, ledger = _Run(parts, state, progress), parts.callbacks.ledger
    with PreemptionGuard() as guard, jax.set_mesh(parts.mesh), run.watchdog, run.profile, ledger.measure(STEP):
        reason = _train(run, guard)
        result = run.result(reason)
    ledger.finish()
    return result


def _train(run: _Run, guard: PreemptionGuard) -> str:
    """Takes steps until there is a reason to end, and returns it."""
    parts = run.parts
    if run.owes_evaluation() and run.evaluate(owed=True):
        return "early_stopping"
    while run.step < parts.total_steps:
        run.take_step()
        if run.step % parts.config.log_every == 0:
            run.log()
        if guard.should_stop(run.step):
            run.log()
            run.save(None)
            return "preempted"
        if run.is_due() and run.evaluate():
            return "early_stopping"
        if run.step % parts.checkpoint_every == 0:
            run.save(None)
    run.log()
    run.save(None)
    return "finished"
