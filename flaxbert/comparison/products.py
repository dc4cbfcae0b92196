"""Which types a program multiplies in, counted in the program itself rather than believed of how weights are stored."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

_DOTS = ("dot_general", "flaxbert_uint8_int8_dot")
_LOOPS = "scan"
_BRANCHES = "cond"


def count_products(program: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    """Returns the multiplications of a program by the type of their operands.

    Only products of matrices and convolutions are counted. Where operands differ in width, as unsigned and signed bytes of one
    int8 product do, the type is that of the second, which holds the weights.

    Args:
      program: A function that JAX can trace; a compiled one is looked into.
      *arguments: Arrays, or their shapes.

    Returns:
      Number of multiplications by name of a type, for example ``{"int8": 1e9, "float32": 2e8}``.
    """
    totals: dict[str, float] = {}
    _count(jax.make_jaxpr(program)(*arguments).jaxpr, 1.0, totals)
    return dict(sorted(totals.items(), key=lambda entry: -entry[1]))


def low_precision_share(products: dict[str, float], compute_type: str) -> float:
    """Returns the share of multiplications in another type than the one asked for, in [0, 1].

    Args:
      products: From ``count_products``.
      compute_type: Type that a model without compressed weights multiplies in.
    """
    total = sum(products.values())
    usual = sum(count for name, count in products.items() if name in (compute_type, "float32"))
    return (total - usual) / total if total else 0.0


def _own_branch(platforms: Any) -> int:
    """Returns the number of the branch that the default backend takes; the last one where none names it."""
    backend = jax.default_backend()
    names = {"gpu": ("cuda", "rocm")}.get(backend, (backend,))
    fitting = (place for place, own in enumerate(platforms) if own is not None and set(own) & set(names))
    return next(fitting, len(platforms) - 1)


def _count(jaxpr: Any, times: float, totals: dict[str, float]) -> None:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _DOTS or name == "conv_general_dilated":
            kind = str(equation.invars[1].aval.dtype)
            totals[kind] = totals.get(kind, 0.0) + times * _multiplications(equation)
        inner = list(_inner(equation))
        platforms = equation.params.get("branches_platforms")
        if name == _BRANCHES and platforms is not None:
            inner = [equation.params["branches"][_own_branch(platforms)].jaxpr]
        elif name == _BRANCHES and inner:  # the branch that multiplies most stands for all
            counted: list[dict[str, float]] = [{} for _ in inner]
            for branch, own in zip(inner, counted, strict=True):
                _count(branch, times, own)
            largest = max(counted, key=lambda own: sum(own.values()))
            totals.update({kind: totals.get(kind, 0.0) + count for kind, count in largest.items()})
            continue
        repeats = float(equation.params["length"]) if name == _LOOPS else 1.0
        for part in inner:
            _count(part, times * repeats, totals)


def _inner(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner


def _multiplications(equation: Any) -> float:
    outputs = math.prod(equation.outvars[0].aval.shape)
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    if equation.primitive.name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        return float(outputs * math.prod(left[axis] for axis in contracted))
    if equation.primitive.name == "conv_general_dilated":
        numbers = equation.params["dimension_numbers"]
        return float(outputs * math.prod(right) / right[numbers.rhs_spec[0]])
    return float(outputs * left[-1])
