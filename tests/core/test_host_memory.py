"""Freed memory goes back to the system, and leaves go to the device unchanged."""

import jax
import numpy as np
import psutil

from flaxbert.core.arrays import QuantizedArray
from flaxbert.core.host_memory import place_on_device, return_freed_memory


def test_freed_blocks_are_given_back():
    return_freed_memory()
    process = psutil.Process()
    blocks = [np.ones(2**14) for _ in range(400)]  # 128 KiB each, which the C library keeps for later
    held = process.memory_info().rss
    del blocks[::2]
    kept = blocks[:]
    del blocks
    return_freed_memory()
    assert process.memory_info().rss < held - 15 * 2**20
    assert len(kept) == 200


def test_leaves_of_any_kind_are_placed_unchanged():
    leaf = QuantizedArray(np.ones((600, 600), np.int8), np.ones((1, 600), np.float32))
    placed = place_on_device(leaf)
    assert isinstance(placed.codes, jax.Array)
    assert np.array_equal(placed.codes, leaf.codes)
    assert np.array_equal(place_on_device(np.arange(3.0, dtype=np.float32)), [0, 1, 2])
