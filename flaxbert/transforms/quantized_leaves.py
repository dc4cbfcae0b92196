"""Weights to quantized leaves, on the host: codes, scales and what else a leaf stores."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from flaxbert.config.quantization import DEFAULT_GROUP_SIZE, QuantizationSpec
from flaxbert.core.arrays import GroupedArray, QuantizedArray, SparseArray, TypedArray
from flaxbert.core.low_bit_arrays import (
    FLOAT8,
    FLOAT8_MAXIMUM,
    ChannelGroupedArray,
    Float8Array,
    PackedArray,
    StaticQuantizedArray,
)
from flaxbert.errors import ShapeError
from flaxbert.transforms.leaves import place_like
from flaxbert.transforms.report import LeafErrors
from flaxbert.transforms.rounding import (
    SMALLEST_SCALE,
    gptq,
    grid_maker,
    pack_pairs,
    pack_planes,
    round_groups,
    to_bfloat16,
)
from flaxbert.transforms.statistics import InputStatistics, largest_magnitude, smoothing_scales

INT8_MAXIMUM = 127
AWQ_STRENGTHS = tuple(step / 20 for step in range(20))
"""Exponents of the mean magnitude that AWQ tries (Lin et al., 2024, equation 5)."""

PIECE_BYTES = 2**21
"""Bytes of float32 weights that are rounded at once; what is made of them on the way takes some ten times as much."""

Stored = tuple[type[TypedArray], tuple[np.ndarray, ...], np.ndarray]
"""Kind and parts of a quantized leaf on the host, and the dense weights that it stands for."""

Mask = np.ndarray | None


def _rounded(
    weights: np.ndarray, axis: int, size: int, spec: QuantizationSpec, found: InputStatistics | None, mask: Mask
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns codes, scales and offsets of the groups, and the dense weights that they stand for."""
    if found is not None and found.second_moment is not None and spec.rounding == "gptq":
        codes, scale, offset = gptq(weights, found.second_moment, size, grid_maker(spec), mask)
    else:
        codes, scale, offset = round_groups(weights, axis, size, grid_maker(spec))
    place = weights.ndim + axis
    dense = codes * np.repeat(scale, size, axis=place) + np.repeat(offset, size, axis=place)
    return codes, scale, offset, dense.astype(np.float32)


def _awq(weights: np.ndarray, size: int, spec: QuantizationSpec, found: InputStatistics) -> Stored:
    """Tries channel scales ``mean|x|**strength`` and keeps those whose rounded weights change the outputs least."""
    best: tuple[float, tuple[np.ndarray, ...], np.ndarray, np.ndarray] | None = None
    magnitude = np.maximum(found.mean_magnitude.astype(np.float64), 1e-12)
    for strength in AWQ_STRENGTHS:
        channel = magnitude**strength
        channel = (channel / np.sqrt(channel.max() * channel.min())).astype(np.float32)[:, None]
        codes, scale, _, dense = _rounded(weights * channel, -2, size, spec, None, None)
        dense = dense / channel
        error = dense - weights
        loss = float(np.sum(error * (np.asarray(found.second_moment, np.float32) @ error)))
        if best is None or loss < best[0]:
            best = (loss, (codes, scale), 1 / channel, dense)
    if best is None:
        raise ShapeError("AWQ has no strengths to try.")
    _, (codes, scale), channel, dense = best
    packed = pack_pairs(codes, -2)
    return ChannelGroupedArray, (packed, scale, channel), dense


def _static(weights: np.ndarray, spec: QuantizationSpec, found: InputStatistics, mask: Mask) -> Stored:
    """Rounds weights and measured ranges of activations; the ends of the range are those of the activations, within the chosen magnitude."""
    channel = smoothing_scales(found, weights, spec.smoothing) if spec.smoothing else np.ones(len(weights), np.float32)
    smoothed = dataclasses.replace(found, low=found.low / channel, high=found.high / channel)
    limit = largest_magnitude(smoothed, spec.activation_range, spec.percentile)
    low, high = max(float(smoothed.low.min()), -limit), min(float(smoothed.high.max()), limit)
    low, high = min(low, 0.0), max(high, 0.0)
    step = max((high - low) / (2 * INT8_MAXIMUM + 1), SMALLEST_SCALE)
    zero = float(np.clip(np.rint(-INT8_MAXIMUM - 1 - low / step), -INT8_MAXIMUM - 1, INT8_MAXIMUM))
    input_scale = (channel * np.float32(step)).astype(np.float32)[:, None]
    scaled = _scaled(found, input_scale[:, 0])
    codes, scale, _, _ = _rounded(weights * input_scale, -2, len(weights), spec, scaled, mask)
    shift = -zero * scale * codes.sum(axis=0, keepdims=True)
    parts = (codes.astype(np.int8), scale, input_scale, np.full((1, 1), zero, np.float32), shift.astype(np.float32))
    return StaticQuantizedArray, parts, codes * scale / input_scale


