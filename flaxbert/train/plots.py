"""PNG plots of a run, drawn from its ``metrics.jsonl``: loss, learning rate, metrics over steps, confusion matrix.

Figures are made with matplotlib's object interface, so nothing global changes and no display is needed.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.core.files import whole_file
from flaxbert.evaluation.report import ClassificationReport
from flaxbert.train.callbacks import END, EVALUATION, METRICS_FILE, TRAIN, read_metrics

COLORS = ("#1f5fa8", "#d1495b", "#2a8c6e", "#d98e04", "#7a4fa3", "#4a6572", "#b5651d", "#5b8e00")
"""Colours of curves, apart from each other in hue and brightness."""

DOTS_PER_INCH = 144
MOST_COUNTED_LABELS = 20
"""Labels up to which every cell of a confusion matrix carries its count."""

MOST_NAMED_LABELS = 60
"""Labels up to which a confusion matrix names each of them; above, about 20 of them are named."""

LONGEST_NAME = 24
"""Characters of a label name on an axis; longer names are cut."""

MOST_CURVES = 4
"""Metrics in the plot of metrics."""

UNIT_METRICS = ("accuracy", "f1", "precision", "recall", "matthews", "spearman", "pearson", "exact", "hamming")
"""Beginnings of the names of metrics that lie within [-1, 1] and share an axis."""


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure that belongs to no display.

    Args:
      width: Inches.
      height: Inches.
    """
    import matplotlib.backends.backend_agg
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    return figure


def _style(axes: Any, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=13, fontweight="bold", loc="left", pad=10)
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.tick_params(labelsize=10, colors="#444444")
    axes.grid(visible=True, color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")


def _save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
    return path


def _steps_axis(axes: Any, last_step: int) -> None:
    import matplotlib.ticker

    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=8, integer=True))
    axes.set_xlim(0, 1.015 * max(1, last_step))


