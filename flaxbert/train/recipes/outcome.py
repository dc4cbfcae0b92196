"""The end of a fine-tuning run: final scores, model folder, card, plots and the comparison with the start."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from flaxbert.config import DistillConfig, OutputConfig
from flaxbert.core.trees import count_parameters
from flaxbert.data.fingerprint import fingerprint
from flaxbert.evaluation.bootstrap import Interval
from flaxbert.evaluation.report import ClassificationReport, comparison_text, label_report_text
from flaxbert.model import Model
from flaxbert.registry.registration import register
from flaxbert.tasks.base import Scored
from flaxbert.tasks.load import TrainingData
from flaxbert.train.callbacks import METRICS_FILE, Callback, JsonLinesWriter, RunInfo, TensorBoardWriter
from flaxbert.train.goodput import TimeLedger
from flaxbert.train.model_card import DataSummary, ModelCardContent, build_model_card
from flaxbert.train.plots import draw_plots
from flaxbert.train.progress import ProgressReporter
from flaxbert.train.provenance import device_summary, library_versions, public_command, public_name
from flaxbert.train.recipes.setup import Prepared, Say
from flaxbert.train.throughput import MeasuredCallbacks

MODEL_FOLDER = "model"


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning run gives back.

    Attributes:
      model: The result: the best or the last parameters, as the config says.
      folder: Folder of the run.
      reason: finished, early_stopping or preempted.
      step: Optimizer step of the result.
      before: Metrics on the held-out examples before training.
      after: The same for the result.
      test: Metrics on the test examples; empty without any.
      history: Every evaluation during training.
    """

    model: Model
    folder: pathlib.Path
    reason: str
    step: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    test: Mapping[str, float]
    history: list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Final scores of a run.

    Attributes:
      after: Metrics on the held-out examples.
      test: Metrics on the test examples; empty without any.
      report: Scores per label; None for a regression.
      interval: Interval of the deciding metric.
      changes: What the model remembers of the scores, as keys of its ``config.json``.
    """

    after: Mapping[str, float]
    test: Mapping[str, float]
    report: ClassificationReport | None
    interval: Interval | None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def build_callbacks(
    output: OutputConfig,
    metric: str,
    folder: pathlib.Path,
    extra: Sequence[Callback] = (),
    ledger: TimeLedger | None = None,
) -> MeasuredCallbacks:
    """Returns who is told what happens: progress, ``metrics.jsonl`` and TensorBoard on the first process, nobody elsewhere.

    Args:
      output: What is written.
      metric: The metric that decides.
      folder: Folder of the run.
      extra: Who else is told, on every process.
      ledger: Where the time of the run goes; None counts from now on.
    """
    if jax.process_index() > 0:
        return MeasuredCallbacks(extra, ledger)
    listeners: list[Any] = [JsonLinesWriter(folder / METRICS_FILE), ProgressReporter(output.progress, metric)]
    if output.tensorboard:
        listeners.append(TensorBoardWriter(folder / "tensorboard"))
    return MeasuredCallbacks([*listeners, *extra], ledger)


def run_info(prepared: Prepared, first_step: int) -> RunInfo:
    """Returns what callbacks are told at the start.

    Args:
      prepared: The run.
      first_step: Step of the checkpoint that is resumed, or 0.
    """
    return RunInfo(
        config=prepared.config,
        model_config=prepared.model.config,
        total_steps=prepared.total_steps,
        first_step=first_step,
        resumed=first_step > 0,
        num_examples=prepared.data.report["train"].num_examples,
        num_parameters=count_parameters(prepared.model.params),
    )


def score(prepared: Prepared, score_split: Callable[[str], Scored]) -> Scores:
    """Scores final parameters on held-out and test examples.

    Args:
      prepared: The run.
      score_split: Scores the parameters on a split.

    Returns:
      The scores of both.
    """
    scored = score_split("validation")
    test = score_split("test").metrics if "test" in prepared.data.splits else {}
    return Scores(scored.metrics, test, scored.make_report(), scored.interval(prepared.metric[0]), scored.changes)


def _data_summary(prepared: Prepared) -> DataSummary:
    data: TrainingData = prepared.data
    train = data.report["train"]
    return DataSummary(
        train=prepared.config.data.train,
        validation=prepared.config.data.validation,
        num_train=train.num_examples,
        num_validation=data.report["validation"].num_examples,
        label_counts=train.label_counts,
        fingerprint=prepared.pipeline.get_state()["digest"],
        num_truncated=train.num_truncated,
        max_length=data.setting.max_length,
    )


def write_outcome(
    prepared: Prepared,
    model: Model,
    scores: Scores,
    summary: Mapping[str, Any],
    callbacks: MeasuredCallbacks,
    say: Say,
) -> FinetuneResult:
    """Writes the folder of a finished run and tells what came out.

    Args:
      prepared: The run.
      model: The result, with host parameters.
      scores: Its scores.
      summary: ``before``, ``step``, ``reason``, ``seconds`` and ``history``.
      callbacks: Who is told.
      say: Where lines for the user go.

    Returns:
      What the run gives back.
    """
    folder = pathlib.Path(prepared.config.output.folder)
    metric, _ = prepared.metric
    ending = {
        "step": summary["step"],
        "reason": summary["reason"],
        "seconds": summary["seconds"],
        "metrics": dict(scores.after),
        "metrics_before": dict(summary["before"]),
        "metrics_test": dict(scores.test),
        "report": scores.report.to_dict() if scores.report is not None else None,
    }
    callbacks.on_end(ending)
    if jax.process_index() == 0:
        plots = draw_plots(folder, metric) if prepared.config.output.plots else []
        card = build_model_card(_card(prepared, model, scores, summary, metric, [plot.name for plot in plots]))
        files = {"README.md": card}
        model.save(folder / MODEL_FOLDER, overwrite=True, files=files)
        _copy_plots(plots, folder / MODEL_FOLDER / "plots")
        if scores.report is not None:
            say(label_report_text(scores.report))
        say(comparison_text(summary["before"], scores.after, primary=metric, interval=scores.interval))
        say(f"The model is in {folder / MODEL_FOLDER} (step {summary['step']}, {summary['reason']}).")
        if prepared.config.output.register:
            say(_register(prepared, model, scores))
    return FinetuneResult(
        model=model,
        folder=folder,
        reason=summary["reason"],
        step=summary["step"],
        before=summary["before"],
        after=scores.after,
        test=scores.test,
        history=summary["history"],
    )


def _register(prepared: Prepared, model: Model, scores: Scores) -> str:
    """Adds the finished model to the registry that the run names; returns a line that says so."""
    config, report = prepared.config, prepared.data.report["train"]
    source = config.teacher.path if isinstance(config, DistillConfig) and not config.model.path else config.model.path
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    return register(
        config.output.register,
        config.output.registry,
        pathlib.Path(config.output.folder) / MODEL_FOLDER,
        source=source,
        origin=public_name(source),
        metrics={name: float(value) for name, value in scores.after.items() if math.isfinite(value)},
        data=fingerprint(
            prepared.data.train,
            unknown,
            report.label_counts,
            public_name(config.data.train),
            prepared.data.task.texts(prepared.data.splits["train"].examples),
        ),
    )


def _copy_plots(plots: list[pathlib.Path], target: pathlib.Path) -> None:
    import shutil

    if plots:
        target.mkdir(exist_ok=True)
    for plot in plots:
        shutil.copyfile(plot, target / plot.name)


def _card(
    prepared: Prepared,
    model: Model,
    scores: Scores,
    summary: Mapping[str, Any],
    metric: str,
    plots: list[str],
) -> ModelCardContent:
    return ModelCardContent(
        name=pathlib.Path(prepared.config.output.folder).name,
        task=model.task,
        config=prepared.config,
        model_config=model.config,
        data=_data_summary(prepared),
        metrics_after=scores.after,
        metrics_before=summary["before"],
        metrics_test=scores.test,
        primary=metric,
        interval=scores.interval,
        report=scores.report,
        step=summary["step"],
        seconds=summary["seconds"],
        num_parameters=count_parameters(model.params),
        versions=library_versions(),
        devices=device_summary(),
        command=public_command(sys.argv),
        plots=plots,
    )
