"""Which engine runs a model: the one that was asked for, or the fastest of those that are installed."""

import functools
import logging
from collections.abc import Mapping

from flaxbert.errors import ConfigError, nearest
from flaxbert.export.choosing import AUTO, JAX, Runs, Shape, fastest_engine
from flaxbert.export.running import ENGINE_FORMATS
from flaxbert.model import Model
from flaxbert.serve.engines.base import Engine
from flaxbert.serve.engines.exported_engine import ExportedEngine
from flaxbert.serve.engines.jax_engine import JaxEngine
from flaxbert.serve.functions import Function
from flaxbert.serve.shapes import ShapePlan

_LOG = logging.getLogger("flaxbert.serve")

ENGINES = (JAX, *ENGINE_FORMATS, AUTO)
"""Names of engines."""

_LENGTHS = (24, 64, 256)
"""Lengths that engines are measured with: a sentence, a passage, a page."""


def open_engine(
    name: str, model: Model, functions: Mapping[str, Function], plan: ShapePlan, digest: str = ""
) -> Engine:
    """Returns an engine with a model; unless it was chosen by measurement, it is not ready yet.

    Args:
      name: A name of ``ENGINES``.
      model: The model.
      functions: What is computed of it.
      plan: The shapes.
      digest: What identifies the model's bytes.

    Returns:
      The engine.

    Raises:
      ConfigError: There is no such engine.
      DependencyError: It is not installed.
    """
    if name not in ENGINES:
        raise ConfigError(f"Unknown engine '{name}'; choose {', '.join(ENGINES)}.{nearest(name, ENGINES)}")
    if name == JAX:
        return JaxEngine(model, functions, plan)
    if name in ENGINE_FORMATS:
        return ExportedEngine(name, model, functions, plan, digest)
    return _fastest(model, functions, plan, digest)


def _shapes(plan: ShapePlan) -> list[Shape]:
    lengths = dict.fromkeys(plan.bucket(min(length, plan.lengths[-1])) for length in _LENGTHS)
    return [(1, length) for length in lengths]


def _fastest(model: Model, functions: Mapping[str, Function], plan: ShapePlan, digest: str) -> Engine:
    shapes = _shapes(plan)
    trial = ShapePlan(tuple(length for _, length in shapes), (1,), plan.max_batch_tokens)
    function = next(iter(functions.values()))

    def open_runs(name: str) -> Runs:
        engine = open_engine(name, model, {function.name: function}, trial, digest)
        engine.prepare(lambda done, total: None)
        return [functools.partial(engine.run, function.name, function.example(*shape)) for shape in shapes]

    return open_engine(fastest_engine(model, digest, shapes, open_runs, _LOG.info), model, functions, plan, digest)
