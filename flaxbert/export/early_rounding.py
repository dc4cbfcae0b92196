"""Rounding a value where it is made instead of where it is used."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flaxbert.export.graph import Graph, Value

Rounding = Callable[[Value, np.float32], Value]
"""Rounds a value with a step."""


def round_early(graph: Graph, value: Value, step: np.float32, rounding: Rounding) -> Value:
    """Rounds a value before it is transposed, reshaped or scaled, where engines fuse the rounding with the product that returns it.

    With a zero point of 0, rounding and these commute. OpenVINO 2026.4 reads queries and keys into its fused attention as bytes then; rounded
    behind their transposes, it computes attention operation by operation.

    Args:
      graph: The graph.
      value: The value.
      step: Distance of its codes.
      rounding: How it is rounded.

    Returns:
      The rounded value, of the same shape.
    """
    node = next((found for found in reversed(graph.nodes) if value.name and value.name in found.output), None)
    if node is None or node.op_type not in ("Transpose", "Reshape", "Mul"):
        return rounding(value, step)
    if node.op_type == "Mul":
        factor = _number(graph, node.input[1])
        if factor is None or factor <= 0:
            return rounding(value, step)
        step = np.float32(step / factor)
    source = round_early(graph, graph.shapes[node.input[0]], step, rounding)
    return _again(graph, node, source, value.shape)


def _number(graph: Graph, name: str) -> float | None:
    """Returns the only entry of a constant; None for what is no constant or has more of them."""
    from onnx import numpy_helper

    stored = graph.initializers.get(name)
    if stored is None or math.prod(stored.dims) != 1:
        return None
    return float(numpy_helper.to_array(stored).reshape(()))


def _again(graph: Graph, node: Any, first: Value, shape: tuple[Any, ...]) -> Value:
    """Makes a node like another one, of one result, with another first input."""
    from onnx import helper

    attributes = {found.name: helper.get_attribute_value(found) for found in node.attribute}
    others = [graph.shapes.get(name, Value((), "", name)) for name in node.input[1:]]
    return graph.emit(node.op_type, [first, *others], shape, first.dtype, **attributes)
