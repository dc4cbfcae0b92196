"""Weights that are no numbers are counted, warned of once, and noted."""

import ml_dtypes
import numpy as np
import pytest

from flaxbert.core.arrays import QuantizedArray
from flaxbert.weights.finite import find_not_finite, note_not_finite
from flaxbert.weights.load import load_checkpoint
from tests.weights.tiny import change_tensors, write_tiny


def test_sound_arrays_say_nothing(tmp_path):
    huge = np.full((4, 4), np.finfo(np.float32).max)
    found = find_not_finite({"huge": huge, "codes": np.arange(3), "mask": np.ones(3, bool)})
    assert note_not_finite(found, tmp_path) == []


def test_counts_of_typed_and_narrow_arrays(tmp_path):
    quantized = QuantizedArray(codes=np.ones((12, 12), np.int8), scale=np.array([[np.inf] + [1.0] * 11], np.float32))
    narrow = np.array([np.nan, 1, np.nan], ml_dtypes.bfloat16)
    with pytest.warns(UserWarning, match="2 tensors hold values that are not finite"):
        (note,) = note_not_finite(find_not_finite({"a": quantized, "b": narrow, "c": np.ones(2)}), tmp_path)
    assert "'a' (0 NaN, 1 infinite of 144), 'b' (2 NaN, 0 infinite of 3)" in note


def test_loading_warns_once_and_the_account_says_it(tmp_path):
    folder = write_tiny(tmp_path / "model")

    def damage(tensors):
        tensors["classifier.weight"][0, :3] = [np.nan, np.inf, -np.inf]
        tensors["bert.pooler.dense.bias"][1] = np.nan

    change_tensors(folder, damage)
    with pytest.warns(UserWarning, match="not finite") as caught:
        loaded = load_checkpoint(folder)
    assert len(caught) == 1
    assert str(folder) in str(caught[0].message)
    (note,) = loaded.account.notes
    assert note.startswith("2 tensors hold values that are not finite: ")
    assert "'classifier.weight' (1 NaN, 2 infinite of 36)" in note
    assert "'bert.pooler.dense.bias' (1 NaN, 0 infinite of 12)" in note
    assert note in loaded.account.summary()
    assert load_checkpoint(folder, "fill-mask").account.notes == (), "tensors that are not used are not looked at"
