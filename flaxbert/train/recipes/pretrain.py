"""Pre-training from start to end: training, evaluation, a folder to fine-tune from."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import jax

from flaxbert.config import MaskingConfig, PretrainConfig
from flaxbert.core.trees import count_parameters
from flaxbert.data.pipeline import StepPipeline
from flaxbert.model import Model
from flaxbert.registry.registration import check_registration, register
from flaxbert.train.callbacks import Callback, RunInfo
from flaxbert.train.checkpoint import CheckpointStore
from flaxbert.train.goodput import TimeLedger
from flaxbert.train.loop import LoopResult
from flaxbert.train.provenance import public_name
from flaxbert.train.recipes.distillation_setup import ABOUT_TEACHERS
from flaxbert.train.recipes.outcome import MODEL_FOLDER, build_callbacks
from flaxbert.train.recipes.pretraining_setup import Pretraining, prepare_pretraining
from flaxbert.train.recipes.run import TrainingRun, find_checkpoint, to_host
from flaxbert.train.recipes.setup import Say, say_on_first

_MUST_AGREE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model", ("path", "family", "size", "architecture", "scan_layers", "precision")),
    (
        "data",
        ("corpora", "weights", "validation_rate", "row_length", "phases", "packing", "min_tokens", "max_pieces"),
    ),
    ("masking", tuple(field.name for field in dataclasses.fields(MaskingConfig))),
    (
        "objective",
        ("pairs", "pair_weight", "replaced_tokens", "replaced_weight", "generator", "generator_rate", "sharing"),
    ),
    ("train", ("optimizer", "batch_size", "target_batch_size", "num_steps", "num_epochs", "schedule", "learning_rate")),
    ("train", ("freeze", "seed", "metric")),
    *ABOUT_TEACHERS,
)


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """What a pre-training run gives back.

    Attributes:
      model: The model, with host parameters.
      folder: Folder of the run.
      reason: finished, early_stopping or preempted.
      step: Step of the parameters.
      before: Metrics before training.
      after: Metrics of the parameters; empty where the run was stopped.
      history: Every evaluation.
    """

    model: Model
    folder: pathlib.Path
    reason: str
    step: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    history: Sequence[Mapping[str, float]]


def pretrain(
    config: PretrainConfig, say: Say = say_on_first, extra_callbacks: Sequence[Callback] = ()
) -> PretrainResult:
    """Pre-trains a model as a config says; an interrupted run goes on where its newest good checkpoint stands.

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
    prepared = prepare_pretraining(config, say)
    folder = pathlib.Path(config.output.folder)
    with CheckpointStore(
        folder / "checkpoints", keep=config.train.keep_checkpoints, higher_is_better=prepared.metric[1]
    ) as store:
        newest = find_checkpoint(store, config.train, config.to_dict(), _MUST_AGREE, say)
        callbacks = build_callbacks(config.output, prepared.metric[0], folder, extra_callbacks, ledger)
        run = TrainingRun(
            job=prepared.jobs[0],
            other_shapes=prepared.jobs[1:],
            pipeline=StepPipeline(prepared.batches, num_workers=config.data.num_workers),
            steps_per_epoch=prepared.batches.steps_per_epoch,
            evaluate=prepared.evaluate,
            metric=prepared.metric,
            config=config.to_dict(),
            info=functools.partial(_run_info, prepared),
            store=store,
            callbacks=callbacks,
            say=say,
            networks=prepared.networks.work,
        )
        try:
            before, result, step, params = run.complete(newest)
            after = {} if result.reason == "preempted" else _metrics_at(step, result) or prepared.evaluate(params)
            callbacks.on_end({"step": step, "reason": result.reason, "seconds": result.seconds, "metrics": after})
            models = prepared.networks.trained(to_host(params))
        finally:
            callbacks.close()
            run.pipeline.close()
    if result.reason != "preempted" and jax.process_index() == 0:
        for name, model in models.items():
            model.save(folder / name, overwrite=True)
        say(", ".join(f"{name} {before[name]:.4g} -> {value:.4g}" for name, value in after.items() if name in before))
        say(f"The model is in {folder / MODEL_FOLDER} (step {step}, {result.reason}).")
        if config.output.register:
            say(_register(config, after))
    return PretrainResult(models["model"], folder, result.reason, step, before, after, result.progress.history)


def _register(config: PretrainConfig, metrics: Mapping[str, float]) -> str:
    """Adds the finished model to the registry that the run names; returns a line that says so."""
    source = config.model.path or config.teacher.path
    return register(
        config.output.register,
        config.output.registry,
        pathlib.Path(config.output.folder) / MODEL_FOLDER,
        source=source,
        origin=public_name(source),
        metrics=metrics,
        data={"corpora": [pathlib.Path(corpus).name for corpus in config.data.corpora]},
    )


def _metrics_at(step: int, result: LoopResult) -> dict[str, float]:
    """Returns the metrics of a step that the loop has evaluated, empty where it has not."""
    found = [entry for entry in result.progress.history if entry["step"] == step]
    return {name: value for name, value in found[-1].items() if name != "step"} if found else {}


def _run_info(prepared: Pretraining, first_step: int) -> RunInfo:
    return RunInfo(
        config=prepared.config,
        model_config=prepared.networks.main.config,
        total_steps=prepared.total_steps,
        first_step=first_step,
        resumed=first_step > 0,
        num_examples=prepared.batches.phases[0].mixture.num_rows,
        num_parameters=count_parameters(prepared.networks.params),
    )
