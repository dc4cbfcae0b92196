"""Size, quality and speed as pictures, with the models that no other beats in both."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from flaxbert.comparison.results import Comparison, ModelResult
from flaxbert.comparison.speed import Latency
from flaxbert.train.plots import COLORS, drawable_names, new_figure

MARKERS = "osD^vPX*"
"""Marks that tell models apart without colour."""


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a picture.

    Attributes:
      ink: Text.
      grid: Lines behind the points.
      front: The line of the front.
      colors: Points.
    """

    ink: str
    grid: str
    front: str
    colors: tuple[str, ...]


LIGHT = Theme(ink="#26323b", grid="#dfe4e8", front="#6b7a86", colors=COLORS)
DARK = Theme(
    ink="#d5dde3",
    grid="#36424c",
    front="#93a3af",
    colors=("#7ab3f0", "#f08a97", "#6cd1ae", "#f2bd5c", "#bf9be3", "#9db3bf", "#e6a36a", "#a8d75b"),
)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture before it is drawn.

    Attributes:
      title: What it shows.
      x_label: What lies along the horizontal axis; less is better.
      y_label: What lies along the vertical axis.
      names: Names of the models.
      x: One value per model.
      y: One value per model.
      y_ranges: Low and high end of each ``y``, or None.
      higher_is_better: Whether more of ``y`` is better.
    """

    title: str
    x_label: str
    y_label: str
    names: tuple[str, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    y_ranges: tuple[tuple[float, float] | None, ...]
    higher_is_better: bool = True

    @property
    def front(self) -> tuple[int, ...]:
        """Numbers of the models on the Pareto front, from left to right."""
        sign = 1.0 if self.higher_is_better else -1.0
        return pareto_front([(x, sign * y) for x, y in zip(self.x, self.y, strict=True)])

    def describe(self) -> str:
        """Returns what the picture shows in words, for those who do not see it."""
        points = "; ".join(f"{n}: {x:.4g}, {y:.4g}" for n, x, y in zip(self.names, self.x, self.y, strict=True))
        front = ", ".join(self.names[index] for index in self.front)
        return f"{self.title}. {self.x_label} and {self.y_label} of each model: {points}. On the Pareto front: {front}."


def pareto_front(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Returns the points that no other beats: none has less ``x`` and not less ``y``, nor more ``y`` and not more ``x``.

    Args:
      points: Pairs ``x, y``; less of the first and more of the second is better.

    Returns:
      Their numbers, by rising ``x``.
    """
    best = [
        index
        for index, (x, y) in enumerate(points)
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]
    return tuple(sorted(best, key=lambda index: points[index]))


def _disk_sizes(models: Sequence[ModelResult]) -> tuple[str, tuple[float, ...]]:
    """Returns the label and values of the axis of sizes, in the unit that suits the largest."""
    sizes = [model.folder.file_bytes for model in models]
    unit, factor = ("GB", 1e9) if max(sizes) >= 2e9 else ("MB", 1e6) if max(sizes) >= 1e6 else ("kB", 1e3)
    return f"{unit} on disk", tuple(size / factor for size in sizes)


def _largest_batch(model: ModelResult) -> Latency | None:
    return max(model.latencies, key=lambda entry: (entry.length, entry.batch_size), default=None)


def panels(comparison: Comparison) -> tuple[Panel, ...]:
    """Returns the pictures that a comparison has numbers for: size and quality, time and quality, or size and speed.

    Args:
      comparison: What was found.
    """
    models, found = comparison.models, []
    judged = [model for model in models if model.quality is not None]
    timed = [(model, latency) for model in models if (latency := _largest_batch(model)) is not None]
    shapes = {(latency.batch_size, latency.length) for _, latency in timed}
    shape = max(shapes, key=lambda entry: (entry[1], entry[0]), default=(0, 0))
    timed = [(model, latency) for model, latency in timed if (latency.batch_size, latency.length) == shape]
    described = f"{shape[0]} rows of {shape[1]} tokens"
    if len(judged) > 1:
        found.append(_quality_panel("Size and quality", *_disk_sizes(judged), judged))
        both = [(model, latency) for model, latency in timed if model.quality is not None]
        times = tuple(latency.median_seconds * 1e3 for _, latency in both)
        if len(both) > 1:
            found.append(_quality_panel("Time and quality", f"ms for {described}", times, [model for model, _ in both]))
    elif len(timed) > 1:
        x_label, sizes = _disk_sizes([model for model, _ in timed])
        found.append(
            Panel(
                title="Size and speed",
                x_label=x_label,
                y_label=f"rows/s, {described}",
                names=tuple(model.folder.name for model, _ in timed),
                x=sizes,
                y=tuple(latency.rows_per_second for _, latency in timed),
                y_ranges=(None,) * len(timed),
            )
        )
    return tuple(found)


def _quality_panel(title: str, x_label: str, x: tuple[float, ...], models: Sequence[ModelResult]) -> Panel:
    qualities = [model.quality for model in models if model.quality is not None]
    metric, higher = qualities[0].primary, qualities[0].higher_is_better
    return Panel(
        title=title,
        x_label=x_label,
        y_label=metric if higher else f"{metric} (less is better)",
        names=tuple(model.folder.name for model in models),
        x=x,
        y=tuple(quality.metrics[metric] for quality in qualities),
        y_ranges=tuple((q.interval.low, q.interval.high) if q.interval is not None else None for q in qualities),
        higher_is_better=higher,
    )


def draw_panel(panel: Panel, theme: Theme) -> bytes:
    """Draws a picture as SVG with letters as shapes, so that it needs no fonts; equal panels give equal bytes.

    Args:
      panel: What to draw.
      theme: Its colours.

    Returns:
      The file.
    """
    import matplotlib

    figure = new_figure(5.6, 4.0 + 0.22 * -(-len(panel.names) // 2))
    axes = figure.add_subplot()
    _draw_points(axes, panel, theme)
    _color(axes, panel, theme)
    legend = figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_color(theme.ink)
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "flaxbert", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _draw_points(axes: Any, panel: Panel, theme: Theme) -> None:
    front = panel.front
    if len(front) > 1:
        points = [(panel.x[index], panel.y[index]) for index in front]
        axes.plot(*zip(*points, strict=True), color=theme.front, linewidth=1.4, linestyle="--", label="Pareto front")
    for index, name in enumerate(drawable_names(panel.names, "model")):
        color = theme.colors[index % len(theme.colors)]
        marker = MARKERS[(index + index // len(theme.colors)) % len(MARKERS)]
        ends = panel.y_ranges[index]
        y = panel.y[index]
        if ends is not None:
            axes.vlines(panel.x[index], *ends, color=color, linewidth=1.2, alpha=0.6)
        axes.plot(
            [panel.x[index]], [y], marker=marker, markersize=9, linestyle="none", color=color, label=name,
            markerfacecolor=color if index in front else "none", markeredgewidth=1.8, zorder=3,
        )  # fmt: skip


def _color(axes: Any, panel: Panel, theme: Theme) -> None:
    axes.set_title(panel.title, fontsize=12, fontweight="bold", loc="left", color=theme.ink)
    axes.set_xlabel(panel.x_label, fontsize=10, color=theme.ink)
    axes.set_ylabel(panel.y_label, fontsize=10, color=theme.ink)
    axes.tick_params(labelsize=9, colors=theme.ink)
    axes.grid(visible=True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(0.12)
    axes.set_xlim(0, 1.08 * max(panel.x))
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)


def as_data(svg: bytes) -> str:
    """Returns a picture as an address that holds it.

    Args:
      svg: From ``draw_panel``.
    """
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
