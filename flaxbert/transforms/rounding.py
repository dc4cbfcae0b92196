"""Rounding of weights to few levels: grids, codes, the ways codes lie in bytes, and rounding that makes up for its own error.

A grid has a scale and an offset for every group of weights: level ``k`` stands for ``k * scale + offset``. Everything here works on the host in numpy.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from flaxbert.config.quantization import QuantizationSpec

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Scale of an all-zero group: the smallest normal number, which no device flushes to zero."""

CLIPPED = tuple(np.float32(share) for share in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7))
"""Shares of a group's range that are tried as the range of the codes."""

WIDELY_CLIPPED = tuple(np.linspace(1.0, 0.1, 19, dtype=np.float32))
"""The same where few levels, or weights far from the rest, may want a much smaller range."""

TERNARY_THRESHOLD = 0.7
"""Weights below this share of the mean magnitude become 0 (Li and Liu, 2016, equation 6)."""

DAMPING = 0.01
"""Share of the mean of the diagonal that GPTQ adds to it (Frantar et al., 2023)."""

GPTQ_BLOCK = 128
"""Rows whose errors are made up for at once in the rows after them."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The levels that weights may take.

    Attributes:
      scale: Distance of two levels; broadcasts to the weights.
      offset: What code 0 stands for.
      low: Smallest code.
      high: Largest code.
    """

    scale: np.ndarray
    offset: np.ndarray
    low: int
    high: int

    def codes(self, weights: np.ndarray) -> np.ndarray:
        """Returns the nearest codes, as float32 whole numbers.

        Args:
          weights: What is rounded.
        """
        return np.clip(np.rint((weights - self.offset) / self.scale), self.low, self.high)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Returns what codes stand for, in float32.

        Args:
          codes: Whole numbers.
        """
        return (codes * self.scale + self.offset).astype(np.float32)


GridMaker = Callable[[np.ndarray, int], Grid]
"""Chooses the grid of groups that lie along an axis; the grid has size 1 there."""


def channel_grid(weights: np.ndarray, axis: int, bits: int = 8) -> Grid:
    """Returns symmetric levels up to the largest magnitude: ``scale = max|w| / (2**(bits - 1) - 1)``.

    Args:
      weights: Finite float32 weights.
      axis: Axis that shares one scale.
      bits: Bits of a code.
    """
    limit = 2 ** (bits - 1) - 1
    largest = np.max(np.abs(weights), axis=axis, keepdims=True)
    scale = np.maximum(largest / np.float32(limit), np.float32(SMALLEST_SCALE))
    return Grid(scale, np.zeros_like(scale), -limit, limit)


def _best(weights: np.ndarray, axis: int, candidates: list[Grid]) -> Grid:
    """Returns of several grids, group by group, that of the least squared error."""
    largest = np.maximum(np.max(np.abs(weights), axis=axis, keepdims=True), np.float32(SMALLEST_SCALE))
    scale, offset = candidates[0].scale, candidates[0].offset
    least = np.full(scale.shape, np.inf, np.float32)
    for grid in candidates:
        # Relative to the largest, so that no square is too large or too small for float32.
        error = np.square((grid.values(grid.codes(weights)) - weights) / largest).sum(axis=axis, keepdims=True)
        better = error < least
        scale, offset = np.where(better, grid.scale, scale), np.where(better, grid.offset, offset)
        least = np.where(better, error, least)
    return dataclasses.replace(candidates[0], scale=scale, offset=offset)


def symmetric_grid(weights: np.ndarray, axis: int, low: int, high: int) -> Grid:
    """Returns levels around 0 of the least squared error: the largest magnitude is tried as the highest level, as it is and down to a tenth.

    Args:
      weights: Finite float32 weights.
      axis: Axis of the groups.
      low: Lowest code.
      high: Highest code.
    """
    reach = np.max(np.abs(weights), axis=axis, keepdims=True) / np.float32(high)
    scales = [np.maximum(reach * share, np.float32(SMALLEST_SCALE)) for share in WIDELY_CLIPPED]
    return _best(weights, axis, [Grid(scale, np.zeros_like(scale), low, high) for scale in scales])


def signed_grid(weights: np.ndarray, axis: int) -> Grid:
    """Returns the 4-bit levels of the least squared error: the largest magnitude is tried as -8, whose sign it takes, and as 7, as it is and clipped.

    Args:
      weights: Finite float32 weights.
      axis: Axis of the groups.
    """
    largest = np.max(np.abs(weights), axis=axis, keepdims=True)
    signed = np.take_along_axis(weights, np.abs(weights).argmax(axis=axis, keepdims=True), axis=axis)
    candidates = []
    for tried in (-signed / np.float32(8), *(largest * share / np.float32(7) for share in CLIPPED)):
        scale = np.where(np.abs(tried) < SMALLEST_SCALE, np.float32(SMALLEST_SCALE), tried)
        candidates.append(Grid(scale, np.zeros_like(scale), -8, 7))
    return _best(weights, axis, candidates)


def _short(numbers: np.ndarray) -> np.ndarray:
    """Rounds to bfloat16, in which scales and offsets of packed codes are stored, so that codes are chosen for the stored ones."""
    return numbers.astype(ml_dtypes.bfloat16).astype(np.float32)


def affine_grid(weights: np.ndarray, axis: int, bits: int) -> Grid:
    """Returns levels between two ends of the least squared error: the smallest and largest weight, as they are and drawn in.

    Args:
      weights: Finite float32 weights.
      axis: Axis of the groups.
      bits: Bits of a code.
    """
    steps = 2**bits - 1
    # Weights that are all alike have no range; what the offset, in bfloat16, can not hold of them needs one.
    least = np.abs(weights).max(axis=axis, keepdims=True) * np.float32(2**-9) + np.float32(SMALLEST_SCALE)
    low, high = (reduce(weights, axis=axis, keepdims=True) for reduce in (np.min, np.max))
    candidates = []
    for below in CLIPPED:
        for above in CLIPPED:
            scale = _short(np.maximum((high * above - low * below) / np.float32(steps), least))
            candidates.append(Grid(scale, _short(low * below), 0, steps))
    return _best(weights, axis, candidates)


def binary_grid(weights: np.ndarray, axis: int) -> Grid:
    """Returns plus and minus the mean magnitude, the best for signs (Rastegari et al., 2016, section 3.1).

    Args:
      weights: Finite float32 weights.
      axis: Axis of the groups.
    """
    mean = _short(np.maximum(np.abs(weights).mean(axis=axis, keepdims=True), np.float32(SMALLEST_SCALE)))
    return Grid(2 * mean, -mean, 0, 1)


def ternary_grid(weights: np.ndarray, axis: int) -> Grid:
    """Returns minus a number, zero and plus it; the number is the mean magnitude of the weights above a threshold (Li and Liu, 2016).

    Args:
      weights: Finite float32 weights.
      axis: Axis of the groups.
    """
    magnitude = np.abs(weights)
    above = magnitude > TERNARY_THRESHOLD * magnitude.mean(axis=axis, keepdims=True)
    count = np.maximum(above.sum(axis=axis, keepdims=True), 1)
    mean = np.where(above, magnitude, 0).sum(axis=axis, keepdims=True) / count.astype(np.float32)
    mean = _short(np.maximum(mean, np.float32(SMALLEST_SCALE)))
    return Grid(mean, -mean, 0, 2)


def grid_maker(spec: QuantizationSpec) -> GridMaker:
    """Returns how the levels of a group are chosen.

    Args:
      spec: How a leaf is quantized.
    """
    if spec.scheme == "ternary":
        return ternary_grid
    if spec.bits == 1:
        return binary_grid
    if spec.bits == 4:
        return signed_grid
    return lambda weights, axis: (
        channel_grid(weights, axis) if spec.bits == 8 else affine_grid(weights, axis, spec.bits)
    )


def round_groups(
    weights: np.ndarray, axis: int, group_size: int, make_grid: GridMaker
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rounds every weight to the nearest level of its group.

    Args:
      weights: Finite float32 weights.
      axis: The contracted axis, negative.
      group_size: Neighbours along it that share a grid; divides it.
      make_grid: Chooses the grids.

    Returns:
      Codes of the weights' shape (float32 whole numbers), and scales and offsets with as many entries along the axis as there are groups.
    """
    place = weights.ndim + axis
    groups = weights.reshape(*weights.shape[:place], -1, group_size, *weights.shape[place + 1 :])
    grid = make_grid(groups, place + 1)
    codes = grid.codes(groups).reshape(weights.shape)
    return codes, np.squeeze(grid.scale, place + 1), np.squeeze(grid.offset, place + 1)