def _scaled(found: InputStatistics, input_scale: np.ndarray) -> InputStatistics:
    """Returns statistics of inputs that were divided channel by channel, as far as GPTQ needs them."""
    if found.second_moment is None:
        return found
    moment = found.second_moment / np.outer(input_scale, input_scale)
    return dataclasses.replace(found, second_moment=moment / max(float(np.diagonal(moment).mean()), 1e-300))


def _float8(weights: np.ndarray, axis: int) -> Stored:
    largest = np.max(np.abs(weights), axis=axis, keepdims=True)
    scale = np.maximum(largest / np.float32(FLOAT8_MAXIMUM), np.float32(SMALLEST_SCALE))
    values = np.clip(weights / scale, -FLOAT8_MAXIMUM, FLOAT8_MAXIMUM).astype(FLOAT8)
    return Float8Array, (values, scale), values.astype(np.float32) * scale


def _plain(weights: np.ndarray, axis: int, spec: QuantizationSpec, found: InputStatistics | None, mask: Mask) -> Stored:
    if spec.scheme == "float8":
        return _float8(weights, axis)
    size = weights.shape[axis] if spec.bits == 8 else spec.group_size or DEFAULT_GROUP_SIZE
    codes, scale, offset, dense = _rounded(weights, axis, size, spec, found, mask)
    if spec.bits == 8:
        return QuantizedArray, (codes.astype(np.int8), scale), dense
    if spec.bits == 4:
        return GroupedArray, (pack_pairs(codes, axis), scale), dense
    planes = pack_planes(codes, axis, spec.bits)
    return PackedArray, (planes, to_bfloat16(scale), to_bfloat16(offset)), dense


def _slices(weights: np.ndarray, axis: int) -> Iterator[tuple[slice, ...]]:
    """Yields pieces of a matrix that can be rounded on their own, small enough that what is made of them on the way takes little memory."""
    other = -1 if axis == -2 else -2
    rows = max(1, PIECE_BYTES * weights.shape[other] // max(weights.nbytes, 1))
    for start in range(0, weights.shape[other], rows):
        piece = slice(start, start + rows)
        yield (..., piece) if other == -1 else (..., piece, slice(None))  # type: ignore[misc]


def _in_pieces(
    weights: np.ndarray, axis: int, spec: QuantizationSpec
) -> tuple[Any, tuple[np.ndarray, ...], LeafErrors]:
    errors, found = LeafErrors(), []
    for piece in _slices(weights, axis):
        own = np.ascontiguousarray(weights[piece])
        kind, parts, dense = _plain(own, axis, spec, None, None)
        errors.add(own, dense)
        found.append((kind, parts))
    kinds, parts = zip(*found, strict=True)
    if len(parts) == 1:
        return kinds[0], parts[0], errors
    ends = [-1 if axis == -2 else (-3 if part.ndim > weights.ndim else -2) for part in parts[0]]
    joined = tuple(np.concatenate(column, axis=end) for column, end in zip(zip(*parts, strict=True), ends, strict=True))
    return kinds[0], joined, errors


def store_leaf(
    leaf: Any, weights: np.ndarray, axis: int, spec: QuantizationSpec, found: InputStatistics | None
) -> tuple[TypedArray, LeafErrors]:
    """Returns a quantized leaf, where the old one lies, and how far its weights are from the old ones.

    Args:
      leaf: The old leaf.
      weights: Its dense weights on the host.
      axis: The contracted axis, negative.
      spec: How it is quantized.
      found: What is known of its inputs, where the specification needs it.
    """
    mask = np.asarray(leaf.mask) if isinstance(leaf, SparseArray) else None
    if found is None:
        kind, parts, errors = _in_pieces(weights, axis, spec)
    else:
        if spec.activations == "static":
            kind, parts, dense = _static(weights, spec, found, mask)
        elif spec.rounding == "awq":
            size = spec.group_size or DEFAULT_GROUP_SIZE
            kind, parts, dense = _awq(weights, size, spec, found)
        else:
            kind, parts, dense = _plain(weights, axis, spec, found, mask)
        errors = LeafErrors()
        errors.add(weights, dense)
    new_axis = weights.ndim + axis
    placed = (place_like(part, leaf, new_axis if part.ndim > weights.ndim else None) for part in parts)
    return kind(*placed), errors
