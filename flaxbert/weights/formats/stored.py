"""What all readers share: where a tensor lies in its file, bounded access to files, and how damage is told."""

import contextlib
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from flaxbert.core.crc32c import crc32c
from flaxbert.errors import WeightsError

MOST_AXES = 32
"""Tensors of more axes are refused."""

LARGEST_NUMBER = 2**62
"""Sizes and products of sizes from here on are refused; no file is that large."""

DTYPES_BY_NAME: dict[str, np.dtype] = {
    np.dtype(dtype).name: np.dtype(dtype)
    for dtype in (
        np.bool_, np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64,
        np.float16, ml_dtypes.bfloat16, np.float32, np.float64,
    )
}  # fmt: skip
"""The types that are read, by their numpy name."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies. Nothing of it is read until it is asked for.

    Attributes:
      name: Its name as torch would write it, whatever the format calls it.
      file: The file.
      dtype: Stored type.
      shape: Logical shape, which for kernels of Flax and TensorFlow has the axes of the stored one exchanged.
      offset: First byte, counted from the start of the file.
      strides: Steps along the axes, in elements; None where the elements lie in order.
      pieces: Where the bytes lie in several places: first byte and number of bytes of each; empty for one place.
      checksum: CRC-32C of the bytes, which reading compares; None where the format has none.
    """

    name: str
    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None = None
    pieces: tuple[tuple[int, int], ...] = ()
    checksum: int | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that the values need."""
        return math.prod(self.shape) * self.dtype.itemsize

    def transposed(self) -> "StoredTensor":
        """Returns the same tensor with its axes in reverse order; only tensors whose elements lie in order have one."""
        return dataclasses.replace(self, shape=self.shape[::-1], strides=strides_in_order(self.shape)[::-1])

    def read(self) -> np.ndarray:
        """Returns the tensor as an array of its own, maybe a view of one; half and double precision become float32.

        Raises:
          WeightsError: The file can not be read any more, became shorter, or its bytes do not fit their checksum.
        """
        itemsize = self.dtype.itemsize
        raw = self._read_bytes(span(self.shape, self.strides) * itemsize)
        if self.checksum is not None and crc32c(raw) != self.checksum:
            raise WeightsError(
                f"Tensor '{self.name}' of {self.file} does not fit its checksum: the file is damaged. Copy it again."
            )
        values = raw.view(self.dtype)
        if self.strides is None:
            values = values.reshape(self.shape)
        else:
            steps = [step * itemsize for step in self.strides]
            values = np.lib.stride_tricks.as_strided(values, self.shape, steps)
            if not values.flags.f_contiguous:
                values = np.ascontiguousarray(values)
        floating = self.dtype.kind == "f" or self.dtype == ml_dtypes.bfloat16
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(np.float32 if floating else self.dtype, copy=False)

    def _read_bytes(self, num_bytes: int) -> np.ndarray:
        parts = []
        for offset, size in self.pieces or ((self.offset, num_bytes),):
            try:
                parts.append(np.fromfile(self.file, np.uint8, size, offset=offset))
            except OSError as error:
                raise WeightsError(f"Tensor '{self.name}' of {self.file} can not be read: {error}.") from error
            if parts[-1].size != size:
                raise WeightsError(
                    f"Tensor '{self.name}' of {self.file} ends early; the file changed while it was read."
                )
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def strides_in_order(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the steps along the axes, in elements, of a tensor whose elements lie in order.

    Args:
      shape: Its shape.
    """
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def span(shape: Sequence[int], strides: Sequence[int] | None) -> int:
    """Returns how many elements lie from the first to the last one of a tensor.

    Args:
      shape: Its shape.
      strides: Steps along the axes, in elements; None where the elements lie in order.
    """
    if strides is None or 0 in shape:
        return math.prod(shape)
    return 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))


def broken(file: pathlib.Path, kind: str, problem: str) -> WeightsError:
    """Returns the error for a damaged file.

    Args:
      file: The file.
      kind: What it should be, for example ``safetensors``.
      problem: What is wrong with it.
    """
    return WeightsError(f"{file} is no whole {kind} file: {problem}. Download or copy it again.")


