"""JAX's primitives that move entries, as operators of ONNX: shapes, slices, joins and look-ups."""

from collections.abc import Callable
from typing import Any

import numpy as np

from flaxbert.errors import ConfigError
from flaxbert.export.graph import TO_THE_END, Value, is_number


def _broadcast(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    """Puts axes of size 1 in; what repeats is left to the operators, which broadcast."""
    value, axes = inputs[0], equation.params["broadcast_dimensions"]
    if not value.shape:
        return value
    rank = len(equation.params["shape"])
    missing = len(equation.invars[0].aval.shape) - len(value.shape)
    places = dict(zip(axes[missing:], value.shape, strict=True))
    first = min(places)
    if sorted(places) == list(range(first, rank)) and first + len(places) == rank:
        return value  # the last axes stay the last
    return translator.graph.reshape(value, tuple(places.get(axis, 1) for axis in range(first, rank)))


def _reshape(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    shape = equation.outvars[0].aval.shape
    if not inputs[0].shape:
        return inputs[0]
    return translator.graph.reshape(translator.full(inputs[0], equation.invars[0]), shape)


def _transpose(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    value = translator.full(inputs[0], equation.invars[0])
    order = [int(axis) for axis in equation.params["permutation"]]
    return translator.graph.emit("Transpose", [value], equation.outvars[0].aval.shape, value.dtype, perm=order)


def _slice(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    graph, value = translator.graph, translator.full(inputs[0], equation.invars[0])
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    axes = [
        axis
        for axis, size in enumerate(value.shape)
        if not (is_number(starts[axis]) and starts[axis] == 0 and str(ends[axis]) == str(size) and steps[axis] == 1)
    ]
    if not axes:
        return value
    last = [TO_THE_END if str(ends[axis]) == str(value.shape[axis]) else ends[axis] for axis in axes]
    bounds = [graph.shape_of([starts[axis] for axis in axes]), graph.shape_of(last)]
    more = [graph.integers(*axes)] + (
        [graph.integers(*(steps[a] for a in axes))] if any(steps[a] != 1 for a in axes) else []
    )
    return graph.emit("Slice", [value, *bounds, *more], equation.outvars[0].aval.shape, value.dtype)


def _concatenate(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    values = [translator.full(value, atom) for value, atom in zip(inputs, equation.invars, strict=True)]
    axis, shape = equation.params["dimension"], equation.outvars[0].aval.shape
    return translator.graph.emit("Concat", values, shape, values[0].dtype, axis=axis)


def _split(translator: Any, equation: Any, inputs: list[Value]) -> tuple[Value, ...]:
    graph, value = translator.graph, translator.full(inputs[0], equation.invars[0])
    sizes, results = equation.params["sizes"], [(v.aval.shape, value.dtype) for v in equation.outvars]
    return graph.emit_many("Split", [value, graph.integers(*sizes)], results, axis=equation.params["axis"])


def _pad(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    graph, value = translator.graph, translator.full(inputs[0], equation.invars[0])
    margins = equation.params["padding_config"]
    if any(is_number(size) and size < 0 for margin in margins for size in margin[:2]) or any(m[2] for m in margins):
        raise ConfigError("The network pads by negative sizes or inside arrays, which the ONNX export can not write.")
    sizes = graph.shape_of([margin[0] for margin in margins] + [margin[1] for margin in margins])
    return graph.emit("Pad", [value, sizes, inputs[1]], equation.outvars[0].aval.shape, value.dtype)


def take_rows(translator: Any, table: Value, indices: Value, equation: Any, axis: int) -> Value:
    """Returns entries of a table by number.

    Args:
      translator: The translation.
      table: The table.
      indices: Numbers along the axis; not negative.
      equation: The look-up.
      axis: The axis.
    """
    graph = translator.graph
    if table.leaf and axis == 0:
        return translator.products.rows(graph, table, indices)
    if not table.leaf:
        table = translator.full(table, equation.invars[0])
    shape = (*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :])
    return graph.emit("Gather", [table, indices], shape, table.dtype, axis=axis)


def _gather(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    """Gather along one axis, whole along the others."""
    graph, numbers = translator.graph, equation.params["dimension_numbers"]
    value, sizes = translator.full(inputs[0], equation.invars[0]), equation.params["slice_sizes"]
    starts = translator.full(inputs[1], equation.invars[1])
    axes, collapsed = tuple(numbers.start_index_map), tuple(numbers.collapsed_slice_dims)
    if len(starts.shape) == 1 and not collapsed and not numbers.operand_batching_dims:
        return _slice_from(translator, value, starts, axes, equation)
    whole = [str(size) == str(value.shape[axis]) for axis, size in enumerate(sizes) if axis not in axes]
    if len(axes) != 1 or numbers.operand_batching_dims or not all(whole) or sizes[axes[0]] != 1:
        raise ConfigError(f"The network looks up entries by {numbers}, which the ONNX export can not write.")
    axis, shape = axes[0], equation.outvars[0].aval.shape
    places = graph.reshape(starts, starts.shape[:-1])
    if not collapsed:
        places = graph.reshape(places, (1,) * (1 if not places.shape else len(places.shape)))
    taken = graph.emit(
        "Gather",
        [value, places],
        (*value.shape[:axis], *places.shape, *value.shape[axis + 1 :]),
        value.dtype,
        axis=axis,
    )
    return graph.reshape(taken, shape)


def _slice_from(translator: Any, value: Value, starts: Value, axes: tuple[int, ...], equation: Any) -> Value:
    """Slices of one start for each axis, which may be computed."""
    graph, sizes, shape = translator.graph, equation.params["slice_sizes"], equation.outvars[0].aval.shape
    if starts.array is not None and not np.any(starts.array):
        cut = [axis for axis in axes if str(sizes[axis]) != str(value.shape[axis])]
        if not cut:
            return graph.reshape(value, shape)
        first, last = graph.integers(*(0 for _ in cut)), graph.shape_of([sizes[axis] for axis in cut])
        taken = graph.emit("Slice", [value, first, last, graph.integers(*cut)], sizes, value.dtype)
        return graph.reshape(taken, shape)
    last = graph.emit("Add", [starts, graph.shape_of([sizes[axis] for axis in axes])], starts.shape, "int64")
    taken = graph.emit("Slice", [value, starts, last, graph.integers(*axes)], sizes, value.dtype)
    return graph.reshape(taken, shape)


def _squeeze(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    value = translator.full(inputs[0], equation.invars[0])
    return translator.graph.reshape(value, equation.outvars[0].aval.shape)


PRIMITIVES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "expand_dims": _reshape,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
"""Primitives by name."""

__all__ = ["PRIMITIVES", "take_rows"]
