"""Reports of transforms remember what came before them."""

import json
import pathlib

import pytest

from flaxbert.cli.compression import REPORT_FILE
from flaxbert.comparison.lineage import lineage_of, read_compression_report, with_lineage
from flaxbert.errors import WeightsError


def test_two_transforms_in_a_row_are_both_remembered(models):
    report = read_compression_report(pathlib.Path(models["both"]))
    assert report["transform"] == "quantize"
    lineage = lineage_of(report)
    assert lineage["base_model"] == "float"
    assert [step["transform"] for step in lineage["steps"]] == ["prune", "quantize"]
    first, second = lineage["steps"]
    assert first["bytes_after"] == second["bytes_before"]
    assert "leaves" not in first
    assert read_compression_report(pathlib.Path(models["float"])) is None
    assert lineage_of(None) == {"base_model": "", "steps": []}


def test_a_report_without_lineage_is_a_step_of_its_own():
    older = {"transform": "sparsify", "bytes_before": 4, "leaves": []}
    assert lineage_of(older)["steps"] == [{"transform": "sparsify", "bytes_before": 4}]
    newer = with_lineage({"transform": "quantize", "leaves": []}, "name", older)
    assert [step["transform"] for step in newer["lineage"]["steps"]] == ["sparsify", "quantize"]
    assert newer["lineage"]["base_model"] == "name"


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"transform": 3, "leaves": []}', '{"transform": "a", "leaves": [{}]}',
     json.dumps({"transform": "a", "leaves": [], "lineage": []})],
)  # fmt: skip
def test_a_file_that_is_no_report_is_named(tmp_path, text):
    (tmp_path / REPORT_FILE).write_text(text)
    with pytest.raises(WeightsError, match=f"{REPORT_FILE}.*[Rr]emove it"):
        read_compression_report(tmp_path)
