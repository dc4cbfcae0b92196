"""Matrix products of the graph, in the precision that is asked for."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from flaxbert.core.arrays import QuantizedArray
from flaxbert.export.graph import Graph, Value, onnx_type


@dataclasses.dataclass
class Products:
    """How products are written; this one writes them in float32, and the others extend it.

    Attributes:
      observe: Called with the name of a site and the value that is multiplied there; calibration listens here.
    """

    observe: Callable[[str, Value], None] | None = None

    def by_leaf(self, graph: Graph, inputs: Value, leaf: Value, transposed: bool, label: str) -> Value:
        """Returns activations times a matrix that is a leaf.

        Args:
          graph: The graph.
          inputs: Activations, ``[..., in]``.
          leaf: The matrix, ``[in, out]`` or, transposed, ``[out, in]``.
          transposed: Whether the last axis of the matrix is contracted.
          label: What the node is named after.
        """
        if self.observe is not None:
            self.observe(leaf.leaf, inputs)
        return self.float_product(graph, inputs, leaf, transposed, label)

    def float_product(self, graph: Graph, inputs: Value, leaf: Value, transposed: bool, label: str) -> Value:
        """Returns the product in float32.

        Args:
          graph: As for ``by_leaf``.
          inputs: The same.
          leaf: The same; stored forms are written out.
          transposed: The same.
          label: The same.
        """
        if transposed:  # the matrix is stored once, as the look-up reads it
            leaf = graph.emit("Transpose", [leaf], leaf.shape[::-1], leaf.dtype, perm=[1, 0])
        return graph.emit("MatMul", [inputs, leaf], (*inputs.shape[:-1], leaf.shape[-1]), "float32", label=label)

    def of_activations(self, graph: Graph, left: Value, right: Value, shape: tuple[Any, ...], site: str) -> Value:
        """Returns the product of two computed arrays.

        Args:
          graph: The graph.
          left: ``[..., rows, inner]``.
          right: ``[..., inner, columns]``.
          shape: Shape of the result.
          site: Name of the place, under which both operands are observed.
        """
        if self.observe is not None:
            self.observe(f"{site}.left", left)
            self.observe(f"{site}.right", right)
        return graph.emit("MatMul", [left, right], shape, "float32")

    def rows(self, graph: Graph, leaf: Value, indices: Value) -> Value:
        """Returns rows of a table that is a leaf.

        Args:
          graph: The graph.
          leaf: The table.
          indices: Numbers of the rows.
        """
        stored = graph.leaves[leaf.leaf]
        shape = (*indices.shape, *leaf.shape[1:])
        parts = table_parts(stored)
        if parts is None:
            return graph.emit("Gather", [leaf, indices], shape, "float32", axis=0)
        codes, scale = parts
        name = graph.initializer(f"{leaf.leaf}@codes", codes)
        taken = graph.emit("Gather", [Value(codes.shape, "int8", name), indices], shape, "int8", axis=0)
        name = graph.initializer(f"{leaf.leaf}@scale", scale)
        scales = graph.emit(
            "Gather", [Value(scale.shape, "float32", name), indices], (*indices.shape, 1), "float32", axis=0
        )
        return graph.emit(
            "Mul", [graph.emit("Cast", [taken], shape, "float32", to=onnx_type("float32")), scales], shape, "float32"
        )


def kernel_parts(leaf: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns int8 codes ``[in, out]`` and float32 scales ``[out]`` of a kernel; None for leaves that are stored otherwise.

    Args:
      leaf: A leaf.
    """
    return _codes_and_scales(leaf, 0)


def table_parts(leaf: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns int8 codes ``[rows, columns]`` and float32 scales ``[rows, 1]`` of a table; None for leaves that are stored otherwise.

    Args:
      leaf: A leaf.
    """
    parts = _codes_and_scales(leaf, 1)
    return None if parts is None else (parts[0], parts[1][:, None])


def _codes_and_scales(leaf: Any, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    if not isinstance(leaf, QuantizedArray) or leaf.ndim != 2:
        return None
    codes, scale = np.asarray(leaf.codes), np.asarray(leaf.scale, np.float32)
    if codes.dtype != np.int8 or codes.shape != tuple(leaf.shape) or scale.shape[axis] != 1:
        return None
    size = codes.shape[1 - axis]
    return codes, np.ascontiguousarray(np.broadcast_to(scale.reshape(-1), (size,)))
