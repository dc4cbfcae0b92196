"""What ``--engine`` does in the commands that run a model over texts or examples."""

import sys
from typing import Any, Literal

EngineName = Literal["jax", "onnxruntime", "openvino", "auto"]

_MODEL_FILES = (".safetensors", ".bin", ".msgpack", ".h5", ".json")


def computed_by(engine: str, loaded: Any, model: str) -> Any:
    """Returns a model that another engine computes; its exported files are kept in the compile cache.

    Args:
      engine: An ``EngineName``; jax returns the model as it is, auto takes the fastest and says so on standard error.
      loaded: The model.
      model: The folder or hub id that it was loaded from.
    """
    if engine == "jax":
        return loaded
    from flaxbert.core.digests import digest_contents
    from flaxbert.export import fastest_model, in_engine
    from flaxbert.weights.hub import resolve

    digest = digest_contents(resolve(model, offline=True), _MODEL_FILES)
    if engine == "auto":
        return fastest_model(loaded, digest, lambda line: print(line, file=sys.stderr, flush=True))
    return in_engine(loaded, engine, digest)


def engine_name(model: Any) -> str:
    """Returns the name of the engine that computes a model.

    Args:
      model: From ``computed_by``.
    """
    return "jax" if model.engine is None else str(model.engine.name)