def step_losses(entries: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and training losses of a run, one per step where the lines hold them, else one per line.

    Args:
      entries: Lines of ``metrics.jsonl``; a loss that was not finite is NaN.
    """
    steps: list[int] = []
    losses: list[float] = []
    for entry in entries:
        if entry["kind"] != TRAIN or "loss" not in entry:
            continue
        values = entry.get("step_losses") or [entry["loss"]]
        steps += range(entry["step"] - len(values) + 1, entry["step"] + 1)
        losses += [np.nan if value is None else float(value) for value in values]
    return np.asarray(steps, np.int64), np.asarray(losses, np.float64)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the running mean over a centred window, shorter at the ends; NaN values are left out.

    Args:
      values: A curve.
      window: Points in the window; an even number takes one more.
    """
    known, half = np.isfinite(values), window // 2
    kernel, middle = np.ones(2 * half + 1), slice(half, half + len(values))
    sums = np.convolve(np.where(known, values, 0.0), kernel)[middle]
    counts = np.convolve(known.astype(np.float64), kernel)[middle]
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _plot_loss(entries: Sequence[Mapping[str, Any]], path: pathlib.Path) -> pathlib.Path | None:
    steps, losses = step_losses(entries)
    held_out = [entry for entry in entries if entry["kind"] == EVALUATION and entry.get("loss") is not None]
    if not np.isfinite(losses).any():
        return None
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    _style(axes, "Training loss", "optimizer step", "loss")
    window = max(1, len(losses) // 25) | 1
    if window > 1:
        axes.plot(steps, losses, color=COLORS[0], alpha=0.25, linewidth=0.9, label="each step")
        axes.plot(steps, smooth(losses, window), color=COLORS[0], linewidth=2.0, label=f"mean of {window} steps")
    else:
        axes.plot(steps, losses, color=COLORS[0], linewidth=2.0, marker="o", markersize=3.5, label="training")
    for number, split in enumerate(sorted({entry.get("split", "validation") for entry in held_out}), start=1):
        points = [(e["step"], e["loss"]) for e in held_out if e.get("split", "validation") == split]
        axes.plot(
            *zip(*points, strict=True), color=COLORS[number], linewidth=1.6, marker="o", markersize=5, label=split
        )
    _steps_axis(axes, int(steps[-1]))
    low, high = np.nanmin(losses), np.nanmax(losses)
    if low > 0 and high / low > 200:
        axes.set_yscale("log")
    elif low >= 0:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=10)
    return _save(figure, path)


def _plot_learning_rate(entries: Sequence[Mapping[str, Any]], path: pathlib.Path) -> pathlib.Path | None:
    points = [
        (e["step"], e["learning_rate"]) for e in entries if e["kind"] == TRAIN and e.get("learning_rate") is not None
    ]
    if not points:
        return None
    figure = new_figure(8, 3.6)
    axes = figure.add_subplot()
    _style(axes, "Learning rate", "optimizer step", "learning rate")
    axes.plot(*zip(*points, strict=True), color=COLORS[2], linewidth=2.0, marker="o" if len(points) < 3 else "")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    axes.set_ylim(bottom=0)
    _steps_axis(axes, points[-1][0])
    return _save(figure, path)


def _metric_curves(entries: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in entries:
        if entry["kind"] != EVALUATION or entry.get("split", "validation") != "validation":
            continue
        for name, value in entry.items():
            wanted = name == metric or (name.startswith(UNIT_METRICS) and "/" not in name)
            if wanted and isinstance(value, int | float):
                curves.setdefault(name, []).append((entry["step"], float(value)))
    if metric in curves and not metric.startswith(UNIT_METRICS):
        return {metric: curves[metric]}
    distinct: dict[str, list[tuple[int, float]]] = {}
    for name in sorted(curves, key=lambda name: name != metric):
        if len(distinct) < MOST_CURVES and curves[name] not in distinct.values():
            distinct[name] = curves[name]
    return distinct


def _plot_metrics(entries: Sequence[Mapping[str, Any]], path: pathlib.Path, metric: str) -> pathlib.Path | None:
    curves = _metric_curves(entries, metric)
    if not curves:
        return None
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    _style(axes, "Validation metrics", "optimizer step", "value")
    for color, (name, points) in zip(COLORS, curves.items(), strict=False):
        chosen = name == metric or len(curves) == 1
        axes.plot(
            *zip(*points, strict=True), color=color, label=name, marker="o", markersize=5,
            linewidth=2.4 if chosen else 1.4, alpha=1.0 if chosen else 0.8, zorder=3 if chosen else 2,
        )  # fmt: skip
    if metric in curves:
        _mark_best(axes, curves[metric], metric)
    _steps_axis(axes, max(points[-1][0] for points in curves.values()))
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=10)
    return _save(figure, path)


def _mark_best(axes: Any, points: Sequence[tuple[int, float]], metric: str) -> None:
    from flaxbert.evaluation.report import LOWER_IS_BETTER

    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    step, value = max(points, key=lambda point: sign * point[1])
    axes.plot(
        [step],
        [value],
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor=COLORS[0],
        markeredgewidth=1.6,
    )
    axes.annotate(
        f"best {value:.4f}",
        (step, value),
        textcoords="offset points",
        xytext=(0, 10),
        ha="center",
        fontsize=10,
        color=COLORS[0],
    )


def drawable_names(labels: Sequence[str], kind: str = "label") -> list[str]:
    """Returns names that the fonts of this machine can draw, cut to ``LONGEST_NAME``; others become their number.

    Args:
      labels: Names of labels, or of something else.
      kind: What stands before the number of a name that can not be drawn.
    """
    import matplotlib.font_manager

    font = matplotlib.font_manager.get_font(matplotlib.font_manager.findfont("DejaVu Sans"))
    known = font.get_charmap()
    names = []
    for index, label in enumerate(labels):
        name = " ".join(label.split())
        name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        missing = not name or any(ord(character) not in known for character in name)
        names.append(f"{kind} {index}" if missing else name.replace("$", r"\$"))
    return names


def plot_confusion(report: ClassificationReport, path: str | pathlib.Path) -> pathlib.Path | None:
    """Draws the confusion matrix: colour is the share of each true label's examples, numbers are counts.

    Args:
      report: Scores per label.
      path: The PNG file.

    Returns:
      The file, or None where the report has no confusion matrix.
    """
    if report.confusion is None:
        return None
    counts = report.confusion
    names, count = drawable_names(report.labels), len(report.labels)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    size = min(14.0, max(4.6, 2.8 + 0.55 * count))
    figure = new_figure(size + 1.0, size)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    _style(axes, "Confusion matrix", "predicted label", "true label")
    axes.grid(visible=False)
    ticks = np.arange(count) if count <= MOST_NAMED_LABELS else np.arange(0, count, -(-count // 20))
    font_size = 10 if count <= 16 else 8 if count <= 36 else 6
    turned = count > 4 or max(len(name) for name in names) > 10
    axes.set_xticks(
        ticks, [names[tick] for tick in ticks], rotation=45 if turned else 0, ha="right" if turned else "center"
    )
    axes.set_yticks(ticks, [names[tick] for tick in ticks])
    axes.tick_params(labelsize=font_size, length=0)
    if count <= MOST_COUNTED_LABELS:
        for (row, column), number in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.55 else "#333333"
            axes.text(column, row, f"{number}", ha="center", va="center", fontsize=font_size, color=color)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("share of the true label", fontsize=10)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, length=0)
    return _save(figure, pathlib.Path(path))


def draw_plots(folder: str | pathlib.Path, metric: str = "") -> list[pathlib.Path]:
    """Draws all plots of a run into its ``plots/`` folder; can be called again at any time.

    Args:
      folder: Folder of the run with ``metrics.jsonl``; its ``end`` line may hold a ``report``.
      metric: The metric that chose the best checkpoint; stands out.

    Returns:
      The files ``loss.png``, ``learning_rate.png``, ``metrics.png`` and ``confusion_matrix.png``, those of them that the
      file has numbers for.

    Raises:
      DataError: There is no ``metrics.jsonl``, or a line of it is damaged.
    """
    folder = pathlib.Path(folder)
    entries = read_metrics(folder / METRICS_FILE)
    plots = folder / "plots"
    drawn = [
        _plot_loss(entries, plots / "loss.png"),
        _plot_learning_rate(entries, plots / "learning_rate.png"),
        _plot_metrics(entries, plots / "metrics.png", metric),
    ]
    reports = [entry["report"] for entry in entries if entry["kind"] == END and entry.get("report")]
    if reports:
        drawn.append(plot_confusion(ClassificationReport.from_dict(reports[-1]), plots / "confusion_matrix.png"))
    return [path for path in drawn if path is not None]
