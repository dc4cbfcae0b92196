"""Plots that are drawn from the file of metrics, for any labels and any numbers."""

import json

import numpy as np
import pytest

from flaxbert.architecture import ModelConfig
from flaxbert.config import RunConfig
from flaxbert.errors import DataError
from flaxbert.evaluation.report import classification_report
from flaxbert.train.callbacks import JsonLinesWriter, RunInfo
from flaxbert.train.plots import draw_plots, plot_confusion, smooth, step_losses
from tests.helpers import slow_unless


def report_of(names, examples=60):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(names), examples)
    logits = rng.normal(size=(examples, len(names)))
    logits[np.arange(examples), labels] += 2.0
    return classification_report("sequence-classification", "", logits, labels, names)


def write_metrics(folder, losses, report=None):
    writer = JsonLinesWriter(folder / "metrics.jsonl")
    writer.on_start(RunInfo(RunConfig(), ModelConfig(), total_steps=len(losses)))
    for step, loss in enumerate(losses, start=1):
        writer.on_log(step, {"loss": loss, "learning_rate": 1e-5 * step})
    writer.on_evaluation(len(losses), {"accuracy": 0.75, "f1_micro": 0.75, "f1_macro": 0.5, "loss": 0.9})
    writer.on_end({"step": len(losses), "report": report.to_dict() if report else None})


def pixels(path):
    import matplotlib.image

    image = matplotlib.image.imread(path)
    assert image.shape[0] > 300
    assert image.shape[1] > 400
    assert image[..., :3].std() > 0.05  # something is drawn on the white
    return image


def test_all_plots_of_a_run(tmp_path):
    write_metrics(tmp_path, [2.0, 1.5, 1.0, 0.9], report_of(("no", "yes")))
    paths = draw_plots(tmp_path, metric="accuracy")
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "plots/loss.png",
        "plots/learning_rate.png",
        "plots/metrics.png",
        "plots/confusion_matrix.png",
    ]
    first = [pixels(path) for path in paths]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(path.name for path in paths)
    again = [pixels(path) for path in draw_plots(tmp_path, metric="accuracy")]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_drawing_changes_nothing_global(tmp_path):
    import sys

    import matplotlib

    before, had_pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    write_metrics(tmp_path, [1.0])
    draw_plots(tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


@pytest.mark.parametrize(
    "losses",
    slow_unless(
        lambda losses: len(losses) != 2,
        [[1.0], [0.0, 0.0], [1e-8, 1.0, 1e4], [-1.0, 2.0], [float("nan"), 1.0, float("inf")]],
    ),
)
def test_odd_losses(tmp_path, losses):
    write_metrics(tmp_path, losses)
    assert {path.name for path in draw_plots(tmp_path)} == {"loss.png", "learning_rate.png", "metrics.png"}


def test_a_run_without_numbers_has_no_plots(tmp_path):
    write_metrics(tmp_path, [])
    assert [path.name for path in draw_plots(tmp_path, "accuracy")] == ["metrics.png"]
    write_metrics(tmp_path, [float("nan")])
    assert "loss.png" not in {path.name for path in draw_plots(tmp_path)}


def test_a_metric_outside_the_unit_interval_has_its_own_plot(tmp_path):
    writer = JsonLinesWriter(tmp_path / "metrics.jsonl")
    writer.on_start(RunInfo(RunConfig(), ModelConfig(), total_steps=2))
    writer.on_evaluation(1, {"perplexity": 50.0, "accuracy": 0.5})
    writer.on_evaluation(2, {"perplexity": 20.0, "accuracy": 0.6})
    assert pixels(draw_plots(tmp_path, "perplexity")[0]).shape[2] == 4


def test_no_file_no_plots(tmp_path):
    with pytest.raises(DataError, match="no file of metrics"):
        draw_plots(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("负面", "正面"),
        ("cost $5 and $6", "under_score^2", "back\\slash", ""),
        ("new\nline", "a name that is far too long for any axis of any plot", "ok"),
        tuple(f"intent {index}" for index in range(25)),
        tuple(f"intent {index}" for index in range(70)),
    ],
    ids=["chinese", "mathtext", "long", "twenty-five", "seventy"],
)
def test_confusion_matrix_of_any_labels(tmp_path, names):
    path = plot_confusion(report_of(names), tmp_path / "confusion.png")
    assert pixels(path).shape[2] == 4


def test_no_confusion_matrix_for_several_labels_at_once(tmp_path):
    labels = np.array([[1, 0], [1, 1]])
    report = classification_report("sequence-classification", "multi_label_classification", labels, labels)
    assert plot_confusion(report, tmp_path / "confusion.png") is None
    assert list(tmp_path.iterdir()) == []


def test_losses_of_single_steps_take_their_places():
    entries = [
        {"kind": "train", "step": 2, "loss": 1.5, "step_losses": [1.0, 2.0]},
        {"kind": "evaluation", "step": 2, "loss": 9.0},
        {"kind": "train", "step": 5, "loss": 3.0, "step_losses": [3.0, None, 3.0]},
        {"kind": "train", "step": 6, "loss": 4.0},
    ]
    steps, losses = step_losses(json.loads(json.dumps(entries)))
    assert steps.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(losses, [1.0, 2.0, 3.0, np.nan, 3.0, 4.0])


def test_running_mean_leaves_out_what_is_not_known():
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0, np.nan, 4.0]), 3), [1.5, 1.5, 3.0, 4.0])
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0]), 10), [1.5, 1.5])
    assert np.isnan(smooth(np.array([np.nan]), 1)).all()
