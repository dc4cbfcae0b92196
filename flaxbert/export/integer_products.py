"""Products of 8-bit and 4-bit codes: activations rounded as they come, or in ranges that were measured beforehand."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxbert.core.arrays import GroupedArray
from flaxbert.errors import ConfigError
from flaxbert.export.graph import Graph, Value, onnx_type
from flaxbert.export.products import Products, kernel_parts, table_parts

LARGEST_CODE = 255
"""Of an unsigned byte."""

SMALLEST_RANGE = 1e-6
"""Keeps the scale of activations that are all zero away from zero."""


@dataclasses.dataclass
class DynamicProducts(Products):
    """Products with int8 leaves by MatMulInteger, of activations that are rounded to unsigned bytes by their own smallest and largest entry."""

    def by_leaf(self, graph: Graph, inputs: Value, leaf: Value, transposed: bool, label: str) -> Value:
        """Returns activations times a matrix that is a leaf, as for ``Products``."""
        parts = _kernel(graph, leaf, transposed)
        if parts is None:
            return _grouped_or_float(self, graph, inputs, leaf, transposed, label)
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
    """

    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    quantizes_scores: bool = False

    def by_leaf(self, graph: Graph, inputs: Value, leaf: Value, transposed: bool, label: str) -> Value:
        """Returns activations times a matrix that is a leaf, as for ``Products``.

        Raises:
          ConfigError: The range of the activations is not known.
        """
        parts = _kernel(graph, leaf, transposed)
        if parts is None:
            return _grouped_or_float(self, graph, inputs, leaf, transposed, label)
        if leaf.leaf not in self.ranges:
            raise ConfigError(
                f"The range of the activations that meet '{leaf.leaf}' is not known; calibrate with texts: --calibration FILE."
            )
        codes, scale = parts
        # The zero points are said although all are 0, and for each leaf anew: ONNX Runtime 1.32 fails to make the codes unsigned otherwise.
        name = graph.initializer(f"{codes.name}/zero_point", np.zeros(scale.shape, np.int8))
        zeros = Value(scale.shape, "int8", name)
        dense = graph.emit("DequantizeLinear", [codes, scale, zeros], codes.shape, "float32", label=label, axis=1)
        rounded = self._rounded(graph, inputs, leaf.leaf)
        shape = (*inputs.shape[:-1], codes.shape[-1])
        return graph.emit("MatMul", [rounded, dense], shape, "float32", label=label)

    def of_activations(self, graph: Graph, left: Value, right: Value, shape: tuple[Any, ...], site: str) -> Value:
        """Returns the product of two computed arrays, as for ``Products``."""
        if self.quantizes_scores and site.endswith(".scores"):
            left, right = self._rounded(graph, left, f"{site}.left"), self._rounded(graph, right, f"{site}.right")
        return super().of_activations(graph, left, right, shape, site)

    def _rounded(self, graph: Graph, value: Value, site: str) -> Value:
        step, zero = unsigned_scale(*self.ranges[site])
        scale, offset = graph.constant(step), graph.constant(zero)
        codes = graph.emit("QuantizeLinear", [value, scale, offset], value.shape, "uint8")
        return graph.emit("DequantizeLinear", [codes, scale, offset], value.shape, "float32")


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


def _grouped_or_float(
    products: Products, graph: Graph, inputs: Value, leaf: Value, transposed: bool, label: str
) -> Value:
    stored = graph.leaves[leaf.leaf]
    if not isinstance(stored, GroupedArray) or stored.axis != (-1 if transposed else -2) or stored.ndim != 2:
        return products.float_product(graph, inputs, leaf, transposed, label)
    return grouped_product(graph, inputs, leaf, transposed, label)


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
