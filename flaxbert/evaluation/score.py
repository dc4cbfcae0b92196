"""What ``flaxbert evaluate`` does: labelled examples in, metrics with an interval and scores per label out."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from flaxbert.config import DataConfig, TaskConfig
from flaxbert.core.files import whole_file
from flaxbert.errors import ConfigError
from flaxbert.evaluation.bootstrap import Interval
from flaxbert.evaluation.report import ClassificationReport, format_metric, label_report_text, text_table
from flaxbert.model import Model
from flaxbert.tasks.base import Encoded, Scored, Setting, Task, setting_of
from flaxbert.tasks.registry import TASKS, find_task


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a model does on labelled examples.

    Attributes:
      num_examples: Number of examples.
      metrics: The task's metrics by name.
      primary: The metric that stands first.
      interval: Its 95 % bootstrap interval, or None where it has none.
      report: Scores per label; None for tasks without labels.
    """

    num_examples: int
    metrics: Mapping[str, float]
    primary: str
    interval: Interval | None
    report: ClassificationReport | None

    def to_text(self) -> str:
        """Returns the scores as tables."""
        rows = []
        for name, value in self.metrics.items():
            shown = format_metric(value)
            if name == self.primary and self.interval is not None:
                shown += f" [{format_metric(self.interval.low)}, {format_metric(self.interval.high)}]"
            rows.append([name, shown])
        title = f"{self.num_examples} examples"
        table = text_table(["metric", "value"], rows, title=title, highlight=self.primary)
        return table if self.report is None else f"{table}\n{label_report_text(self.report)}"

    def write(self, path: str) -> None:
        """Writes the scores as JSON; the file appears whole or not at all.

        Args:
          path: The file.
        """
        document = {
            "num_examples": self.num_examples,
            "metrics": dict(self.metrics),
            "primary": self.primary,
            "interval": None if self.interval is None else dataclasses.asdict(self.interval),
            "report": self.report.to_dict() if self.report is not None else None,
        }
        with whole_file(path) as partial:
            partial.write_text(json.dumps(document, indent=1), encoding="utf-8")


def read_labelled(
    model: Model, config: DataConfig, source: object, options: TaskConfig = TaskConfig()
) -> tuple[Task, Any, Setting]:
    """Reads labelled examples of a model's task.

    Args:
      model: A model with a task that reads examples.
      config: Columns, labels and format of the examples.
      source: File, folder, hub id, or an object that ``data.sources`` reads.
      options: What the task needs beyond texts and labels.

    Returns:
      The task, the examples, and the setting that goes with them.

    Raises:
      ConfigError: The model has no task that can be scored, or no examples are named.
      DataError: The examples are malformed or hold a label that the model does not know.
    """
    task = find_task(model.task)
    if task is None:
        raise ConfigError(f"evaluate scores {', '.join(TASKS)}; this model is for '{model.task}'.")
    if isinstance(source, str) and not source:
        raise ConfigError("No examples are named; give --examples FILE.")
    max_length = min(config.max_length or model.max_length, model.max_length)
    setting = setting_of(model.config, options, max_length, config)
    examples = task.read(source, setting, split=config.validation_split, limit=config.max_validation_examples)
    known = model.config.label_names if task.names_labels else ()
    kind = setting.problem_type or "single_label_classification"
    names, kind = task.find_labels(examples, setting.replace(problem_type=kind), known)
    if task.names_labels and names != known and kind != "regression":
        raise ConfigError(f"data.labels is {names}, but the model's labels are {known}.")
    return task, examples, setting.replace(labels=names, problem_type=kind)


def _run(
    model: Model, config: DataConfig, source: object, batch_size: int, options: TaskConfig
) -> tuple[Task, Any, Setting, Encoded, Any]:
    """Reads labelled examples and runs a model on them: task, examples, setting, what the network took and what it made of it."""
    task, examples, setting = read_labelled(model, config, source, options)
    encoded, outputs = model.run_task(examples, setting, batch_size=batch_size, labelled=True)
    return task, examples, setting, encoded, outputs


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a model made of labelled examples, before anything is summed up.

    Attributes:
      num_examples: Number of examples.
      primary: The metric that stands first.
      higher_is_better: Whether more of it is better.
      scored: Metrics, and what intervals are resampled from.
      decisions: What the model decided for each example, in their order.
      texts: The texts that it read, without second ones; of questions those that hold the answers.
    """

    num_examples: int
    primary: str
    higher_is_better: bool
    scored: Scored
    decisions: tuple[Any, ...]
    texts: tuple[str, ...] = ()


def judge(
    model: Model, config: DataConfig, source: object, *, batch_size: int = 32, options: TaskConfig = TaskConfig()
) -> Judged:
    """Runs a model on labelled examples of its task and compares its outputs with the references.

    Args:
      model: As for ``score_model``.
      config: As for ``score_model``.
      source: As for ``score_model``.
      batch_size: As for ``score_model``.
      options: As for ``score_model``.

    Returns:
      Metrics, rows for intervals, and decisions.

    Raises:
      ConfigError: The model has no task that can be scored, or no examples are named.
      DataError: The examples are malformed or hold a label that the model does not know.
    """
    task, examples, setting, encoded, outputs = _run(model, config, source, batch_size, options)
    metric, higher_is_better = task.primary(setting)
    predictions = task.decode(encoded, outputs, setting)
    return Judged(
        num_examples=len(encoded.examples),
        primary=metric,
        higher_is_better=higher_is_better,
        scored=task.score(encoded, outputs, setting),
        decisions=tuple(task.decision(prediction, setting) for prediction in predictions),
        texts=tuple(getattr(examples, "texts", None) or getattr(examples, "contexts", None) or ()),
    )


def score_model(
    model: Model,
    config: DataConfig,
    source: object,
    *,
    batch_size: int = 32,
    options: TaskConfig = TaskConfig(),
) -> Score:
    """Scores a model on labelled examples of its task.

    Args:
      model: A model with a task that reads examples.
      config: Columns, labels and format of the examples.
      source: File, folder, hub id, or an object that ``data.sources`` reads.
      batch_size: Most inputs computed together.
      options: What the task needs beyond texts and labels.

    Returns:
      The scores.

    Raises:
      ConfigError: The model has no task that can be scored, or no examples are named.
      DataError: The examples are malformed or hold a label that the model does not know.
    """
    task, _, setting, encoded, outputs = _run(model, config, source, batch_size, options)
    scored = task.score(encoded, outputs, setting)
    metric, _ = task.primary(setting)
    return Score(
        num_examples=len(encoded.examples),
        metrics=scored.metrics,
        primary=metric,
        interval=scored.interval(metric),
        report=scored.make_report(),
    )
