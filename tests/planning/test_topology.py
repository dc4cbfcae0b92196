"""Names of topologies, and what is said of wrong ones."""

import importlib.util

import jax
import pytest

from flaxbert.errors import ConfigError, DependencyError, MeshError
from flaxbert.planning.chips import CHIPS
from flaxbert.planning.topology import find_devices, make_interconnect, parse_topology, prepare_process


def test_names_are_read():
    found = parse_topology("v5p:4x4x8")
    assert (found.kind, found.shape, found.num_devices, found.platform) == ("v5p", (4, 4, 8), 128, "tpu")
    two = parse_topology("2*v5e:16x16")
    assert (two.num_slices, two.num_devices) == (2, 512)
    assert parse_topology("H200:8").platform == "gpu"
    assert "no absent GPU can be compiled for" in parse_topology("h200:8").describe()
    assert parse_topology("cpu:8").num_devices == 8


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5x:16x16", "'v5e'"),
        ("h20:8", "'h200'"),
        ("v5e", "v5e:16x16"),
        ("v5e:16", "has 1 sizes, but v5e has 2"),
        ("v5p:4x4", "v5p:4x4x4"),
        ("v5e:0x4", "size 0"),
        ("2*h200:8", "h200:16"),
        ("", "KIND:SIZES"),
    ],
)
def test_wrong_names_are_explained(name, expected):
    with pytest.raises(ConfigError) as caught:
        parse_topology(name)
    assert expected in str(caught.value)


def test_every_chip_has_peaks_and_says_where_they_are_from():
    for chip in CHIPS.values():
        assert chip.source
        assert chip.matmul_rate("bf16", False) == chip.peak_flops
        assert chip.matmul_rate("f8e4m3", True) == chip.matmul_flops["f32"]
        assert min(chip.memory_bytes, chip.memory_bandwidth, chip.link_bandwidth, chip.vector_operations) > 0


def test_a_missing_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"flaxbert\[tpu\]"):
        prepare_process(parse_topology("v5e:2x2"))


def test_more_virtual_devices_than_the_process_has_are_refused():
    assert len(jax.devices()) == 8  # starts the backend: before that, the process would get as many as it needs
    with pytest.raises(MeshError, match="512 virtual devices"):
        prepare_process(parse_topology("h200:512"))


def test_gpus_stand_in_nodes_of_eight():
    topology = parse_topology("h200:8")
    devices = find_devices(topology)
    interconnect = make_interconnect(topology, devices, CHIPS["h200"])
    assert len(devices) == 8
    assert interconnect.slices.tolist() == [0] * 8
