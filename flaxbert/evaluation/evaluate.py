"""Running a network over held-out batches on a mesh and scoring the result."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.sharding import place_batch, replicated
from flaxbert.families.graph import forward, graph_definition

ForwardProgram = Callable[[Any, Mapping[str, Any]], tuple[Any, Any]]


@functools.lru_cache(maxsize=16)
def evaluation_program(config: ModelConfig, task: str, execution: Execution, mesh: Mesh) -> ForwardProgram:
    """Returns the compiled program ``(params, batch) -> (logits, example_index)`` with results whole on every process.

    Args:
      config: Architecture.
      task: Canonical task name.
      execution: How the network is run.
      mesh: Mesh that parameters and batches lie on.
    """
    graphdef = graph_definition(config, task, execution)

    def run(params: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        return forward(graphdef, params, batch).logits, batch["example_index"]

    return jax.jit(run, out_shardings=(replicated(mesh), replicated(mesh)))


def collect_logits(
    program: ForwardProgram, params: Any, batches: Iterable[Mapping[str, np.ndarray]], num_examples: int, mesh: Mesh
) -> np.ndarray | list[np.ndarray]:
    """Runs all batches and returns the logits in the order of the examples.

    Args:
      program: From ``evaluation_program``.
      params: Parameter tree on the mesh.
      batches: Batches with ``example_index``: the number of each row's example, -1 for rows that only fill the batch.
      num_examples: Number of examples.
      mesh: The mesh.

    Returns:
      float32 ``[examples, labels]``; for scores per token a list of ``[length, labels]`` arrays, padding included.
    """
    rows: list[Any] = [None] * num_examples
    pending: list[tuple[Any, Any]] = []
    with jax.set_mesh(mesh):
        for batch in batches:
            pending.append(program(params, place_batch(batch, mesh)))
            if len(pending) > 2:
                _store(rows, pending.pop(0))
    for output in pending:
        _store(rows, output)
    if rows and rows[0] is not None and rows[0].ndim == 1:
        return np.stack(rows)
    return rows


def _store(rows: list[Any], output: tuple[Any, Any]) -> None:
    logits, indices = (np.asarray(array) for array in output)
    for row, index in enumerate(indices.tolist()):
        if index >= 0:
            rows[index] = logits[row]
