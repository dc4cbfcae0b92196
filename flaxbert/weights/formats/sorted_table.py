"""Sorted string tables (the format of LevelDB), in which TensorFlow keeps the index of a checkpoint.

A file is blocks and, in its last 48 bytes, the places of two of them: the index block names every data block. A block is
entries whose keys leave out what they share with the one before, a list of restart points, one byte for its compression and
four for the checksum of all of it.
"""

import io
import pathlib
from collections.abc import Iterator

from flaxbert.core.crc32c import crc32c, unmask
from flaxbert.errors import WeightsError
from flaxbert.weights.formats.protobuf import read_varint
from flaxbert.weights.formats.stored import Window, broken, open_file

LARGEST_TABLE_BYTES = 1 << 26
"""Larger files are refused; the index of a large model has less than a megabyte."""

MAGIC_NUMBER = 0xDB4775248B80FB57
"""The last eight bytes of a table."""

_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_LONGEST_KEY_BYTES = 4096
_MOST_KEY_BYTES_PER_BYTE = 32


def read_sorted_table(file: pathlib.Path, kind: str) -> list[tuple[bytes, bytes]]:
    """Reads all entries of a table.

    Args:
      file: The file.
      kind: What errors call it.

    Returns:
      Keys and values in order.

    Raises:
      WeightsError: The file can not be read, is damaged, too large, or compressed.
    """
    with open_file(file) as (stream, size):
        if size > LARGEST_TABLE_BYTES:
            raise broken(file, kind, f"it has {size} bytes, more than {LARGEST_TABLE_BYTES}")
        if size < _FOOTER_BYTES:
            raise broken(file, kind, f"it has {size} bytes, which is less than the end of every table")
        footer = Window(stream, file, kind, size - _FOOTER_BYTES, size).take(_FOOTER_BYTES)
        if int.from_bytes(footer[-8:], "little") != MAGIC_NUMBER:
            raise broken(file, kind, "it does not end as a table does")
        try:
            return _read_blocks(stream, file, kind, footer, size)
        except ValueError as error:
            if isinstance(error, WeightsError):
                raise
            raise broken(file, kind, str(error)) from error


def _read_blocks(
    stream: io.BufferedReader, file: pathlib.Path, kind: str, footer: bytes, size: int
) -> list[tuple[bytes, bytes]]:
    _, position = read_varint(footer, 0)  # the place and the size of the block of filters, which no checkpoint has
    _, position = read_varint(footer, position)
    entries: list[tuple[bytes, bytes]] = []
    num_key_bytes, last_end = 0, 0
    for _, handle in _entries(_block(stream, file, kind, footer, position, size)):
        data = _block(stream, file, kind, handle, 0, size)
        begin = read_varint(handle, 0)[0]
        if begin < last_end:
            raise ValueError("two of its blocks overlap")
        last_end = begin + len(data)
        for key, value in _entries(data):
            num_key_bytes += len(key)
            if num_key_bytes > _MOST_KEY_BYTES_PER_BYTE * size:
                raise ValueError("its names repeat more than names of tensors do")
            if entries and key <= entries[-1][0]:
                raise ValueError("its names are not in order")
            entries.append((key, value))
    return entries


def _block(stream: io.BufferedReader, file: pathlib.Path, kind: str, handle: bytes, position: int, size: int) -> bytes:
    begin, position = read_varint(handle, position)
    num_bytes, _ = read_varint(handle, position)
    if begin + num_bytes + _TRAILER_BYTES > size - _FOOTER_BYTES:
        raise ValueError(f"a block of {num_bytes} bytes at byte {begin} lies outside of the file")
    content = Window(stream, file, kind, begin, size).take(num_bytes + _TRAILER_BYTES)
    if crc32c(content[:-4]) != unmask(int.from_bytes(content[-4:], "little")):
        raise ValueError(f"the block at byte {begin} does not fit its checksum")
    if compression := content[num_bytes]:
        method = {1: "snappy", 2: "zstd"}.get(compression, f"method {compression}")
        raise WeightsError(
            f"{file} is compressed ({method}); flaxbert reads uncompressed tables, as TensorFlow writes them for "
            "checkpoints. Save the checkpoint again with TensorFlow."
        )
    return content[:num_bytes]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise ValueError("a block has no end")
    num_restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * num_restarts
    if end < 0:
        raise ValueError(f"a block claims {num_restarts} restart points")
    position, key = 0, b""
    while position < end:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        num_bytes, position = read_varint(block, position)
        if shared > len(key) or unshared + num_bytes > end - position or shared + unshared > _LONGEST_KEY_BYTES:
            raise ValueError("an entry of a block is malformed")
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + num_bytes]
        position += num_bytes
