"""JAX's primitives as operators of ONNX: elementwise, reductions, products."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flaxbert.errors import ConfigError
from flaxbert.export import indexing
from flaxbert.export.graph import Value, broadcast, is_number, onnx_type, same_shape

_UNARY = {
    "abs": "Abs",
    "ceil": "Ceil",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "not": "Not",
    "round": "Round",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
_BINARY = {
    "add": "Add",
    "add_any": "Add",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "pow": "Pow",
    "sub": "Sub",
    "and": "And",
    "or": "Or",
    "eq": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "lt": "Less",
}
_COMPARISONS = frozenset({"eq", "ge", "gt", "le", "lt"})
_NEUTRAL: dict[str, tuple[tuple[int, int], ...]] = {
    "add": ((0, 0), (1, 0)),
    "sub": ((1, 0),),
    "mul": ((0, 1), (1, 1)),
    "div": ((1, 1),),
}
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


def _unary(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    value = inputs[0]
    return translator.graph.emit(_UNARY[equation.primitive.name], [value], value.shape, value.dtype)


def _binary(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    name = equation.primitive.name
    unchanged = _without_neutral(name, inputs)
    if unchanged is not None:
        return unchanged
    dtype = "bool" if name in _COMPARISONS else str(equation.outvars[0].aval.dtype)
    return translator.graph.emit(_BINARY[name], inputs, broadcast(*(value.shape for value in inputs)), dtype)


def _without_neutral(name: str, inputs: list[Value]) -> Value | None:
    """Returns the other operand where one is a scalar that changes nothing."""
    for place, neutral in _NEUTRAL.get(name, ()):
        array = inputs[place].array
        if array is not None and array.ndim == 0 and array == neutral:
            return inputs[1 - place]
    return None


def _not_equal(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    shape = broadcast(*(value.shape for value in inputs))
    return translator.graph.emit("Not", [translator.graph.emit("Equal", inputs, shape, "bool")], shape, "bool")


def _square(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    return translator.graph.emit("Mul", [inputs[0], inputs[0]], inputs[0].shape, inputs[0].dtype)


def _integer_power(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    value, graph = inputs[0], translator.graph
    exponent = graph.constant(np.asarray(equation.params["y"], value.dtype))
    return graph.emit("Pow", [value, exponent], value.shape, value.dtype)


def _rsqrt(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    root = translator.graph.emit("Sqrt", inputs, inputs[0].shape, "float32")
    return translator.graph.emit("Reciprocal", [root], root.shape, "float32")


def _log1p(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    graph, value = translator.graph, inputs[0]
    return graph.emit(
        "Log",
        [graph.emit("Add", [value, graph.constant(np.float32(1))], value.shape, "float32")],
        value.shape,
        "float32",
    )


def _clamp(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    low, value, high = inputs
    graph = translator.graph
    shape = broadcast(value.shape, low.shape, high.shape)
    return graph.emit("Min", [graph.emit("Max", [value, low], shape, value.dtype), high], shape, value.dtype)


def _select(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    if len(inputs) != 3:
        raise ConfigError(f"The network selects among {len(inputs) - 1} arrays; the ONNX export knows two.")
    condition, otherwise, chosen = inputs
    shape = broadcast(*(value.shape for value in inputs))
    return translator.graph.emit("Where", [condition, chosen, otherwise], shape, chosen.dtype)


def _same(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    return inputs[0]


def _convert(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    value, dtype = inputs[0], str(np.dtype(equation.params["new_dtype"]))
    if onnx_type(dtype) == onnx_type(value.dtype):
        return value
    return translator.graph.emit("Cast", [value], value.shape, dtype, to=onnx_type(dtype))


def _reduce(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    value = translator.full(inputs[0], equation.invars[0])
    axes = translator.graph.integers(*equation.params["axes"])
    name = _REDUCTIONS[equation.primitive.name]
    return translator.graph.emit(name, [value, axes], equation.outvars[0].aval.shape, value.dtype, keepdims=0)


def _argmax(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    value = translator.full(inputs[0], equation.invars[0])
    axis = int(equation.params["axes"][0])
    if value.dtype == "bool":
        value = translator.graph.emit("Cast", [value], value.shape, "int32", to=onnx_type("int64"))
    return translator.graph.emit("ArgMax", [value], equation.outvars[0].aval.shape, "int32", axis=axis, keepdims=0)


def _cumulate(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    value = translator.full(inputs[0], equation.invars[0])
    axis = translator.graph.constant(np.asarray(equation.params["axis"], np.int64))
    reverse = int(equation.params.get("reverse", False))
    return translator.graph.emit("CumSum", [value, axis], value.shape, value.dtype, reverse=reverse)


def _iota(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    graph, shape, axis = translator.graph, equation.outvars[0].aval.shape, equation.params["dimension"]
    size, dtype = shape[axis], str(equation.outvars[0].aval.dtype)
    if is_number(size):
        steps = graph.constant(np.arange(size, dtype=dtype))
    else:
        first, step = graph.constant(np.int64(0)), graph.constant(np.int64(1))
        steps = graph.emit("Range", [first, graph.size(size), step], (size,), "int32")
        if dtype != "int32":
            steps = graph.emit("Cast", [steps], (size,), dtype, to=onnx_type(dtype))
    return graph.reshape(steps, tuple(size if place == axis else 1 for place in range(len(shape))))


def _size(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    value = translator.graph.size(equation.params["dim"])
    return Value(value.shape, "int32", value.name, value.array)


def _free(shape: Sequence[Any], *taken: Sequence[int]) -> list[int]:
    used = {axis for axes in taken for axis in axes}
    return [axis for axis in range(len(shape)) if axis not in used]


def _transposed(translator: Any, value: Value, order: list[int]) -> Value:
    if order == list(range(len(order))):
        return value
    shape = tuple(value.shape[axis] for axis in order)
    array = translator.graph.dense(value)
    if array is not None:
        return translator.graph.constant(array.transpose(order), value.dtype)
    return translator.graph.emit("Transpose", [value], shape, value.dtype, perm=order)


def _product(sizes: Sequence[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * size
    return total


def _dot_general(translator: Any, equation: Any, inputs: list[Value]) -> Value:
    """MatMul of operands whose axes are put in its order; several free or contracted axes are joined."""
    graph = translator.graph
    left, right = (translator.full(value, atom) for value, atom in zip(inputs, equation.invars, strict=True))
    (left_inner, right_inner), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left_free, right_free = _free(left.shape, left_inner, left_batch), _free(right.shape, right_inner, right_batch)
    left = _transposed(translator, left, [*left_batch, *left_free, *left_inner])
    right = _transposed(translator, right, [*right_batch, *right_inner, *right_free])
    num_batch, result = len(left_batch), equation.outvars[0].aval.shape
    batch = left.shape[:num_batch]
    rows = left.shape[num_batch : num_batch + len(left_free)]
    columns = right.shape[num_batch + len(right_inner) :]
    inner = _product(left.shape[num_batch + len(left_free) :])
    if not batch and len(left_inner) == len(right_free) == 1 and left_free:
        pass  # MatMul takes any number of rows where the right operand is a matrix
    else:
        left = graph.reshape(left, (*batch, _product(rows), inner))
        right = graph.reshape(right, (*batch, inner, _product(columns)))
        rows, columns = (_product(rows),), (_product(columns),)
    shape = (*batch, *rows, *columns)
    product = graph.emit("MatMul", [left, right], shape, "float32")
    return product if same_shape(shape, result) else graph.reshape(product, result)


PRIMITIVES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **indexing.PRIMITIVES,
    "argmax": _argmax,
    "clamp": _clamp,
    "convert_element_type": _convert,
    "copy": _same,
    "copy_p": _same,
    "cumsum": _cumulate,
    "dim_as_value": _size,
    "dot_general": _dot_general,
    "integer_pow": _integer_power,
    "iota": _iota,
    "log1p": _log1p,
    "ne": _not_equal,
    "optimization_barrier": lambda translator, equation, inputs: tuple(inputs),
    "rsqrt": _rsqrt,
    "select_n": _select,
    "square": _square,
    "stop_gradient": _same,
}
"""Primitives by name."""