def gptq(
    weights: Float[np.ndarray, "in_axis out_axis"],
    second_moment: Float[np.ndarray, "in_axis in_axis"],
    group_size: int,
    make_grid: GridMaker,
    mask: Bool[np.ndarray, "in_axis out_axis"] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rounds row by row, and moves the rows that are still to come so that they make up for the error (Frantar et al., 2023, algorithm 1).

    With ``H`` the second moment of the inputs and ``U`` the upper Cholesky factor of its inverse, the error of row ``i`` over ``U[i, i]``, times ``U[i, j]``,
    is taken from row ``j > i``: this is the change of the other rows that keeps ``|x w - x w'|`` least.

    Args:
      weights: Finite float32 kernel.
      second_moment: Mean of ``x x^T`` over the inputs.
      group_size: Rows that share a grid; divides them. Grids are chosen when their first row is reached.
      make_grid: Chooses the grids.
      mask: Where weights may be other than 0, for grids with a level 0; None: everywhere. The other weights make up for what is pruned too.

    Returns:
      As for ``round_groups``.
    """
    moved, factor = weights.astype(np.float32).copy(), inverse_factor(second_moment)
    rows, columns = weights.shape
    codes = np.zeros(weights.shape, np.float32)
    scales, offsets = (np.zeros((rows // group_size, columns), np.float32) for _ in range(2))
    grid = Grid(np.ones((1, columns), np.float32), np.zeros((1, columns), np.float32), 0, 0)
    for start in range(0, rows, GPTQ_BLOCK):
        end = min(start + GPTQ_BLOCK, rows)
        errors = np.zeros((end - start, columns), np.float32)
        for row in range(start, end):
            if row % group_size == 0:
                ahead = moved[row : row + group_size]
                if row + group_size > end:  # the rest of the group has not yet been told of this block's errors
                    ahead = ahead.copy()
                    told = row - start
                    if told:
                        ahead[end - row :] -= factor[start:row, end : row + group_size].T @ errors[:told]
                grid = make_grid(ahead, 0)
                scales[row // group_size], offsets[row // group_size] = grid.scale[0], grid.offset[0]
            allowed = moved[row] if mask is None else np.where(mask[row], moved[row], 0)
            codes[row] = grid.codes(allowed[None])[0]
            error = (moved[row] - grid.values(codes[row : row + 1])[0]) / factor[row, row]
            moved[row + 1 : end] -= np.outer(factor[row, row + 1 : end], error)
            errors[row - start] = error
        moved[end:] -= factor[start:end, end:].T @ errors
    return codes, scales, offsets


def inverse_factor(second_moment: np.ndarray) -> np.ndarray:
    """Returns the upper Cholesky factor of the inverse of a second moment that is damped; channels that are always 0 get a moment of their own.

    Args:
      second_moment: Mean of ``x x^T`` over the inputs.
    """
    matrix = second_moment.astype(np.float64)
    diagonal = np.diagonal(matrix).copy()
    mean = float(diagonal.mean()) or 1.0
    np.fill_diagonal(matrix, np.where(diagonal == 0, mean, diagonal) + DAMPING * mean)
    inverse = np.linalg.inv(matrix)
    return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)


def pack_pairs(codes: np.ndarray, axis: int) -> Int[np.ndarray, "..."]:
    """Returns 4-bit codes two to a byte, the one with the even number in the lower half.

    Args:
      codes: Whole numbers in [-8, 7], with an even number of entries along the axis.
      axis: Axis of the pairs.
    """
    codes = codes.astype(np.int8)
    even, odd = (np.take(codes, np.arange(start, codes.shape[axis], 2), axis=axis) for start in (0, 1))
    return ((even & 15) | (odd << 4)).astype(np.int8)


def pack_planes(codes: np.ndarray, axis: int, bits: int) -> UInt8[np.ndarray, "..."]:
    """Returns codes as planes of bits, eight entries along the axis to a byte, the planes on an axis before it.

    Args:
      codes: Whole numbers from 0 to ``2**bits - 1``, with a multiple of 8 entries along the axis.
      axis: The contracted axis, negative.
      bits: Number of planes.
    """
    codes = codes.astype(np.uint8)
    planes = [np.packbits((codes >> bit) & 1, axis=axis, bitorder="little") for bit in range(bits)]
    return np.stack(planes, axis=codes.ndim + axis)


def to_bfloat16(array: np.ndarray) -> Any:
    """Returns a host array in bfloat16."""
    return array.astype(ml_dtypes.bfloat16)
