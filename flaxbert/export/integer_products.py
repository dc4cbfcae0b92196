"""Products of 8-bit and 4-bit codes: activations rounded as they come, or in ranges that were measured beforehand."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxbert.core.arrays import GroupedArray
from flaxbert.core.contraction import INT8_MAXIMUM
from flaxbert.core.integer_dot import ZERO_POINT
from flaxbert.core.low_bit_arrays import ChannelGroupedArray, StaticQuantizedArray
from flaxbert.errors import ConfigError
from flaxbert.export.early_rounding import round_early
from flaxbert.export.graph import Graph, Value, onnx_type
from flaxbert.export.products import Products, kernel_parts, table_parts

LARGEST_CODE = 255
"""Of an unsigned byte."""

_GROUPED = frozenset({GroupedArray.kind, ChannelGroupedArray.kind})

SMALLEST_RANGE = 1e-6
"""Keeps the scale of activations that are all zero away from zero."""


@dataclasses.dataclass
class DynamicProducts(Products):
    """Products with int8 leaves by MatMulInteger, of activations that are rounded to unsigned bytes by their own smallest and largest entry."""

    def by_leaf(self, graph: Graph, inputs: Value, leaf: Value, transposed: bool, label: str) -> Value:
        """Returns activations times a matrix that is a leaf, as for ``Products``."""
        parts = _kernel(graph, leaf, transposed)
        if parts is None:
            return _otherwise(self, graph, inputs, leaf, transposed, label)
        codes, scale = parts
        rounded, step, zero = graph.emit_many(
            "DynamicQuantizeLinear", [inputs], [(inputs.shape, "uint8"), ((), "float32"), ((), "uint8")], label=label
        )
        shape = (*inputs.shape[:-1], codes.shape[-1])
        sums = graph.emit("MatMulInteger", [rounded, codes, zero], shape, "accumulator", label=label)
        sums = graph.emit("Cast", [sums], shape, "float32", label=label, to=onnx_type("float32"))
        scales = graph.emit("Mul", [step, scale], scale.shape, "float32", label=label)
        return graph.emit("Mul", [sums, scales], shape, "float32", label=label)


@dataclasses.dataclass
class StaticProducts(Products):
    """Products with int8 leaves between QuantizeLinear and DequantizeLinear, in measured ranges of the activations.

    Attributes:
      ranges: Smallest and largest activation by site: the name of the leaf that is multiplied by, or of a product inside attention.
      quantizes_scores: Whether queries and keys are rounded too, where their ranges are known.
      rounds_early: Whether they are rounded, to signed bytes, before they are transposed: OpenVINO fuses that; ONNX Runtime 1.32 refuses it.
    """

    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    quantizes_scores: bool = False
    rounds_early: bool = False

    def by_leaf(self, graph: Graph, inputs: Value, leaf: Value, transposed: bool, label: str) -> Value:
        """Returns activations times a matrix that is a leaf, as for ``Products``.

        Raises:
          ConfigError: The range of the activations is not known.
        """
        parts = _kernel(graph, leaf, transposed)
        if parts is None:
            return _otherwise(self, graph, inputs, leaf, transposed, label)
        if leaf.leaf not in self.ranges:
            raise ConfigError(
                f"The range of the activations that meet '{leaf.leaf}' is not known; calibrate with texts: --calibration FILE."
            )
        return _rounded_product(graph, inputs, parts, unsigned_scale(*self.ranges[leaf.leaf]), label)

    def of_activations(self, graph: Graph, left: Value, right: Value, shape: tuple[Any, ...], site: str) -> Value:
        """Returns the product of two computed arrays, as for ``Products``."""
        if self.quantizes_scores and site.endswith(".scores"):
            left, right = (
                self._rounded_operand(graph, value, self.ranges[f"{site}.{side}"])
                for value, side in ((left, "left"), (right, "right"))
            )
        return super().of_activations(graph, left, right, shape, site)

    def _rounded_operand(self, graph: Graph, value: Value, bounds: tuple[float, float]) -> Value:
        return (_round_symmetric if self.rounds_early else _round_unsigned)(graph, value, bounds)


def unsigned_scale(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Returns scale and zero point of unsigned bytes that cover a range; 0 is exact.

    Args:
      low: Smallest value.
      high: Largest value.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    step = max(high - low, SMALLEST_RANGE) / LARGEST_CODE
    return np.float32(step), np.uint8(np.clip(np.rint(-low / step), 0, LARGEST_CODE))


def _kernel(graph: Graph, leaf: Value, transposed: bool) -> tuple[Value, Value] | None:
    """Returns int8 codes ``[in, out]`` and scales ``[out]`` of a leaf as values of the graph."""
    parts = (table_parts if transposed else kernel_parts)(graph.leaves[leaf.leaf])
    if parts is None:
        return None
    codes = Value(parts[0].shape, "int8", graph.initializer(f"{leaf.leaf}@codes", parts[0]))
    if transposed:
        codes = graph.emit("Transpose", [codes], codes.shape[::-1], "int8", perm=[1, 0])
    name = graph.initializer(f"{leaf.leaf}@output_scale" if transposed else f"{leaf.leaf}@scale", parts[1].reshape(-1))
    return codes, Value((codes.shape[1],), "float32", name)


def _otherwise(products: Products, graph: Graph, inputs: Value, leaf: Value, transposed: bool, label: str) -> Value:
    """Returns the product with a leaf that says itself how its inputs are rounded, or that computes in float32."""
    stored = graph.leaves[leaf.leaf]
    if isinstance(stored, StaticQuantizedArray) and not transposed:
        return static_product(graph, inputs, leaf, label)
    if isinstance(stored, GroupedArray) and stored.kind in _GROUPED and stored.axis == (-1 if transposed else -2):
        return grouped_product(graph, inputs, leaf, transposed, label)
    return products.float_product(graph, inputs, leaf, transposed, label)


def static_product(graph: Graph, inputs: Value, leaf: Value, label: str) -> Value:
    """Returns activations times a matrix whose leaf holds the scales of its inputs: flaxbert's own numbers.

    Args:
      graph: The graph.
      inputs: Activations.
      leaf: The leaf, a ``StaticQuantizedArray``.
      label: What the node is named after.
    """
    stored = graph.leaves[leaf.leaf]
    steps = np.asarray(stored.input_scale, np.float32)[:, 0]
    step, scale = steps[0], np.asarray(stored.scale, np.float32)[0]
    if np.any(steps != step):  # a scale for each input channel is a product before the rounding
        factor = graph.constant((1.0 / steps).astype(np.float32))
        inputs, step = graph.emit("Mul", [inputs, factor], inputs.shape, "float32", label=label), np.float32(1.0)
    codes = np.asarray(stored.codes)
    kernel = Value(codes.shape, "int8", graph.initializer(f"{leaf.leaf}@codes", codes))
    scales = Value(scale.shape, "float32", graph.initializer(f"{leaf.leaf}@scale", scale / step))
    zero = np.uint8(np.asarray(stored.input_zero)[0, 0] + ZERO_POINT)
    return _rounded_product(graph, inputs, (kernel, scales), (step, zero), label)


def _rounded_product(
    graph: Graph, inputs: Value, kernel: tuple[Value, Value], rounding: tuple[np.float32, Any], label: str
) -> Value:
    codes, scale = kernel
    # The zero points are said although all are 0, and for each leaf anew: ONNX Runtime 1.32 fails to make the codes unsigned otherwise.
    name = graph.initializer(f"{codes.name}/zero_point", np.zeros(scale.shape, np.int8))
    operands = [codes, scale, Value(scale.shape, "int8", name)]
    dense = graph.emit("DequantizeLinear", operands, codes.shape, "float32", label=label, axis=1)
    rounded = _rounded(graph, inputs, *rounding)
    return graph.emit("MatMul", [rounded, dense], (*inputs.shape[:-1], codes.shape[-1]), "float32", label=label)


def _rounded(graph: Graph, value: Value, step: np.float32, zero: Any) -> Value:
    scale, offset = graph.constant(step), graph.constant(zero)
    codes = graph.emit("QuantizeLinear", [value, scale, offset], value.shape, str(zero.dtype))
    return graph.emit("DequantizeLinear", [codes, scale, offset], value.shape, "float32")


def _round_unsigned(graph: Graph, value: Value, bounds: tuple[float, float]) -> Value:
    return _rounded(graph, value, *unsigned_scale(*bounds))


def _round_symmetric(graph: Graph, value: Value, bounds: tuple[float, float]) -> Value:
    step = np.float32(max(-float(bounds[0]), float(bounds[1]), SMALLEST_RANGE) / INT8_MAXIMUM)
    return round_early(graph, value, step, lambda early, own: _rounded(graph, early, own, np.int8(0)))


def grouped_product(graph: Graph, inputs: Value, leaf: Value, transposed: bool, label: str) -> Value:
    """Returns activations times a matrix of 4-bit codes, which DequantizeLinear writes out block by block.

    Args:
      graph: The graph.
      inputs: Activations.
      leaf: The leaf, a ``GroupedArray`` whose groups lie along the contracted axis.
      transposed: Whether the last axis of the matrix is contracted.
      label: What the node is named after.
    """
    stored = graph.leaves[leaf.leaf]
    if isinstance(stored, ChannelGroupedArray):
        channel = graph.constant(np.asarray(stored.channel, np.float32)[:, 0])
        inputs = graph.emit("Mul", [inputs, channel], inputs.shape, "float32", label=label)
    name = f"{leaf.leaf}@codes"
    if name not in graph.initializers:
        graph.add_packed(name, np.asarray(stored.codes()))
    scale = np.asarray(stored.scale, np.float32)
    scales = Value(scale.shape, "float32", graph.initializer(f"{leaf.leaf}@scale", scale))
    axis, codes = (1 if transposed else 0), Value(tuple(stored.shape), "int4", name)
    dense = graph.emit(
        "DequantizeLinear",
        [codes, scales],
        stored.shape,
        "float32",
        label=label,
        axis=axis,
        block_size=stored.group_size,
    )
    if transposed:
        dense = graph.emit("Transpose", [dense], dense.shape[::-1], "float32", perm=[1, 0])
    return graph.emit("MatMul", [inputs, dense], (*inputs.shape[:-1], dense.shape[-1]), "float32", label=label)
