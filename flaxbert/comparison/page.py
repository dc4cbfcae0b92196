"""The page of a comparison: one HTML file that needs nothing else."""

import importlib.resources
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from flaxbert.comparison.deviations import worst_leaves
from flaxbert.comparison.lineage import lineage_of
from flaxbert.comparison.picture import DARK, LIGHT, as_data, draw_panel, panels
from flaxbert.comparison.results import Comparison, ModelResult
from flaxbert.core.files import whole_file
from flaxbert.core.units import format_bytes, format_count
from flaxbert.evaluation.report import format_metric

PAGE_FILE = "comparison.html"
DATA_FILE = "comparison.json"
TEMPLATE = "page.html.jinja"

MOST_LEAVES = 12
"""Leaves of a model that the page lists, the worst first; the JSON file has all."""


def render_page(comparison: Comparison) -> str:
    """Returns the page of a comparison. Whatever models, labels and files are called is shown as it is and never taken for HTML.

    Args:
      comparison: What was found.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": format_count,
        "metric": format_metric,
        "percent": lambda share, digits=1: f"{share:.{digits}%}",
        "signed": lambda value: f"{value:+.4f}",
        "milliseconds": lambda seconds: f"{seconds * 1e3:.2f}",
    }
    text = importlib.resources.files("flaxbert.comparison").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(text).render(**_content(comparison))


def _content(comparison: Comparison) -> dict[str, Any]:
    drawn = [
        {"light": as_data(draw_panel(panel, LIGHT)), "dark": as_data(draw_panel(panel, DARK)), "text": panel.describe()}
        for panel in panels(comparison)
    ]
    front = {panel.names[index] for panel in panels(comparison)[:1] for index in panel.front}
    models = [_model(model, comparison) for model in comparison.models]
    return {
        "comparison": comparison,
        "date": comparison.date.replace("T", " ").replace("+00:00", " UTC"),
        "reference": comparison.reference.folder.name,
        "models": models,
        "others": models[1:],
        "pictures": drawn,
        "front": front,
        "has_quality": any(model.quality is not None for model in comparison.models),
        "shapes": _shapes(comparison),
        "layers": _layers(comparison),
        "refused": [
            (model.folder.name, what, reason) for model in comparison.models for what, reason in model.refused.items()
        ],
    }


def _model(model: ModelResult, comparison: Comparison) -> Mapping[str, Any]:
    reference = comparison.reference
    total = sum(model.products.values())
    return {
        "result": model,
        "name": model.folder.name,
        "size": model.folder.size,
        "share_of_files": model.folder.file_bytes / max(1, reference.folder.file_bytes),
        "share_of_memory": model.folder.size.size_bytes / max(1, reference.folder.size.size_bytes),
        "low_share": model.low_precision_share(comparison.settings.precision),
        "products": [(kind, count / total) for kind, count in model.products.items()] if total else [],
        "worst": worst_leaves(model.weights.leaves, MOST_LEAVES) if model.weights else (),
        "lineage": lineage_of(model.folder.report),
        "report": model.folder.report,
    }


def _shapes(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns the rows of the table of speed: a shape, and each model's figures for it or None."""
    shapes = {(entry.length, entry.batch_size) for model in comparison.models for entry in model.latencies}
    by_model = [{(entry.length, entry.batch_size): entry for entry in model.latencies} for model in comparison.models]
    return [
        {"length": length, "batch_size": rows, "entries": [found.get((length, rows)) for found in by_model]}
        for length, rows in sorted(shapes)
    ]


def _layers(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns the rows of the table of hidden states: a block of the reference, and each model's error there or None."""
    places = sorted({entry.reference_layer for model in comparison.models for entry in model.layers})
    others = comparison.models[1:]
    return [
        {"place": place, "entries": [next((e for e in m.layers if e.reference_layer == place), None) for m in others]}
        for place in places
    ]


def write_comparison(comparison: Comparison, folder: str | pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes the page and the data of a comparison; a folder that was made for them goes again when they can not be written.

    Args:
      comparison: What was found.
      folder: The folder; made where it does not exist.

    Returns:
      The page and the JSON file.
    """
    page = render_page(comparison)
    data = json.dumps(comparison.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    target = pathlib.Path(folder)
    made = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    done = False
    try:
        for name, text in ((DATA_FILE, data), (PAGE_FILE, page)):
            with whole_file(target / name) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
        done = True
    finally:
        if made and not done:
            shutil.rmtree(target)
    return target / PAGE_FILE, target / DATA_FILE
