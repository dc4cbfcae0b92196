"""Where the entries of a zip archive lie, for archives whose entries are stored as they are.

Python's ``zipfile`` unpacks, and trusts sizes to do so; here nothing is unpacked. The directory at the end of the file names
the entries; the last record of the file, or its 64-bit form, says where the directory is. Every entry repeats its header
right before its bytes, and only that says how long the header is.
"""

import io
import pathlib
import struct

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.stored import Window, broken

LOCAL_HEADER = b"PK\x03\x04"
"""What an entry, and so an archive, starts with."""

LARGEST_DIRECTORY_BYTES = 1 << 24
"""Larger directories are refused; a storage of a torch archive takes some sixty bytes."""

_END, _END_BYTES, _LONGEST_COMMENT_BYTES = b"PK\x05\x06", 22, 65_535
_LOCATOR, _LOCATOR_BYTES = b"PK\x06\x07", 20
_LARGE_END, _LARGE_END_BYTES = b"PK\x06\x06", 56
_ENTRY, _ENTRY_BYTES, _LOCAL_HEADER_BYTES = b"PK\x01\x02", 46, 30
_LARGE_FIELDS, _IN_LARGE_FIELDS = 1, 0xFFFFFFFF
_ENCRYPTED = 1


def read_zip_directory(
    stream: io.BufferedReader, file: pathlib.Path, kind: str, size: int
) -> dict[str, tuple[int, int]]:
    """Reads the directory of an archive.

    Args:
      stream: The open file.
      file: Its path, for messages.
      kind: What errors call it.
      size: Its size in bytes.

    Returns:
      First byte and number of bytes of every entry by name.

    Raises:
      WeightsError: The directory is damaged, or an entry is compressed, encrypted, twice there, outside of the file or on top
        of another one.
    """
    begin, num_bytes = _find_directory(stream, file, kind, size)
    window = Window(stream, file, kind, begin, begin + num_bytes)
    listing: list[tuple[int, int, str]] = []
    while window.position < window.end:
        listing.append(_read_entry(window, file))
    entries: dict[str, tuple[int, int]] = {}
    position, before = 0, ""
    for header, length, name in sorted(listing):
        if name in entries:
            raise broken(file, kind, f"the archive has the entry '{name[:80]}' twice")
        if header < position:
            raise broken(file, kind, f"the entries '{before[:80]}' and '{name[:80]}' of the archive overlap")
        start = _data_start(stream, file, kind, header, begin)
        if start + length > begin:
            raise broken(file, kind, f"the entry '{name[:80]}' of the archive reaches into its directory (truncated)")
        entries[name] = (start, length)
        position, before = start + length, name
    return entries


def _find_directory(stream: io.BufferedReader, file: pathlib.Path, kind: str, size: int) -> tuple[int, int]:
    """Returns first byte and size of the directory."""
    tail_start = max(0, size - _END_BYTES - _LONGEST_COMMENT_BYTES)
    tail = Window(stream, file, kind, tail_start, size).take(size - tail_start)
    place = tail.rfind(_END)
    if place < 0 or place + _END_BYTES > len(tail):
        raise broken(file, kind, "it starts as a zip archive, but has no directory at its end (truncated)")
    num_bytes, begin = struct.unpack("<II", tail[place + 12 : place + 20])
    end = tail_start + place
    if tail[max(0, place - _LOCATOR_BYTES) :].startswith(_LOCATOR):
        large = int.from_bytes(tail[place - 12 : place - 4], "little")
        if large + _LARGE_END_BYTES > end:
            raise broken(file, kind, "the place of the archive's directory lies outside of the file")
        record = Window(stream, file, kind, large, end).take(_LARGE_END_BYTES)
        if not record.startswith(_LARGE_END):
            raise broken(file, kind, "the archive's directory is not where the file says")
        num_bytes, begin = struct.unpack("<QQ", record[40:56])
        end = large
    if begin + num_bytes > end:
        raise broken(file, kind, "the archive's directory lies outside of the file")
    if num_bytes > LARGEST_DIRECTORY_BYTES:
        raise broken(file, kind, f"the archive's directory has {num_bytes} bytes, more than {LARGEST_DIRECTORY_BYTES}")
    return begin, num_bytes


def _read_entry(window: Window, file: pathlib.Path) -> tuple[int, int, str]:
    """Returns where an entry's header is, the size of its bytes, and its name."""
    fixed = window.take(_ENTRY_BYTES)
    if not fixed.startswith(_ENTRY):
        raise window.problem("an entry of the archive's directory does not start as entries do")
    flags, method = struct.unpack("<HH", fixed[8:12])
    packed, length, name_bytes, extra_bytes, comment_bytes = struct.unpack("<IIHHH", fixed[20:34])
    header = int.from_bytes(fixed[42:46], "little")
    name = window.take(name_bytes).decode("utf-8", "replace")
    large = iter(_large_fields(window.take(extra_bytes)))
    window.skip(comment_bytes)
    length, packed, header = (
        next(large, value) if value == _IN_LARGE_FIELDS else value for value in (length, packed, header)
    )
    if method or flags & _ENCRYPTED or packed != length:
        raise WeightsError(
            f"{file} has the compressed or encrypted entry '{name[:80]}', but only entries that are stored as they are, "
            "as torch.save does it, are read. Unpack the archive and pack it again without compression (zip -0). A "
            "TorchScript program has such entries too: save model.state_dict() instead."
        )
    return header, length, name


def _large_fields(extra: bytes) -> tuple[int, ...]:
    """Returns the 64-bit numbers of an entry, which stand for those that do not fit into 32 bits."""
    position = 0
    while position + 4 <= len(extra):
        number, num_bytes = struct.unpack("<HH", extra[position : position + 4])
        content = extra[position + 4 : position + 4 + num_bytes]
        if number == _LARGE_FIELDS:
            return struct.unpack(f"<{len(content) // 8}Q", content[: len(content) // 8 * 8])
        position += 4 + num_bytes
    return ()


def _data_start(stream: io.BufferedReader, file: pathlib.Path, kind: str, header: int, end: int) -> int:
    """Returns where an entry's bytes start."""
    if header + _LOCAL_HEADER_BYTES > end:
        raise broken(file, kind, f"an entry of the archive at byte {header} lies outside of the file")
    fixed = Window(stream, file, kind, header, end).take(_LOCAL_HEADER_BYTES)
    if not fixed.startswith(LOCAL_HEADER):
        raise broken(file, kind, f"the archive has no entry at byte {header}, where one is due")
    return header + _LOCAL_HEADER_BYTES + sum(struct.unpack("<HH", fixed[26:30]))
