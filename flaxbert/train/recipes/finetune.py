"""Fine-tuning from start to end: prepare, compile, resume, train, score before and after, save, report."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxbert.config import RunConfig
from flaxbert.core.arrays import Params
from flaxbert.core.sharding import param_shardings, shard
from flaxbert.data.batches import evaluation_batches
from flaxbert.errors import ConfigError
from flaxbert.evaluation.evaluate import collect_logits, evaluation_program
from flaxbert.tasks.base import Scored
from flaxbert.train.callbacks import Callback
from flaxbert.train.checkpoint import CheckpointStore
from flaxbert.train.loop import LoopParts, LoopResult, Progress, run_loop
from flaxbert.train.memory import BatchPlan, halve, is_out_of_memory
from flaxbert.train.recipes.outcome import (
    FinetuneResult,
    build_callbacks,
    run_info,
    score,
    write_outcome,
)
from flaxbert.train.recipes.plan import CompiledRun, compile_run, plan_batches
from flaxbert.train.recipes.setup import Prepared, Say, batch_ways, describe, prepare, say_on_first
from flaxbert.train.state import TrainState, join_params
from flaxbert.train.throughput import MeasuredCallbacks

EVALUATION_BATCH_SIZE = 32
"""Examples per evaluation batch unless the config says otherwise."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Scores parameters on tokenized examples.

    Attributes:
      prepared: The run, for mesh, model and batch sizes.
    """

    prepared: Prepared

    def outputs(self, params: Params, split: str) -> Any:
        """Returns the logits of a split, in the order of its inputs.

        Args:
          params: Parameter tree on the mesh.
          split: validation or test.
        """
        run, model = self.prepared, self.prepared.model
        features = run.data.splits[split].features
        program = evaluation_program(model.config, model.task, model.execution, run.mesh)
        ways = batch_ways(run.mesh)
        size = run.config.train.evaluation_batch_size or EVALUATION_BATCH_SIZE
        batches = evaluation_batches(
            features,
            -(-size // ways) * ways,
            run.data.length_buckets,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return collect_logits(program, params, batches, len(features), run.mesh)

    def score(self, params: Params, split: str) -> Scored:
        """Returns how well parameters do on a split.

        Args:
          params: Parameter tree on the mesh.
          split: validation or test.
        """
        data = self.prepared.data
        return data.task.score(data.splits[split], self.outputs(params, split), self.prepared.setting)

    def metrics(self, params: Params) -> dict[str, float]:
        """Returns the task's metrics of parameters on the held-out examples.

        Args:
          params: Parameter tree on the mesh.
        """
        return dict(self.score(params, "validation").metrics)


_MUST_AGREE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model", ("path", "task", "problem_type", "scan_layers", "precision")),
    ("data", ("train", "max_length", "max_train_examples", "length_buckets")),
    ("task", ("tag_scheme", "model_scheme", "stride", "entity_markers")),
    ("train", ("optimizer", "batch_size", "target_batch_size", "num_steps", "num_epochs", "schedule", "learning_rate")),
)
"""Settings that a resumed run shares with its checkpoints; the data position checks seed, order and examples itself."""


def _check_same_run(host: Mapping[str, Any], config: RunConfig) -> None:
    saved, now = host["config"], config.to_dict()
    for section, fields in _MUST_AGREE:
        for field in fields:
            before, after = saved.get(section, now[section]).get(field), now[section][field]
            if isinstance(after, tuple):
                before, after = list(before or ()), list(after)
            if before != after:
                raise ConfigError(
                    f"The checkpoints were made with {section}.{field} {before!r}, but it is now {after!r}; "
                    "restore it, or choose another output.folder for a new run."
                )


def _find_checkpoint(store: CheckpointStore, config: RunConfig) -> Any:
    newest, mode = store.newest_good(), config.train.resume
    if newest is None:
        if mode == "must":
            raise ConfigError(f"train.resume is 'must', but {store.folder} holds no checkpoint.")
        return None
    if mode == "never":
        raise ConfigError(
            f"{store.folder} holds checkpoints of an earlier run (newest: step {newest.step}), and train.resume is "
            "'never'; choose another output.folder, or train.resume auto to go on."
        )
    _check_same_run(store.read_host(newest), config)
    return newest


@dataclasses.dataclass
class _Finetuning:
    """The parts of one run that its stages share."""

    prepared: Prepared
    store: CheckpointStore
    evaluator: Evaluator
    callbacks: MeasuredCallbacks
    say: Say

    def before(self, newest: Any) -> dict[str, float]:
        if newest is not None:
            return dict(self.store.read_host(newest)["before"])
        run = self.prepared
        params = shard(run.model.params, param_shardings(run.model.params, run.leaf_axes, run.mesh))
        return self.evaluator.metrics(params)

    def parts(self, compiled: CompiledRun, plan: BatchPlan, before: Mapping[str, float]) -> LoopParts:
        run, train = self.prepared, self.prepared.config.train
        metric, higher = run.metric
        evaluate_every = train.evaluate_every or run.steps_per_epoch
        return LoopParts(
            step=compiled.step,
            evaluate=lambda state: self.evaluator.metrics(join_params(state, compiled.kinds)),
            pipeline=run.pipeline,
            store=self.store,
            callbacks=self.callbacks,
            mesh=run.mesh,
            config=train,
            total_steps=run.total_steps,
            evaluate_every=evaluate_every,
            checkpoint_every=train.checkpoint_every or evaluate_every,
            metric=metric,
            higher_is_better=higher,
            kinds=compiled.kinds,
            host={"config": run.config.to_dict(), "plan": dataclasses.asdict(plan), "before": dict(before)},
        )

    def train(self, plan: BatchPlan, newest: Any, before: Mapping[str, float]) -> tuple[LoopResult, CompiledRun]:
        run = self.prepared
        compiled = compile_run(run, plan, self.say)
        progress, first_step = Progress(), 0
        if newest is None:
            state = compiled.initial_state()
        else:
            host = self.store.read_host(newest)
            state = self.store.restore(newest, compiled.like, kinds=compiled.kinds)
            run.pipeline.set_state(host["data"])
            progress, first_step = Progress(**host["progress"]), newest.step
            self.say(f"Resuming at step {newest.step} from {self.store.folder}.")
        self.callbacks.on_start(run_info(run, first_step))
        if not first_step:
            self.callbacks.on_evaluation(0, before)
        return run_loop(self.parts(compiled, plan, before), state, progress), compiled

    def train_with_fallback(self, newest: Any, before: Mapping[str, float]) -> tuple[LoopResult, CompiledRun]:
        run, plan = self.prepared, plan_batches(self.prepared, self.say)
        start = run.pipeline.get_state()
        while True:
            try:
                return self.train(plan, newest, before)
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                if run.config.train.batch_size != "auto" or not is_out_of_memory(error):
                    raise
                plan = halve(plan)
                run.pipeline.set_state(start)
                newest = self.store.newest_good()
                self.say(f"Out of memory: micro batches are halved to {plan.micro_batch}, the global batch stays.")

    def best(self, result: LoopResult, compiled: CompiledRun) -> tuple[TrainState, int]:
        if not self.prepared.config.train.load_best_at_end:
            return result.state, result.step
        found = self.store.best_good()
        if found is None or found.step == result.step:
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


def finetune(config: RunConfig, say: Say = say_on_first, extra_callbacks: Sequence[Callback] = ()) -> FinetuneResult:
    """Fine-tunes a model as a config says.

    A run that was interrupted goes on where its newest good checkpoint stands. The folder of the run then holds the
    model with its card, checkpoints, metrics and plots.

    Args:
      config: The run.
      say: Where lines for the user go.
      extra_callbacks: Who else is told what happens.

    Returns:
      The model, its metrics before and after, and why training ended.

    Raises:
      FlaxbertError: Bad config, data, model, mesh, memory or loss; each message says where and how to mend it.
    """
    prepared = prepare(config, say)
    say(describe(prepared))
    folder = pathlib.Path(config.output.folder)
    with CheckpointStore(
        folder / "checkpoints", keep=config.train.keep_checkpoints, higher_is_better=prepared.metric[1]
    ) as store:
        newest = _find_checkpoint(store, config)
        callbacks = build_callbacks(prepared, folder, extra_callbacks)
        run = _Finetuning(prepared, store, Evaluator(prepared), callbacks, say)
        try:
            before = run.before(newest)
            result, compiled = run.train_with_fallback(newest, before)
            if result.reason == "preempted":
                say(f"Asked to stop: saved step {result.step} in {store.folder}; the same command goes on from there.")
                state, step = result.state, result.step
            else:
                state, step = run.best(result, compiled)
            return _finish(run, result, compiled, state, step, before)
        finally:
            callbacks.close()


def _finish(
    run: _Finetuning,
    result: LoopResult,
    compiled: CompiledRun,
    state: TrainState,
    step: int,
    before: Mapping[str, float],
) -> FinetuneResult:
    params = join_params(state, compiled.kinds)
    prepared = run.prepared
    if result.reason == "preempted":
        callbacks_summary = {"step": result.step, "reason": result.reason, "seconds": result.seconds, "metrics": {}}
        run.callbacks.on_end(callbacks_summary)
        model = prepared.model.replace(params=to_host(params))
        folder = pathlib.Path(prepared.config.output.folder)
        history = result.progress.history
        return FinetuneResult(model, folder, result.reason, step, before, {}, {}, history)
    scores = score(prepared, lambda split: run.evaluator.score(params, split))
    summary = {
        "before": before,
        "step": step,
        "reason": result.reason,
        "seconds": result.seconds,
        "history": result.progress.history,
    }
    config = prepared.model.config
    config = config.replace(extra={**config.extra, **scores.changes}) if scores.changes else config
    model = prepared.model.replace(params=to_host(params), config=config)
    return write_outcome(prepared, model, scores, summary, run.callbacks, run.say)
