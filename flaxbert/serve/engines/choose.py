"""Which engine runs a model."""

from collections.abc import Mapping

from flaxbert.errors import ConfigError, nearest
from flaxbert.model import Model
from flaxbert.serve.engines.base import Engine
from flaxbert.serve.engines.jax_engine import JaxEngine
from flaxbert.serve.functions import Function
from flaxbert.serve.shapes import ShapePlan

ENGINES = ("jax",)
"""Names of engines."""


def open_engine(name: str, model: Model, functions: Mapping[str, Function], plan: ShapePlan) -> Engine:
    """Returns an engine with a model; it is not ready yet.

    Args:
      name: A name of ``ENGINES``.
      model: The model.
      functions: What is computed of it.
      plan: The shapes.

    Raises:
      ConfigError: There is no such engine.
    """
    if name != "jax":
        raise ConfigError(f"Unknown engine '{name}'; choose {', '.join(ENGINES)}.{nearest(name, ENGINES)}")
    return JaxEngine(model, functions, plan)
