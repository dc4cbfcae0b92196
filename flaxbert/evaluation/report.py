"""What an evaluation shows to people: the report per label, the comparison before and after, and the tables they stand in."""

import dataclasses
import io
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any, TextIO, cast

import numpy as np

from flaxbert.evaluation.alignment import Arrays, align, metric_kind
from flaxbert.evaluation.bootstrap import Interval
from flaxbert.evaluation.metrics import LOWER_IS_BETTER, check_labels, indicator, scikit_learn

TextStream = TextIO | io.TextIOBase
"""Where text goes: a file, standard output, or what stands for them."""

PLAIN_WIDTH = 120
"""Columns of a table that does not go to a terminal."""

MOST_CONFUSION_LABELS = 12
"""Labels up to which a confusion matrix is shown as a matrix; above, its largest entries are listed."""


@dataclasses.dataclass(frozen=True)
class LabelScores:
    """How well one label, or an average over labels, is found.

    Attributes:
      precision: Share of the predictions of this label that are right; 0.0 without predictions.
      recall: Share of the examples of this label that are found; 0.0 without examples.
      f1: Harmonic mean of both; 0.0 where both are.
      support: Examples (or tokens) with this label.
    """

    precision: float
    recall: float
    f1: float
    support: int


@dataclasses.dataclass(frozen=True)
class ClassificationReport:
    """The scores per label of one evaluation.

    Attributes:
      labels: Names of all labels in order.
      scores: Scores per label, in the same order.
      averages: ``macro`` and ``weighted`` (multi-label: ``micro`` too) over the labels that occur or are predicted.
      accuracy: Share of right examples; None for multi-label.
      confusion: Counts ``[true label, predicted label]``; None for multi-label.
      text: scikit-learn's table.
    """

    labels: tuple[str, ...]
    scores: tuple[LabelScores, ...]
    averages: Mapping[str, LabelScores]
    accuracy: float | None
    confusion: np.ndarray | None
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values, ready for JSON; the inverse of ``from_dict``."""
        return {
            "labels": list(self.labels),
            "scores": [dataclasses.asdict(entry) for entry in self.scores],
            "averages": {name: dataclasses.asdict(entry) for name, entry in self.averages.items()},
            "accuracy": self.accuracy,
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "text": self.text,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ClassificationReport":
        """Returns the report that ``to_dict`` wrote.

        Args:
          values: What ``to_dict`` returned.
        """
        confusion = values["confusion"]
        return cls(
            labels=tuple(values["labels"]),
            scores=tuple(LabelScores(**entry) for entry in values["scores"]),
            averages={name: LabelScores(**entry) for name, entry in values["averages"].items()},
            accuracy=values["accuracy"],
            confusion=None if confusion is None else np.asarray(confusion, np.int64).reshape(len(confusion), -1),
            text=values["text"],
        )


def classification_report(
    task: str, problem_type: str, logits: Arrays, labels: Arrays, label_names: Sequence[str] = ()
) -> ClassificationReport | None:
    """Scores every label of a classification.

    Args:
      task: A task name or alias.
      problem_type: As for ``metric_kind``.
      logits: As for ``compute_metrics``.
      labels: As for ``compute_metrics``.
      label_names: Names in label order; empty takes ``LABEL_0``…

    Returns:
      The report, or None for tasks without label classes (regression, masked language models).

    Raises:
      DataError: As for ``compute_metrics``.
      TrainingError: An output is not finite.
    """
    kind = metric_kind(task, problem_type)
    if kind in ("regression", "masked_lm"):
        return None
    logits, predictions, truth = align(kind, logits, labels)
    if kind == "multi_label" or logits.ndim > truth.ndim:
        count = logits.shape[-1]
    else:
        count = len(label_names) or int(max(truth.max(), predictions.max())) + 1
    names = tuple(label_names) or tuple(f"LABEL_{index}" for index in range(count))
    multi_label = kind == "multi_label"
    if not multi_label:
        check_labels(truth, count)
    accuracy = None if multi_label else float(np.mean(truth == predictions))
    truth, predictions = indicator(truth), indicator(predictions)
    occurring = list(range(count)) if multi_label else sorted(set(truth.tolist()) | set(predictions.tolist()))
    averages = ("micro", "macro", "weighted") if multi_label else ("macro", "weighted")
    confusion = None if multi_label else scikit_learn().confusion_matrix(truth, predictions, labels=list(range(count)))
    return ClassificationReport(
        labels=names,
        scores=_label_scores(truth, predictions, count),
        averages={average: _average(truth, predictions, occurring, average) for average in averages},
        accuracy=accuracy,
        confusion=confusion,
        text=_text(truth, predictions, occurring, names),
    )


def _label_scores(truth: np.ndarray, predictions: np.ndarray, count: int) -> tuple[LabelScores, ...]:
    per_label = scikit_learn().precision_recall_fscore_support(
        truth, predictions, labels=list(range(count)), average=None, zero_division=0
    )
    return tuple(LabelScores(float(p), float(r), float(f), int(n)) for p, r, f, n in zip(*per_label, strict=True))


def _text(truth: np.ndarray, predictions: np.ndarray, labels: list[int], names: Sequence[str]) -> str:
    shown = [" ".join(names[index].split()) for index in labels]
    report = scikit_learn().classification_report
    return str(report(truth, predictions, labels=labels, target_names=shown, digits=4, zero_division=0))


def plain_label_text(labels: Sequence[str], scores: Sequence[LabelScores], averages: Mapping[str, LabelScores]) -> str:
    """Returns scores per label as plain columns, for tasks that scikit-learn does not report on.

    Args:
      labels: Names in order.
      scores: Scores in the same order.
      averages: Averages by name.
    """
    rows = [*zip(labels, scores, strict=True), *((f"{name} avg", entry) for name, entry in averages.items())]
    width = max((len(name) for name, _ in rows), default=0)
    head = f"{'':>{width}}  precision  recall  f1-score  support"
    lines = [
        f"{name:>{width}}  {entry.precision:9.4f}  {entry.recall:6.4f}  {entry.f1:8.4f}  {entry.support:7d}"
        for name, entry in rows
    ]
    return "\n".join([head, *lines])


def _average(truth: np.ndarray, predictions: np.ndarray, labels: list[int], average: str) -> LabelScores:
    precision, recall, f1, _ = scikit_learn().precision_recall_fscore_support(
        truth, predictions, labels=labels, average=average, zero_division=0
    )
    support = int(truth.sum()) if truth.ndim > 1 else len(truth)
    return LabelScores(float(precision), float(recall), float(f1), support)


def text_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    stream: TextStream | None = None,
    highlight: str = "",
) -> str:
    """Renders a table: coloured with lines for a terminal, plain ASCII for files and pipes.

    Args:
      headers: Column names; the first column is text (left), the others numbers (right).
      rows: Cells as text.
      title: Line above the table.
      stream: Where the text will be written; decides on colours and width. None: standard output.
      highlight: First cell of a row that stands out.

    Returns:
      The table, with a line end after each line.
    """
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    stream = sys.stdout if stream is None else stream
    terminal = bool(getattr(stream, "isatty", lambda: False)())
    target = rich.console.Console(file=cast("IO[str]", stream)) if terminal else None
    console = rich.console.Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=target.width if target else PLAIN_WIDTH,
        color_system="auto" if terminal else None,
        legacy_windows=False,
    )
    table = rich.table.Table(
        title=title or None,
        title_justify="left",
        box=rich.box.ROUNDED if terminal else rich.box.ASCII2,
        highlight=False,
    )
    for index, header in enumerate(headers):
        table.add_column(rich.text.Text(header), justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(rich.text.Text(" ".join(cell.split())) for cell in row), style="bold" if row[0] == highlight else ""
        )
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def format_metric(value: float) -> str:
    """Returns a metric as people read it: four digits after the point, or four significant ones for large values.

    Args:
      value: Any number.
    """
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def comparison_rows(
    before: Mapping[str, float], after: Mapping[str, float], interval: Interval | None = None, primary: str = ""
) -> list[list[str]]:
    """Returns the rows metric, before, after, change of a comparison.

    Args:
      before: Metrics before fine-tuning.
      after: Metrics after it, on the same examples.
      interval: Interval of the primary metric's value after.
      primary: The metric that chose the checkpoint; its row comes first.

    Returns:
      Text cells; a metric known on one side only shows ``-`` on the other.
    """
    names = sorted({*before, *after}, key=lambda name: (name != primary, list({**after, **before}).index(name)))
    rows = []
    for name in names:
        old, new = before.get(name), after.get(name)
        change = "-"
        if old is not None and new is not None:
            better = (new < old) == (name in LOWER_IS_BETTER)
            mark = "" if new == old else " better" if better else " worse"
            change = f"{'+' if new >= old else '-'}{format_metric(abs(new - old))}{mark}"
        shown = "-" if new is None else format_metric(new)
        if name == primary and interval is not None and new is not None:
            shown += f" [{format_metric(interval.low)}, {format_metric(interval.high)}]"
        rows.append([name, "-" if old is None else format_metric(old), shown, change])
    return rows


def comparison_text(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    primary: str = "",
    interval: Interval | None = None,
    title: str = "Before and after fine-tuning",
    stream: TextStream | None = None,
) -> str:
    """Renders the metrics before and after fine-tuning side by side.

    Args:
      before: Metrics before.
      after: Metrics after, on the same examples.
      primary: The metric that chose the checkpoint; comes first and stands out.
      interval: Its interval after, shown in brackets.
      title: Line above.
      stream: As for ``text_table``.

    Returns:
      The table as text.
    """
    rows = comparison_rows(before, after, interval, primary)
    return text_table(["metric", "before", "after", "change"], rows, title=title, stream=stream, highlight=primary)


def label_rows(report: ClassificationReport) -> list[list[str]]:
    """Returns the rows label, precision, recall, F1, examples of a report, with its averages at the end.

    Args:
      report: Scores per label.
    """
    entries = [*zip(report.labels, report.scores, strict=True)]
    entries += [(f"{name} average", scores) for name, scores in report.averages.items()]
    return [
        [name, *(f"{value:.4f}" for value in (scores.precision, scores.recall, scores.f1)), str(scores.support)]
        for name, scores in entries
    ]


LABEL_HEADERS = ("label", "precision", "recall", "F1", "examples")
"""Column names of ``label_rows``."""


def label_report_text(report: ClassificationReport, *, stream: TextStream | None = None) -> str:
    """Renders the scores per label.

    Args:
      report: Scores per label.
      stream: As for ``text_table``.

    Returns:
      The table as text.
    """
    return text_table(LABEL_HEADERS, label_rows(report), title="Scores per label", stream=stream)


def confusion_rows(report: ClassificationReport) -> tuple[list[str], list[list[str]]]:
    """Returns headers and rows of the counts of true (rows) against predicted (columns) labels.

    Above ``MOST_CONFUSION_LABELS`` labels, the rows are the 20 most frequent mistakes instead.

    Args:
      report: Scores per label.

    Returns:
      Headers and rows; both empty where the report has no confusion matrix.
    """
    if report.confusion is None:
        return [], []
    counts = report.confusion
    if len(report.labels) <= MOST_CONFUSION_LABELS:
        rows = [[name, *map(str, row)] for name, row in zip(report.labels, counts.tolist(), strict=True)]
        return ["true \\ predicted", *report.labels], rows
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:20]
    pairs = [divmod(int(place), len(report.labels)) for place in order]
    rows = [[report.labels[i], report.labels[j], str(mistakes[i, j])] for i, j in pairs if mistakes[i, j]]
    return ["true", "predicted instead", "examples"], rows


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; cells are escaped so that no label can break out of its cell.

    Args:
      headers: Column names; the first column is left-aligned, the others right.
      rows: Cells as text.
    """
    lines = [headers, ["---", *(["---:"] * (len(headers) - 1))]]
    cells = [[cell if index == 1 else markdown_cell(cell) for cell in row] for index, row in enumerate([*lines, *rows])]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def markdown_cell(text: str) -> str:
    """Returns text as one line that Markdown shows as it is.

    Args:
      text: Anything, for example a label name.
    """
    plain = " ".join(text.split())
    for character, escaped in (
        ("\\", "\\\\"),
        ("&", "&amp;"),
        ("<", "&lt;"),
        ("|", "\\|"),
        ("`", "\\`"),
        ("*", "\\*"),
        ("[", "\\["),
    ):
        plain = plain.replace(character, escaped)
    return plain
