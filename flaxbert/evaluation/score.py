"""What ``flaxbert evaluate`` does: labelled examples in, metrics with an interval and scores per label out."""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np

from flaxbert.config import DataConfig, ProblemType
from flaxbert.core.files import whole_file
from flaxbert.data.columns import encode_labels, label_set, read_examples
from flaxbert.errors import ConfigError
from flaxbert.evaluation.alignment import align, metric_kind
from flaxbert.evaluation.bootstrap import Interval, bootstrap_interval
from flaxbert.evaluation.metrics import compute_metrics, primary_metric
from flaxbert.evaluation.report import (
    ClassificationReport,
    classification_report,
    format_metric,
    label_report_text,
    text_table,
)
from flaxbert.model import Model


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a model does on labelled examples.

    Attributes:
      num_examples: Number of examples.
      metrics: The task's metrics by name.
      primary: The metric that stands first.
      interval: Its 95 % bootstrap interval.
      report: Scores per label; None for a regression.
    """

    num_examples: int
    metrics: Mapping[str, float]
    primary: str
    interval: Interval
    report: ClassificationReport | None

    def to_text(self) -> str:
        """Returns the scores as tables."""
        rows = []
        for name, value in self.metrics.items():
            span = f" [{format_metric(self.interval.low)}, {format_metric(self.interval.high)}]"
            rows.append([name, format_metric(value) + (span if name == self.primary else "")])
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
            "interval": dataclasses.asdict(self.interval),
            "report": self.report.to_dict() if self.report is not None else None,
        }
        with whole_file(path) as partial:
            partial.write_text(json.dumps(document, indent=1), encoding="utf-8")


def score_model(model: Model, config: DataConfig, source: object, *, batch_size: int = 32) -> Score:
    """Scores a classifier on labelled examples.

    Args:
      model: A model for sequence classification.
      config: Columns, labels and format of the examples.
      source: File, folder, hub id, or an object that ``data.sources`` reads.
      batch_size: Most texts computed together.

    Returns:
      The scores.

    Raises:
      ConfigError: The model is no classifier, or no examples are named.
      DataError: The examples are malformed or hold a label that the model does not know.
    """
    if model.task != "sequence-classification":
        raise ConfigError(f"evaluate scores sequence classification; this model is for '{model.task}'.")
    if isinstance(source, str) and not source:
        raise ConfigError("No examples are named; give --examples FILE.")
    problem: ProblemType = model.config.problem_type or "single_label_classification"  # type: ignore[assignment]
    examples = read_examples(source, config, split=config.validation_split, limit=config.max_validation_examples)
    names = label_set(examples, problem, config, model.config.label_names)
    labels = encode_labels(examples, names, problem, config)
    if tuple(names) != tuple(model.config.label_names) and problem != "regression":
        raise ConfigError(f"data.labels is {tuple(names)}, but the model's labels are {model.config.label_names}.")
    max_length = min(config.max_length or model.max_length, model.max_length)
    texts = examples.texts if examples.pairs is None else list(zip(examples.texts, examples.pairs, strict=True))
    logits = np.asarray(
        model.predict_logits(texts, batch_size=batch_size, max_length=max_length, truncation=config.truncation)
    )
    metric, _ = primary_metric(model.task, problem, "", len(names))
    _, predictions, truth = align(metric_kind(model.task, problem), logits, labels)
    return Score(
        num_examples=len(labels),
        metrics=compute_metrics(model.task, problem, logits, labels, tuple(names)),
        primary=metric,
        interval=bootstrap_interval(predictions, truth, metric),
        report=classification_report(model.task, problem, logits, labels, tuple(names)),
    )
