"""JAX: a compiled program for every function and shape, none of which can be compiled anew by a request."""

import concurrent.futures
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from flaxbert.core.runtime import num_threads
from flaxbert.data.tokenization import pad_token_id
from flaxbert.errors import ShapeError
from flaxbert.families.graph import forward, graph_definition
from flaxbert.model import Model
from flaxbert.serve.compilations import ordered
from flaxbert.serve.engines.base import Engine, Report
from flaxbert.serve.engines.program_cache import ProgramCache
from flaxbert.serve.functions import Function
from flaxbert.serve.shapes import Shape, ShapePlan

_LEVEL = "xla_backend_optimization_level"


def _compiler_options() -> dict[str, str | bool] | None:
    """Returns how programs are compiled, unless XLA's flags say something else.

    On CPU level 1 takes a fifth off compiling and nothing off the speed, because products come from a library (MiniLM, 15.1 against 15.5 ms
    for 64 tokens).
    """
    if jax.default_backend() != "cpu" or _LEVEL in os.environ.get("XLA_FLAGS", ""):
        return None
    return {_LEVEL: "1"}


class JaxEngine(Engine):
    """Programs that are compiled ahead; a shape that is not of the plan is an error, never a compilation.

    Args:
      model: The model.
      functions: What is computed of it.
      plan: The shapes.
    """

    name = "jax"

    def __init__(self, model: Model, functions: Mapping[str, Function], plan: ShapePlan) -> None:
        self.functions = functions
        self.plan = plan
        self.pad_token_id = pad_token_id(model.tokenizer)
        self.pipelined = jax.default_backend() != "cpu"
        self._model = model
        self._params = model.params
        self._programs: dict[tuple[str, Shape], Any] = {}
        self._cache = ProgramCache(f"{model.config}\n{model.task}\n{model.execution}", model.params)

    def _open(self, function: Function, shape: Shape) -> None:
        name, batch = f"{function.identity} {shape}", function.example(*shape)
        program = self._cache.read(name, self._params, batch)
        if program is None:
            with ordered():
                program = self._compile(function, batch)
            self._cache.write(name, program, self._params, batch)
        self._programs[function.name, shape] = program

    def _compile(self, function: Function, batch: Mapping[str, np.ndarray]) -> Any:
        graph = graph_definition(self._model.config, self._model.task, self._model.execution)

        def run(params: Any, batch: Any) -> Any:
            return function.postprocess(forward(graph, params, batch), params, batch)

        return jax.jit(run).lower(self._params, batch).compile(_compiler_options())

    def prepare(self, report: Report) -> None:
        """See ``Engine.prepare``; programs are compiled side by side, and read where they were compiled before.

        Args:
          report: Is told how far it is.
        """
        wanted = [(function, shape) for function in self.functions.values() for shape in self.plan.shapes()]
        report(0, len(wanted))
        with concurrent.futures.ThreadPoolExecutor(max(1, num_threads())) as pool:
            tasks = [pool.submit(self._open, function, shape) for function, shape in wanted]
            for number, task in enumerate(concurrent.futures.as_completed(tasks), 1):
                task.result()
                report(number, len(wanted))
        self._cache.prune()

    def start(self, function: str, batch: Mapping[str, Int[np.ndarray, "..."]]) -> Any:
        """See ``Engine.start``.

        Args:
          function: Name of the function.
          batch: Its inputs.

        Returns:
          What ``finish`` takes.

        Raises:
          ShapeError: No program is compiled for the shape.
        """
        shape = batch["input_ids"].shape
        program = self._programs.get((function, shape))
        if program is None:
            raise ShapeError(f"{function} of {list(shape)} is no shape that was compiled.")
        return program(self._params, dict(batch))

    def finish(self, started: Any) -> np.ndarray:
        """See ``Engine.finish``.

        Args:
          started: From ``start``.

        Returns:
          One entry a row.
        """
        return np.asarray(started)
