"""Collectives: groups as HLO writes them, and the ring model against numbers worked out by hand."""

import numpy as np
import pytest

from flaxbert.planning.chips import CHIPS
from flaxbert.planning.links import HOP_SECONDS, Interconnect, transfer

V5E = CHIPS["v5e"]


def torus(rows, columns, chip=V5E, num_slices=1):
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    slices = np.repeat(np.arange(num_slices), rows * columns)
    return Interconnect(chip, np.tile(places, (num_slices, 1)), slices, (rows, columns))


def test_a_full_axis_is_a_ring_and_a_part_of_it_a_line():
    interconnect = torus(16, 16)
    ring = transfer("all-gather", 1e9, range(16), interconnect)
    assert ring.seconds == pytest.approx(15 / 16 * 1e9 / (2 * V5E.link_bandwidth) + 8 * HOP_SECONDS)
    line = transfer("all-gather", 1e9, range(8), interconnect)
    assert line.seconds == pytest.approx(7 / 8 * 1e9 / V5E.link_bandwidth + 7 * HOP_SECONDS)
    assert ring.link == line.link == "ici"


def test_both_axes_of_the_torus_work_at_once_and_all_reduce_takes_twice_as_long():
    interconnect = torus(16, 16)
    whole = transfer("all-reduce", 1e9, range(256), interconnect)
    assert whole.seconds == pytest.approx(2 * 255 / 256 * 1e9 / (4 * V5E.link_bandwidth) + 2 * 16 * HOP_SECONDS)


def test_groups_between_each_other_share_the_links():
    interconnect = torus(16, 16)
    every_second = transfer("reduce-scatter", 1e9, range(0, 16, 2), interconnect)
    assert every_second.seconds == pytest.approx(7 / 8 * 1e9 / V5E.link_bandwidth + 8 * HOP_SECONDS)


def test_between_slices_only_the_share_of_a_device_travels():
    interconnect = torus(16, 16, num_slices=2)
    found = transfer("all-reduce", 1e9, range(512), interconnect)
    inside = transfer("all-reduce", 1e9, range(256), interconnect)
    assert found.link == "dcn"
    assert found.seconds - inside.seconds == pytest.approx(2 / 2 * 1e9 / 256 / V5E.outer_bandwidth, rel=0.05)


def test_a_switch_has_no_axes():
    chip = CHIPS["h200"]
    interconnect = Interconnect(chip, np.arange(8)[:, None], np.zeros(8, np.int64), (8,))
    found = transfer("all-gather", 1e9, range(8), interconnect)
    assert found.seconds == pytest.approx(7 / 8 * 1e9 / chip.link_bandwidth, rel=0.01)
    assert transfer("all-reduce", 1e9, [3], interconnect).seconds == 0.0
