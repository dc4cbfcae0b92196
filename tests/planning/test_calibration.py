"""Peaks of this machine: plausible, shared out, and what they are applied to."""

import dataclasses

import pytest

from flaxbert.planning import calibration
from flaxbert.planning.calibration import measure_cpu, typical_seconds
from flaxbert.planning.chips import CHIPS


def test_the_median_run_counts():
    assert typical_seconds(lambda: None, 0.001) < 0.01


def test_virtual_devices_share_what_is_measured(monkeypatch):
    measured = {"_matmul_flops": 8e10, "_copy_bandwidth": 4e9, "_vector_operations": 1e9, "_operation_seconds": 1e-7}
    for name, value in measured.items():
        monkeypatch.setattr(calibration, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(calibration, "_cache_bytes", lambda: 1 << 20)
    chip = measure_cpu(8)
    assert chip.matmul_flops == {"f32": 1e10, "bf16": 1e10}
    assert chip.memory_bandwidth == 5e8
    assert chip.cache_bytes == 1 << 17
    assert chip.operation_seconds == 1e-7


def test_what_fits_into_the_cache_moves_faster():
    chip = dataclasses.replace(CHIPS["v5e"], cache_bytes=100, cache_bandwidth=10 * CHIPS["v5e"].memory_bandwidth)
    assert chip.memory_seconds(100) == pytest.approx(chip.memory_seconds(101) * 100 / 101 / 10)
    assert CHIPS["v5e"].memory_seconds(0) == 0.0


@pytest.mark.slow
def test_this_machine_is_measured():
    chip = measure_cpu()
    assert chip.matmul_flops["f32"] > 1e8
    assert chip.memory_bandwidth > 1e7
    assert chip.cache_bandwidth >= chip.memory_bandwidth
    assert 0 < chip.operation_seconds < 1e-3
