"""Translation of a traced network into a graph: equation by equation, named functions first."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from flaxbert.errors import ConfigError
from flaxbert.export.functions import FUNCTIONS
from flaxbert.export.graph import Graph, Value, is_number
from flaxbert.export.primitives import PRIMITIVES
from flaxbert.export.products import Products

MOST_FOLDED = 1 << 27
"""Constants of more entries are not computed beforehand."""

_CALLS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call"}
)
_NAMED_JAXPRS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Translator:
    """Puts the equations of a jaxpr into a graph.

    Args:
      graph: The graph.
      products: How matrix products are written.
    """

    def __init__(self, graph: Graph, products: Products) -> None:
        self.graph = graph
        self.products = products
        self.num_attentions = 0

    def run(self, closed: Any, inputs: Sequence[Value]) -> list[Value]:
        """Returns the results of a closed jaxpr.

        Args:
          closed: The jaxpr with its constants.
          inputs: Values of its inputs.

        Raises:
          ConfigError: An equation is none that can be written as a graph; the message names it.
        """
        jaxpr = closed.jaxpr
        known: dict[Any, Value] = {}
        for variable, constant in zip(jaxpr.constvars, closed.consts, strict=True):
            known[variable] = self.graph.constant(np.asarray(constant))
        known.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Value:
            return self.graph.constant(np.asarray(atom.val, atom.aval.dtype)) if hasattr(atom, "val") else known[atom]

        for equation in jaxpr.eqns:
            results = self.equation(equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, inputs: list[Value]) -> list[Value]:
        """Returns the results of one equation.

        Args:
          equation: The equation.
          inputs: Values of its inputs.

        Raises:
          ConfigError: It can not be written as a graph.
        """
        name = equation.primitive.name
        if name == "platform_index":
            return [self.graph.constant(np.int32(equation.params["platforms"].index(None)))]
        if name == "cond":
            return self._branch(equation, inputs)
        if name in _CALLS:
            inner = next(equation.params[key] for key in _NAMED_JAXPRS if key in equation.params)
            function = FUNCTIONS.get(function_name(equation, inner))
            result = None if function is None else function(self, equation, inner, inputs)
            if result is not None:
                return [result]
            return self.run(inner if hasattr(inner, "consts") else ClosedJaxpr(inner, ()), inputs)
        folded = self._fold(equation, inputs)
        if folded is not None:
            return folded
        if name not in PRIMITIVES:
            raise ConfigError(
                f"The network uses '{name}', which the ONNX export can not write; known are {', '.join(sorted(PRIMITIVES))}. "
                "Export it with --format stablehlo instead."
            )
        result = PRIMITIVES[name](self, equation, inputs)
        return list(result) if isinstance(result, tuple) else [result]

    def _branch(self, equation: Any, inputs: list[Value]) -> list[Value]:
        index = inputs[0].array
        if index is None:
            raise ConfigError("The network chooses what to compute while it runs, which the ONNX export can not write.")
        return self.run(equation.params["branches"][int(index)], inputs[1:])

    def _fold(self, equation: Any, inputs: list[Value]) -> list[Value] | None:
        """Computes what hangs on constants alone, with JAX."""
        sizes = [size for variable in equation.outvars for size in variable.aval.shape]
        if equation.primitive.name in ("broadcast_in_dim", "gather") or not all(is_number(size) for size in sizes):
            return None
        if any(value.name for value in inputs) or any(v.aval.size > MOST_FOLDED for v in equation.outvars):
            return None
        if equation.primitive.name in ("iota", "dim_as_value") and not inputs and not sizes:
            return None
        arrays = [
            jax.numpy.asarray(np.broadcast_to(np.asarray(self.graph.dense(value)), atom.aval.shape), atom.aval.dtype)
            for value, atom in zip(inputs, equation.invars, strict=True)
        ]
        with jax.ensure_compile_time_eval():
            results = equation.primitive.bind(*arrays, **equation.params)
        many = results if equation.primitive.multiple_results else [results]
        return [self.graph.constant(np.asarray(result)) for result in many]

    def full(self, value: Value, atom: Any) -> Value:
        """Returns a value with all axes and sizes of a variable of the jaxpr.

        Args:
          value: The value.
          atom: The variable that it stands for.
        """
        return self.graph.expand(value, atom.aval.shape)


def function_name(equation: Any, inner: Any) -> str:
    """Returns the name of the Python function that an equation calls; empty where jax does not say.

    Args:
      equation: The equation.
      inner: The jaxpr of the function.
    """
    if "name" in equation.params:
        return str(equation.params["name"])
    information = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
    return str(getattr(information, "func_name", "")).split(" ")[0].rsplit(".", 1)[-1]
