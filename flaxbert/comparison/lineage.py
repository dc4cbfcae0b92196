"""Where a compressed model comes from: the report that its folder carries, and the transforms before it."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from flaxbert.errors import WeightsError

REPORT_FILE = "compression_report.json"
"""File of a transform's own report in the folder of a compressed model."""

STEP_KEYS = (
    "transform",
    "bytes_before",
    "bytes_after",
    "num_leaves_changed",
    "kept_share",
    "max_relative_error",
    "rms_relative_error",
    "notes",
)
"""What the lineage keeps of each transform's report: all but the leaves."""


def read_compression_report(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the report that a folder carries, or None where it has none.

    Args:
      folder: A model folder.

    Raises:
      WeightsError: The file is no report of a transform.
    """
    file = folder / REPORT_FILE
    if not file.is_file():
        return None
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} can not be read ({error}); remove it, or compress the model again.") from error
    if not isinstance(document, dict) or not isinstance(document.get("transform"), str) or not _has_leaves(document):
        raise WeightsError(
            f"{file} is no report of a transform: it needs 'transform' and a list of 'leaves' with names. Remove it, or "
            "compress the model again."
        )
    return document


def _has_leaves(document: Mapping[str, Any]) -> bool:
    leaves, steps = document.get("leaves"), document.get("lineage", {"steps": []})
    named = isinstance(leaves, list) and all(isinstance(leaf, dict) and "name" in leaf for leaf in leaves)
    return named and isinstance(steps, dict) and isinstance(steps.get("steps"), list)


def _step(report: Mapping[str, Any]) -> dict[str, Any]:
    return {key: report[key] for key in STEP_KEYS if key in report}


def lineage_of(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns ``{"base_model": name, "steps": [...]}`` of a folder's report, the oldest transform first.

    Args:
      report: From ``read_compression_report``; None has no steps.
    """
    if report is None:
        return {"base_model": "", "steps": []}
    return dict(report.get("lineage") or {"base_model": "", "steps": [_step(report)]})


def with_lineage(
    report: Mapping[str, Any], source_name: str, source_report: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns a transform's report with the model that it began from and all transforms since.

    Args:
      report: The new report as plain values.
      source_name: Name of the model that was compressed; empty where it is not known.
      source_report: The report that this model's folder carries, or None.
    """
    earlier = lineage_of(source_report)
    lineage = {"base_model": earlier["base_model"] or source_name, "steps": [*earlier["steps"], _step(report)]}
    return {**report, "lineage": lineage}
