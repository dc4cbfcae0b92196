"""From a prepared job to a trained state: resume, train with what memory there is, choose the best checkpoint."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxbert.config import TrainConfig
from flaxbert.core.arrays import Params
from flaxbert.core.sharding import param_shardings, shard
from flaxbert.data.pipeline import StepPipeline
from flaxbert.errors import ConfigError
from flaxbert.train.callbacks import RunInfo
from flaxbert.train.checkpoint import CheckpointStore
from flaxbert.train.flops import NetworkWork
from flaxbert.train.goodput import COMPILE
from flaxbert.train.loop import LoopParts, LoopResult, Progress, run_loop
from flaxbert.train.memory import BatchPlan, halve, is_out_of_memory
from flaxbert.train.recipes.plan import CompiledRun, StepJob, compile_run, plan_batches
from flaxbert.train.recipes.resume import MustAgree, check_same_run
from flaxbert.train.recipes.setup import Say
from flaxbert.train.state import TrainState, join_params
from flaxbert.train.throughput import MeasuredCallbacks


def find_checkpoint(
    store: CheckpointStore, train: TrainConfig, config: Mapping[str, Any], must_agree: MustAgree, say: Say
) -> Any:
    """Returns the newest good version of a run, or None for a new one.

    Args:
      store: The checkpoints of the output folder.
      train: Says whether a run may or must go on.
      config: The resolved config.
      must_agree: Settings that may not have changed.
      say: Where lines for the user go; told which settings have changed.

    Raises:
      ConfigError: A setting has changed that may not, or the versions and ``train.resume`` contradict each other.
    """
    newest, mode = store.newest_good(), train.resume
    if newest is None:
        if mode == "must":
            raise ConfigError(f"train.resume is 'must', but {store.folder} holds no checkpoint.")
        return None
    if mode == "never":
        raise ConfigError(
            f"{store.folder} holds checkpoints of an earlier run (newest: step {newest.step}), and train.resume is "
            "'never'; choose another output.folder, or train.resume auto to go on."
        )
    changes = check_same_run(store.read_host(newest)["config"], config, must_agree)
    if changes:
        say(changes)
    return newest


@dataclasses.dataclass
class TrainingRun:
    """What training of any kind needs.

    Attributes:
      job: What the step is made from.
      pipeline: Training batches of this process.
      steps_per_epoch: Optimizer steps of one pass; an evaluation is due after each unless the options say otherwise.
      evaluate: Returns the metrics of a parameter tree on held-out examples.
      metric: The metric that chooses the best checkpoint, and whether higher is better.
      config: The resolved config, which every checkpoint holds.
      info: Returns what callbacks are told at the start, given the first step.
      store: Where checkpoints go.
      callbacks: Who is told.
      say: Where lines for the user go.
      other_shapes: The same job with the other shapes that batches have later in the run; their memory is checked before the start.
      networks: What is trained, for the operations behind MFU.
      least_step: Checkpoints of earlier steps are not chosen at the end, since they are not pruned to the end.
    """

    job: StepJob
    pipeline: StepPipeline
    steps_per_epoch: int
    evaluate: Callable[[Params], dict[str, float]]
    metric: tuple[str, bool]
    config: Mapping[str, Any]
    info: Callable[[int], RunInfo]
    store: CheckpointStore
    callbacks: MeasuredCallbacks
    say: Say
    other_shapes: Sequence[StepJob] = ()
    networks: Sequence[NetworkWork] = ()
    least_step: int = 0

    def before(self, newest: Any) -> dict[str, float]:
        """Returns the metrics before training, from the checkpoint where there is one.

        Args:
          newest: The version that the run goes on from, or None.
        """
        if newest is not None:
            return dict(self.store.read_host(newest)["before"])
        params = self.job.params
        return self.evaluate(shard(params, param_shardings(params, self.job.leaf_axes, self.job.mesh)))

    def _parts(self, compiled: CompiledRun, plan: BatchPlan, before: Mapping[str, float]) -> LoopParts:
        job, train = self.job, self.job.train
        evaluate_every = train.evaluate_every or self.steps_per_epoch
        return LoopParts(
            step=compiled.step,
            norms=compiled.norms,
            evaluate=lambda state: self.evaluate(join_params(state, compiled.kinds)),
            pipeline=self.pipeline,
            store=self.store,
            callbacks=self.callbacks,
            mesh=job.mesh,
            config=train,
            total_steps=job.total_steps,
            evaluate_every=evaluate_every,
            checkpoint_every=train.checkpoint_every or evaluate_every,
            metric=self.metric[0],
            higher_is_better=self.metric[1],
            kinds=compiled.kinds,
            host={"config": dict(self.config), "plan": dataclasses.asdict(plan), "before": dict(before)},
            folder=self.store.folder.parent,
            networks=self.networks,
        )

    def _train(self, plan: BatchPlan, newest: Any, before: Mapping[str, float]) -> tuple[LoopResult, CompiledRun]:
        compiled = compile_run(self.job, plan, self.say)
        progress, first_step = Progress(), 0
        if newest is None:
            state = compiled.initial_state()
        else:
            host = self.store.read_host(newest)
            state = self.store.restore(newest, compiled.like, kinds=compiled.kinds)
            self.pipeline.set_state(host["data"])
            progress, first_step = Progress(**host["progress"]), newest.step
            if "time" in host:
                self.callbacks.ledger.resume(host["time"])
            self.say(f"Resuming at step {newest.step} from {self.store.folder}.")
        self.callbacks.on_start(self.info(first_step))
        if not first_step:
            self.callbacks.on_evaluation(0, before)
        return run_loop(self._parts(compiled, plan, before), state, progress), compiled

    def train(self, newest: Any, before: Mapping[str, float]) -> tuple[LoopResult, CompiledRun]:
        """Trains to the end; where micro batches are found out and memory runs out, again with smaller ones.

        Args:
          newest: The version that the run goes on from, or None.
          before: Metrics before training.

        Returns:
          How the loop ended, and the compiled step.
        """
        with self.callbacks.ledger.measure(COMPILE):
            plan = plan_batches((self.job, *self.other_shapes), self.say)
        start = self.pipeline.get_state()
        while True:
            try:
                return self._train(plan, newest, before)
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                if not self.job.train.finds_micro_batch or not is_out_of_memory(error):
                    raise
                plan = halve(plan, [int(job.train.batch_size) for job in self.other_shapes])
                self.pipeline.set_state(start)
                newest = self.store.newest_good()
                self.say(f"Out of memory: micro batches are halved to {plan.micro_batch}, the global batch stays.")

    def complete(self, newest: Any) -> tuple[dict[str, float], LoopResult, int, Params]:
        """Trains to the end and chooses what is kept.

        Args:
          newest: The version that the run goes on from, or None.

        Returns:
          Metrics before training, how the loop ended, and step and parameters of the state that is kept.
        """
        if newest is not None:  # before anything is compiled
            self.pipeline.check_state(self.store.read_host(newest)["data"])
        before = self.before(newest)
        result, compiled = self.train(newest, before)
        state, step = self.chosen(result, compiled)
        return before, result, step, join_params(state, compiled.kinds)

    def chosen(self, result: LoopResult, compiled: CompiledRun) -> tuple[TrainState, int]:
        """Returns the state that is kept, and its step: the last one of a run that was stopped, else the best if so told.

        Args:
          result: How the loop ended.
          compiled: The compiled step.
        """
        if result.reason == "preempted":
            folder = self.store.folder
            self.say(f"Asked to stop: saved step {result.step} in {folder}; the same command goes on from there.")
            return result.state, result.step
        found = self.store.best_good() if self.job.train.load_best_at_end else None
        if found is None or found.step == result.step or found.step < self.least_step:
            return result.state, result.step
        return self.store.restore(found, compiled.like, kinds=compiled.kinds), found.step


def to_host(params: Params) -> Params:
    """Returns a parameter tree with every array whole in this process's memory.

    Args:
      params: Parameter tree on a mesh, perhaps of several processes.
    """
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, params)
    from jax.experimental import multihost_utils

    return jax.tree.map(lambda array: np.asarray(multihost_utils.process_allgather(array, tiled=True)), params)
