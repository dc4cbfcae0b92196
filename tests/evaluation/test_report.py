"""Reports for people: right numbers, and text that stays whole whatever the labels are called."""

import io
import json

import numpy as np
import pytest

from flaxbert.evaluation.bootstrap import Interval
from flaxbert.evaluation.metrics import compute_metrics
from flaxbert.evaluation.report import (
    ClassificationReport,
    classification_report,
    comparison_rows,
    comparison_text,
    confusion_rows,
    label_report_text,
    markdown_table,
    text_table,
)

SEQUENCE = "sequence-classification"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def three_labels():
    labels, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    return labels, np.eye(3)[predicted], ("a|b", "中文", "c")


def test_scores_per_label_by_hand(three_labels):
    labels, logits, names = three_labels
    report = classification_report(SEQUENCE, "", logits, labels, names)
    assert report.labels == names
    assert [scores.support for scores in report.scores] == [2, 2, 2]
    assert report.scores[1].precision == pytest.approx(2 / 3)
    assert report.scores[1].recall == 1.0
    assert report.scores[1].f1 == pytest.approx(4 / 5)
    assert report.accuracy == pytest.approx(4 / 6)
    assert report.confusion.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]


def test_averages_equal_the_metrics(three_labels):
    labels, logits, _ = three_labels
    report, values = classification_report(SEQUENCE, "", logits, labels), compute_metrics(SEQUENCE, "", logits, labels)
    assert report.averages["macro"].f1 == pytest.approx(values["f1_macro"])
    assert report.averages["weighted"].f1 == pytest.approx(values["f1_weighted"])


def test_averages_leave_out_labels_that_never_occur():
    labels = np.array([0, 1])
    report = classification_report(SEQUENCE, "", np.eye(4)[labels], labels)
    assert report.averages["macro"].f1 == compute_metrics(SEQUENCE, "", np.eye(4)[labels], labels)["f1_macro"] == 1.0
    assert [scores.f1 for scores in report.scores] == [1.0, 1.0, 0.0, 0.0]


def test_a_label_called_accuracy_does_not_hide_the_accuracy():
    labels = np.array([0, 1, 1])
    report = classification_report(SEQUENCE, "", np.eye(2)[[0, 1, 0]], labels, ("accuracy", "macro avg"))
    assert report.accuracy == pytest.approx(2 / 3)
    assert report.scores[0].support == 1


def test_multi_label_report():
    labels = np.array([[1, 0], [1, 1]])
    report = classification_report(SEQUENCE, "multi_label_classification", np.array([[1.0, -1.0], [-1.0, 1.0]]), labels)
    assert report.confusion is None
    assert report.accuracy is None
    assert report.averages["micro"].recall == pytest.approx(2 / 3)
    assert confusion_rows(report) == ([], [])


def test_one_column_of_labels():
    labels = np.array([[1], [1], [0]])
    report = classification_report(
        SEQUENCE, "multi_label_classification", np.array([[1.0], [-1.0], [-1.0]]), labels, ("spam",)
    )
    assert report.labels == ("spam",)
    assert (report.scores[0].precision, report.scores[0].recall, report.scores[0].support) == (1.0, 0.5, 2)
    assert report.averages["macro"].recall == 0.5
    assert "spam" in report.text


def test_no_report_without_classes():
    assert classification_report(SEQUENCE, "regression", np.zeros(2), np.zeros(2)) is None


def test_report_survives_json(three_labels):
    labels, logits, names = three_labels
    report = classification_report(SEQUENCE, "", logits, labels, names)
    again = ClassificationReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.to_dict() == report.to_dict()
    assert (again.confusion == report.confusion).all()


def test_tables_for_files_are_plain(three_labels):
    labels, logits, names = three_labels
    report = classification_report(SEQUENCE, "", logits, labels, names)
    text = label_report_text(report, stream=io.StringIO())
    assert "\x1b" not in text
    assert all(name in text for name in names)
    assert set(text) & set("─│╭") == set()


def test_tables_for_terminals_have_lines_and_colour(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = text_table(["metric", "value"], [["accuracy", "0.9"]], stream=Terminal(), highlight="accuracy")
    assert "╭" in text
    assert "\x1b[1m" in text


def test_label_names_are_not_read_as_markup():
    text = text_table(["label"], [["[bold]x[/bold]"], ["[/nonsense]"]], stream=io.StringIO())
    assert "[bold]x[/bold]" in text
    assert "[/nonsense]" in text


def test_comparison_says_what_became_better():
    rows = comparison_rows(
        {"accuracy": 0.5, "loss": 1.0, "mae": 2.0}, {"loss": 0.4, "accuracy": 0.75, "mae": 2.5}, None, "accuracy"
    )
    assert rows == [
        ["accuracy", "0.5000", "0.7500", "+0.2500 better"],
        ["loss", "1.0000", "0.4000", "-0.6000 better"],
        ["mae", "2.0000", "2.5000", "+0.5000 worse"],
    ]


def test_comparison_with_one_side_only_and_an_interval():
    rows = comparison_rows({}, {"accuracy": 0.75}, Interval(0.75, 0.7, 0.8), "accuracy")
    assert rows == [["accuracy", "-", "0.7500 [0.7000, 0.8000]", "-"]]
    assert "0.7500 [0.7000, 0.8000]" in comparison_text(
        {}, {"accuracy": 0.75}, primary="accuracy", interval=Interval(0.75, 0.7, 0.8)
    )


def test_no_change_is_neither_better_nor_worse():
    assert comparison_rows({"loss": 1.0}, {"loss": 1.0})[0][3] == "+0.0000"


def test_many_labels_show_the_largest_mistakes():
    count = 30
    labels = np.repeat(np.arange(count), 3)
    predicted = labels.copy()
    predicted[:3] = 7
    headers, rows = confusion_rows(classification_report(SEQUENCE, "", np.eye(count)[predicted], labels))
    assert headers == ["true", "predicted instead", "examples"]
    assert rows == [["LABEL_0", "LABEL_7", "3"]]


def test_markdown_cells_can_not_break_out():
    table = markdown_table(["label"], [["a | b\n| c <script>"]])
    assert table.splitlines()[-1] == "| a \\| b \\| c &lt;script> |"
    assert len(table.splitlines()) == 3
