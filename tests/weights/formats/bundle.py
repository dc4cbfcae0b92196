"""A small writer of TensorFlow's checkpoint format, so that tests have files of every kind without TensorFlow."""

import pathlib
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from flaxbert.core.crc32c import crc32c

TYPES = {
    np.dtype(dtype): number
    for dtype, number in (
        (np.float32, 1), (np.float64, 2), (np.int32, 3), (np.uint8, 4), (np.int16, 5), (np.int8, 6), (np.int64, 9),
        (np.bool_, 10), (ml_dtypes.bfloat16, 14), (np.uint16, 17), (np.float16, 19), (np.uint32, 22), (np.uint64, 23),
    )
}  # fmt: skip


def varint(value: int) -> bytes:
    """Returns a number of variable length."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def field(number: int, value: int | bytes) -> bytes:
    """Returns a field of a message."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def masked(data: bytes) -> bytes:
    """Returns the checksum of bytes as files hold it."""
    checksum = crc32c(data)
    return ((((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def header(num_shards: int = 1, endianness: int = 0) -> bytes:
    """Returns the entry under the empty name."""
    return field(1, num_shards) + (field(2, endianness) if endianness else b"") + field(3, field(1, 1))


def describe(dtype: int, shape: Sequence[int], shard: int, offset: int, data: bytes, more: bytes = b"") -> bytes:
    """Returns the entry of one variable."""
    dims = b"".join(field(2, field(1, size)) for size in shape)
    places = (field(3, shard) if shard else b"") + (field(4, offset) if offset else b"")
    checksum = varint(6 << 3 | 5) + masked(data)
    return field(1, dtype) + field(2, dims) + places + field(5, len(data)) + checksum + more


def block(entries: Sequence[tuple[bytes, bytes]], restart_every: int = 16) -> bytes:
    """Returns a block of a table, without what follows it."""
    data, restarts, before = bytearray(), [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % restart_every == 0:
            restarts.append(len(data))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        data += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    for place in [*(restarts or [0]), len(restarts or [0])]:
        data += place.to_bytes(4, "little")
    return bytes(data)


def table(entries: Sequence[tuple[bytes, bytes]], per_block: int = 7, compression: int = 0) -> bytes:
    """Returns the file of a sorted table."""
    data, handles = bytearray(), []

    def append(content: bytes) -> bytes:
        handle = varint(len(data)) + varint(len(content))
        content += bytes([compression])
        data.extend(content + masked(content))
        return handle

    for start in range(0, len(entries), per_block):
        part = entries[start : start + per_block]
        handles.append((part[-1][0], append(block(part))))
    meta = append(block([]))
    footer = meta + append(block(handles, restart_every=1))
    return bytes(data) + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


def write_bundle(prefix: pathlib.Path, variables: Mapping[str, np.ndarray], num_shards: int = 1) -> pathlib.Path:
    """Writes a checkpoint and returns its index."""
    shards = [bytearray() for _ in range(num_shards)]
    entries = {b"": header(num_shards)}
    for number, (name, array) in enumerate(sorted(variables.items())):
        shard, data = number % num_shards, array.tobytes()
        entries[name.encode()] = describe(TYPES[array.dtype], array.shape, shard, len(shards[shard]), data)
        shards[shard] += data
    for number, data in enumerate(shards):
        prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{num_shards:05d}").write_bytes(data)
    index = prefix.with_name(f"{prefix.name}.index")
    index.write_bytes(table(sorted(entries.items())))
    return index
