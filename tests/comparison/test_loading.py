"""A fresh process loads a model and says how far it grew."""

import pathlib

import pytest

from flaxbert.comparison.loading import measure_loading
from flaxbert.errors import WeightsError


@pytest.mark.slow
def test_a_fresh_process_grows(models, tmp_path):
    found = measure_loading(pathlib.Path(models["float"]))
    assert 0 < found.resident_bytes <= found.peak_bytes
    assert found.seconds > 0
    with pytest.raises(WeightsError, match=r"could not be loaded in a fresh process: .*does not exist"):
        measure_loading(tmp_path / "nothing")
