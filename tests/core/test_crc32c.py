"""CRC-32C: the published check values, and the lanes against a loop over bytes."""

import numpy as np
import pytest

from flaxbert.core.crc32c import crc32c, unmask


def _plain(data):
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (b"\0" * 32, 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_published_values(data, expected):
    assert crc32c(data) == expected


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1023, 4097, 40_001])
def test_lanes_equal_a_loop(size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    assert crc32c(data) == crc32c(data.tobytes()) == _plain(data.tobytes())


def test_blocks_are_joined():
    data = np.random.default_rng(0).integers(0, 256, (1 << 20) + 2**19 + 77, np.uint8)
    whole = crc32c(data)
    assert whole == _by_table(data.tobytes())
    data[12345] ^= 1
    assert crc32c(data) != whole


def _by_table(data):
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    state = 0xFFFFFFFF
    for byte in data:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def test_unmask():
    checksum = crc32c(b"foo")
    masked = (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert unmask(masked) == checksum
