"""Fine-tuning from start to end: prepare, compile, resume, train, score before and after, save, report."""

import functools
import pathlib
from collections.abc import Mapping, Sequence

from flaxbert.config import RunConfig
from flaxbert.core.arrays import Params
from flaxbert.families.graph import finishes_first_token_alone
from flaxbert.registry.registration import check_registration
from flaxbert.train.callbacks import Callback
from flaxbert.train.checkpoint import CheckpointStore
from flaxbert.train.flops import NetworkWork
from flaxbert.train.goodput import TimeLedger
from flaxbert.train.loop import LoopResult
from flaxbert.train.recipes.evaluator import MUST_AGREE, Evaluator
from flaxbert.train.recipes.outcome import (
    FinetuneResult,
    build_callbacks,
    run_info,
    score,
    write_outcome,
)
from flaxbert.train.recipes.plan import finetuning_job
from flaxbert.train.recipes.pruned import finish_pruning, least_step, prune_while_training
from flaxbert.train.recipes.quantized import finish_quantization, quantize_while_training
from flaxbert.train.recipes.run import TrainingRun, find_checkpoint, to_host
from flaxbert.train.recipes.setup import Prepared, Say, describe, prepare, say_on_first
from flaxbert.train.throughput import MeasuredCallbacks


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
    ledger = TimeLedger()
    check_registration(config.output.register, config.output.registry)
    prepared = prepare(config, say)
    say(describe(prepared))
    folder = pathlib.Path(config.output.folder)
    with CheckpointStore(
        folder / "checkpoints", keep=config.train.keep_checkpoints, higher_is_better=prepared.metric[1]
    ) as store:
        newest = find_checkpoint(store, config.train, config.to_dict(), MUST_AGREE, say)
        model = prepared.model
        callbacks = build_callbacks(
            config.output,
            prepared.metric[0],
            folder,
            extra_callbacks,
            ledger,
        )
        evaluator = Evaluator(prepared)
        job = prune_while_training(finetuning_job(prepared), model.config, config.prune, say)
        job = quantize_while_training(job, prepared, config.quantize)
        run = TrainingRun(
            job=job,
            pipeline=prepared.pipeline,
            steps_per_epoch=prepared.steps_per_epoch,
            evaluate=evaluator.metrics,
            metric=prepared.metric,
            config=config.to_dict(),
            info=functools.partial(run_info, prepared),
            store=store,
            callbacks=callbacks,
            say=say,
            networks=[
                NetworkWork(
                    model.config, model.task, finishes_first_token_alone(model.config, model.task, model.execution)
                )
            ],
            least_step=least_step(job),
        )
        try:
            before, result, step, params = run.complete(newest)
            return _finish(prepared, evaluator, callbacks, params, result, step, before, say)
        finally:
            callbacks.close()


def _finish(
    prepared: Prepared,
    evaluator: Evaluator,
    callbacks: MeasuredCallbacks,
    params: Params,
    result: LoopResult,
    step: int,
    before: Mapping[str, float],
    say: Say,
) -> FinetuneResult:
    if result.reason == "preempted":
        callbacks_summary = {"step": result.step, "reason": result.reason, "seconds": result.seconds, "metrics": {}}
        callbacks.on_end(callbacks_summary)
        model = prepared.model.replace(params=to_host(params))
        folder = pathlib.Path(prepared.config.output.folder)
        history = result.progress.history
        return FinetuneResult(model, folder, result.reason, step, before, {}, {}, history)
    scores = score(prepared, lambda split: evaluator.score(params, split))
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
    if prepared.config.prune.is_on:
        model, pruned = finish_pruning(model, prepared.config.prune)
        say(pruned)
    if prepared.config.quantize.is_on:
        model, quantized = finish_quantization(model)
        say(quantized)
    return write_outcome(prepared, model, scores, summary, callbacks, say)
