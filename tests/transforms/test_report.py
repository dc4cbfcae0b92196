"""Reports: totals, JSON and the table."""

import json

import numpy as np

from flaxbert.transforms import CompressionReport, LeafReport, quantize
from tests.transforms.test_quantize import tree

LEAVES = (
    LeafReport("a.kernel", "sparse", 100, 400, 500, 0.5, 0.2, 0.1),
    LeafReport("b.kernel", "sparse", 300, 1200, 1500, 0.25, 0.1, 0.3),
    LeafReport("c.bias", "kept", 10, 40, 40),
)


def test_totals():
    report = CompressionReport("sparsify", LEAVES)
    assert (report.bytes_before, report.bytes_after) == (1640, 2040)
    assert [leaf.name for leaf in report.changed] == ["a.kernel", "b.kernel"]
    assert report.kept_share == (0.5 * 100 + 0.25 * 300) / 400
    assert (report.max_relative_error, report.rms_relative_error) == (0.2, 0.3)


def test_a_report_without_changes_or_leaves_has_totals_too():
    for leaves in ((), LEAVES[2:]):
        report = CompressionReport("quantize", leaves)
        assert report.changed == ()
        assert report.kept_share == 1.0
        assert report.max_relative_error == 0.0
        assert "0 leaves changed" in report.to_text()


def test_json_holds_all_leaves_and_totals():
    report = CompressionReport("sparsify", LEAVES, ("A note.",))
    data = json.loads(report.to_json())
    assert data == report.to_dict()
    assert data["bytes_after"] == 2040
    assert data["notes"] == ["A note."]
    assert [leaf["name"] for leaf in data["leaves"]] == ["a.kernel", "b.kernel", "c.bias"]
    assert data["leaves"][1]["kept_share"] == 0.25


def test_numbers_of_a_real_report_are_plain():
    data = json.loads(quantize(tree())[1].to_json())
    assert data["num_leaves_changed"] == 3
    assert not any(
        isinstance(value, np.generic) for leaf in quantize(tree())[1].to_dict()["leaves"] for value in leaf.values()
    )


def test_the_table_names_changed_leaves_with_shares_and_errors_and_ends_with_totals_and_notes():
    text = CompressionReport("sparsify", LEAVES, ("A note.",)).to_text()
    assert "a.kernel" in text
    assert "25.0%" in text
    assert "30.00%" in text
    assert "c.bias" not in text
    assert text.endswith(
        "2 leaves changed, 1 kept as they were.\nAll parameters: 0.0 MB before, 0.0 MB after.\nA note.\n"
    )