def are_sizes(values: Any) -> bool:
    """Returns whether values are a list or tuple of whole numbers that a size or an offset can have.

    Args:
      values: Whatever a file held.
    """
    return isinstance(values, list | tuple) and all(
        type(value) is int and 0 <= value < LARGEST_NUMBER for value in values
    )


def shape_problem(shape: Any, available_bytes: int, itemsize: int) -> str:
    """Returns what is wrong with a shape that a file claims, or an empty string.

    Args:
      shape: Whatever the file held.
      available_bytes: Bytes that the tensor can have at most.
      itemsize: Bytes of one element.
    """
    if not are_sizes(shape):
        return "has a malformed shape"
    if len(shape) > MOST_AXES:
        return f"has {len(shape)} axes, more than {MOST_AXES}"
    if math.prod(max(size, 1) for size in shape) * itemsize >= LARGEST_NUMBER:
        return f"has the shape {tuple(shape)}, which no file can hold"
    if math.prod(shape) * itemsize > available_bytes:
        return (
            f"of shape {tuple(shape)} needs {math.prod(shape) * itemsize} bytes, but there are {available_bytes} "
            "(truncated, or the shape is wrong)"
        )
    return ""


@contextlib.contextmanager
def open_file(file: pathlib.Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """Opens a file of weights.

    Args:
      file: The file.

    Yields:
      The stream, at its start, and the file's size in bytes.

    Raises:
      WeightsError: It can not be read, or is a Git LFS pointer.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            if stream.read(8) == b"version ":
                raise WeightsError(f"{file} is a Git LFS pointer, not the weights; run 'git lfs pull' in its folder.")
            stream.seek(0)
            yield stream, size
    except OSError as error:
        raise WeightsError(f"{file} can not be read: {error.strerror or error}.") from error


class Window:
    """A part of an open file that is read in order and never beyond its end.

    Sizes that the file claims are compared with what is left before anything is read, so that no claim costs memory.
    Several windows of one stream are read one after the other, not in turns.
    """

    def __init__(self, stream: io.BufferedIOBase, file: pathlib.Path, kind: str, start: int, end: int) -> None:
        self.file, self.kind, self.position, self.end = file, kind, start, end
        self._stream = stream
        stream.seek(start)

    def problem(self, text: str) -> WeightsError:
        """Returns the error for damage at the present place.

        Args:
          text: What is wrong.
        """
        return broken(self.file, self.kind, f"{text} (before byte {self.position})")

    def skip(self, num_bytes: int) -> int:
        """Goes on without reading.

        Args:
          num_bytes: How far.

        Returns:
          The place in the file where the skipped part starts.

        Raises:
          WeightsError: The window ends before.
        """
        if num_bytes > self.end - self.position:
            raise self.problem(f"{num_bytes} bytes are claimed where {self.end - self.position} are left")
        start = self.position
        self.position += num_bytes
        self._stream.seek(self.position)
        return start

    def take(self, num_bytes: int) -> bytes:
        """Reads bytes.

        Args:
          num_bytes: How many.

        Returns:
          Exactly so many.

        Raises:
          WeightsError: The window ends before.
        """
        if num_bytes > self.end - self.position:
            raise self.problem(f"{num_bytes} bytes are claimed where {self.end - self.position} are left")
        data = self._stream.read(num_bytes)
        if len(data) != num_bytes:
            raise self.problem("the file became shorter while it was read")
        self.position += num_bytes
        return data

    def take_number(self, num_bytes: int, byteorder: str = "little", signed: bool = False) -> int:
        """Reads a whole number.

        Args:
          num_bytes: Its size.
          byteorder: little or big.
          signed: Whether it can be negative.

        Returns:
          The number.
        """
        return int.from_bytes(self.take(num_bytes), "big" if byteorder == "big" else "little", signed=signed)
