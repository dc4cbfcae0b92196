"""As much of the protocol buffers encoding as TensorFlow's checkpoint index needs: fields by number."""

import struct
from collections.abc import Iterator

MOST_VARINT_BYTES = 10
"""Longest variable-length number."""


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Reads a number of variable length.

    Args:
      data: The bytes.
      position: Where it starts.

    Returns:
      The number, and the position after it.

    Raises:
      ValueError: The bytes end before, or the number is longer than 64 bits need.
    """
    value = 0
    for place in range(MOST_VARINT_BYTES):
        if position + place >= len(data):
            raise ValueError("a number is cut off")
        byte = data[position + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + place + 1
    raise ValueError("a number is too long")


def read_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields the fields of a message as number and value: numbers unsigned, everything with a length as bytes.

    Args:
      data: The message.

    Yields:
      One pair per field, in the order of the message.

    Raises:
      ValueError: The message is malformed.
    """
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = read_varint(data, position)
            yield number, value
            continue
        if kind == 2:
            size, position = read_varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field {number} has the unknown kind {kind}")
        if size > len(data) - position:
            raise ValueError(f"field {number} is cut off")
        content = data[position : position + size]
        position += size
        yield number, content if kind == 2 else struct.unpack("<Q" if kind == 1 else "<I", content)[0]
