"""Rows of arrays, and errors that travel as rows."""

import numpy as np
import pytest

from flaxbert.cluster.rows import RowWorker, pack_arrays, unpack_arrays
from flaxbert.errors import DataError


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"ids": np.arange(6, dtype=np.int32).reshape(2, 3), "mask": np.array([True, False])},
        {"none": np.zeros((0, 2), np.int64), "text": np.array("naïve"), "values": np.array([1.5], np.float32)},
    ],
)
def test_arrays_come_back_as_they_were(arrays):
    found = unpack_arrays(pack_arrays(arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


class Halver(RowWorker):
    def work(self, number, arrays):
        if arrays["value"] % 2:
            raise DataError(f"row {number} is odd")
        return {"half": np.array(arrays["value"] // 2)}


def test_an_error_travels_as_a_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worker = Halver(str(tmp_path))
    good = worker({"number": 3, "content": pack_arrays({"value": np.array(8)})})
    assert (good["number"], good["error"]) == (3, "")
    assert unpack_arrays(good["content"])["half"] == 4
    bad = worker({"number": 4, "content": pack_arrays({"value": np.array(7)})})
    assert (bad["number"], bad["error"], bad["message"]) == (4, "DataError", "row 4 is odd")


def test_a_folder_that_a_node_does_not_have_is_named(tmp_path):
    worker = Halver(str(tmp_path / "nowhere"))
    bad = worker({"number": 0, "content": pack_arrays({"value": np.array(8)})})
    assert bad["error"] == "ClusterError"
    assert "nowhere of the launching process is not there on node" in bad["message"]
