"""The Pareto front, and pictures of it."""

import base64
import xml.etree.ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxbert.comparison.picture import DARK, LIGHT, Panel, as_data, draw_panel, panels, pareto_front

NUMBERS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8)
PANEL = Panel(
    "Size", "MB", "accuracy", ("a", "<script>$x_1$", "模型"), (1.0, 2.0, 3.0), (0.5, 0.4, 0.9), ((0.4, 0.6), None, None)
)


@given(NUMBERS)
def test_the_front_holds_just_those_that_nothing_beats(points):
    front = pareto_front(points)
    assert front
    assert [points[index] for index in front] == sorted(points[index] for index in front)

    def beats(a, b):
        return a != b and a[0] <= b[0] and a[1] >= b[1]

    for index, point in enumerate(points):
        assert (index in front) == (not any(beats(other, point) for other in points))


def test_less_can_be_better():
    panel = Panel("t", "x", "loss", ("a", "b", "c"), (1.0, 2.0, 3.0), (0.5, 0.4, 0.9), (None,) * 3, False)
    assert panel.front == (0, 1)
    assert PANEL.front == (0, 2)
    assert "front: a, 模型." in PANEL.describe()


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_pictures_are_whole_and_the_same_each_time(theme):
    svg = draw_panel(PANEL, theme)
    assert draw_panel(PANEL, theme) == svg
    root = xml.etree.ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert not [node for node in root.iter() if node.tag.endswith(("script", "image"))]
    assert base64.b64decode(as_data(svg).split(",", 1)[1]) == svg


def test_a_comparison_has_the_pictures_that_its_numbers_allow(comparison):
    import dataclasses

    drawn = panels(comparison)
    assert [panel.title for panel in drawn] == ["Size and quality", "Time and quality"]
    assert drawn[0].x_label == "kB on disk"
    assert np.allclose(drawn[0].x, [model.folder.file_bytes / 1e3 for model in comparison.models])
    assert "2 rows of 16 tokens" in drawn[1].x_label
    plain = [dataclasses.replace(model, quality=None) for model in comparison.models]
    (only,) = panels(dataclasses.replace(comparison, models=tuple(plain)))
    assert only.title == "Size and speed"
    untimed = [dataclasses.replace(model, latencies=()) for model in plain]
    assert panels(dataclasses.replace(comparison, models=tuple(untimed))) == ()
