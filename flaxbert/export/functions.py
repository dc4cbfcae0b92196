"""Functions of flaxbert and JAX that have an operator of their own, recognised by their names in the jaxpr."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flaxbert.export.graph import Value
from flaxbert.export.indexing import take_rows


def _equations(inner: Any) -> Iterator[Any]:
    """Yields the equations of a function and of those that it calls."""
    for equation in getattr(inner, "jaxpr", inner).eqns:
        yield equation
        for parameter in equation.params.values():
            for nested in parameter if isinstance(parameter, tuple) else (parameter,):
                if hasattr(nested, "eqns") or hasattr(nested, "jaxpr"):
                    yield from _equations(nested)


def _literal(equation: Any) -> float | None:
    return next((float(atom.val) for atom in equation.invars if hasattr(atom, "val") and np.ndim(atom.val) == 0), None)


def _linear(translator: Any, equation: Any, inner: Any, inputs: list[Value]) -> Value | None:
    """``core.contraction._linear``: MatMul, Add and, for heads, Reshape and Transpose after the bias, where engines fuse them."""
    graph, kernel = translator.graph, inputs[1]
    product = next(found for found in _equations(inner) if found.primitive.name == "dot_general")
    (_, (axis,)), _ = product.params["dimension_numbers"]
    hidden, shape = translator.full(inputs[0], equation.invars[0]), equation.outvars[0].aval.shape
    if not kernel.leaf:
        return None
    label = kernel.leaf.removesuffix(".kernel").removesuffix(".embedding")
    result = translator.products.by_leaf(graph, hidden, kernel, axis == 1, label)
    if len(inputs) > 2:
        result = graph.emit("Add", [result, inputs[2]], result.shape, "float32", label=label)
    if len(shape) == len(hidden.shape):
        return result
    rank = len(hidden.shape)
    split = graph.reshape(result, (*hidden.shape[:-1], shape[-3], shape[-1]))
    order = [*range(rank - 2), rank - 1, rank - 2, rank]
    return graph.emit("Transpose", [split], shape, "float32", perm=order)


def _layer_norm(translator: Any, equation: Any, inner: Any, inputs: list[Value]) -> Value:
    """``nn.layers.layer_norm``."""
    epsilons = [_literal(found) for found in _equations(inner) if found.primitive.name == "add"]
    epsilon = next(value for value in epsilons if value is not None)
    hidden, scale, bias = inputs
    hidden = translator.full(hidden, equation.invars[0])
    shift = None if bias.array is not None and not np.any(bias.array) else bias
    operands: list[Value | None] = [hidden, scale] if shift is None else [hidden, scale, shift]
    label = scale.leaf.removesuffix(".scale")
    return translator.graph.emit(
        "LayerNormalization", operands, hidden.shape, "float32", label=label, axis=-1, epsilon=epsilon
    )


def _gelu(translator: Any, equation: Any, inner: Any, inputs: list[Value]) -> Value | None:
    """``nn.activations.gelu_erf`` and ``jax.nn.gelu``."""
    names = {found.primitive.name for found in _equations(inner)}
    kind = "tanh" if "tanh" in names else "none"
    return translator.graph.emit("Gelu", inputs[:1], inputs[0].shape, "float32", approximate=kind)


def _attention(translator: Any, equation: Any, inner: Any, inputs: list[Value]) -> Value | None:
    """``nn.softmax_attention._attend``: MatMul, Add, Softmax, MatMul."""
    graph, products = translator.graph, translator.products
    query, key, value = (translator.full(inputs[place], equation.invars[place]) for place in range(3))
    scaled = next(found for found in _equations(inner) if found.primitive.name == "mul" and _literal(found) is not None)
    site = f"attention.{translator.num_attentions}"
    translator.num_attentions += 1
    query = graph.emit("Mul", [query, graph.constant(np.float32(_literal(scaled)))], query.shape, "float32")
    columns = graph.emit("Transpose", [key], (*key.shape[:2], key.shape[3], key.shape[2]), "float32", perm=[0, 1, 3, 2])
    shape = (*query.shape[:3], key.shape[2])
    scores = products.of_activations(graph, query, columns, shape, f"{site}.scores")
    for bias in inputs[3:]:
        scores = graph.emit("Add", [scores, bias], shape, "float32")
    weights = graph.emit("Softmax", [scores], shape, "float32", axis=-1)
    return products.of_activations(graph, weights, value, (*query.shape[:3], value.shape[3]), f"{site}.mixed")


def _take(translator: Any, equation: Any, inner: Any, inputs: list[Value]) -> Value | None:
    """``jnp.take``: Gather, without the steps that count negative numbers from the end."""
    gathers = [found for found in _equations(inner) if found.primitive.name == "gather"]
    if len(gathers) != 1 or len(inputs) != 2:
        return None
    numbers = gathers[0].params["dimension_numbers"]
    if len(numbers.collapsed_slice_dims) != 1 or numbers.operand_batching_dims:
        return None
    return take_rows(translator, inputs[0], inputs[1], equation, int(numbers.collapsed_slice_dims[0]))


def _take_along_axis(translator: Any, equation: Any, inner: Any, inputs: list[Value]) -> Value | None:
    """``jnp.take_along_axis``: GatherElements."""
    values, places = (translator.full(value, atom) for value, atom in zip(inputs, equation.invars, strict=True))
    axis = _gathered_axis(inner)
    if axis is None:
        return None
    graph, shape = translator.graph, equation.outvars[0].aval.shape
    places = graph.expand(places, shape)
    rest = [
        size if place == axis else wanted for place, (size, wanted) in enumerate(zip(values.shape, shape, strict=True))
    ]
    return graph.emit("GatherElements", [graph.expand(values, rest), places], shape, values.dtype, axis=axis)


def _gathered_axis(inner: Any) -> int | None:
    gathers = [found for found in _equations(inner) if found.primitive.name == "gather"]
    if len(gathers) != 1:
        return None
    numbers = gathers[0].params["dimension_numbers"]
    return int(numbers.start_index_map[0]) if len(numbers.start_index_map) == 1 else None


def _relu(translator: Any, equation: Any, inner: Any, inputs: list[Value]) -> Value:
    """``jax.nn.relu``."""
    return translator.graph.emit("Relu", inputs[:1], inputs[0].shape, "float32")


FUNCTIONS: dict[str, Callable[..., Value | None]] = {
    "_linear": _linear,
    "layer_norm": _layer_norm,
    "gelu_erf": _gelu,
    "gelu": _gelu,
    "_attend": _attention,
    "_take": _take,
    "take": _take,
    "take_along_axis": _take_along_axis,
    "relu": _relu,
}
"""Functions by name. Each returns its result, or None to be translated equation by equation."""
