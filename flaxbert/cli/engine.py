"""What ``--engine`` does in the commands that run a model over texts or examples."""

from typing import Any, Literal

EngineName = Literal["jax", "onnxruntime", "openvino"]


def computed_by(engine: str, loaded: Any, model: str, precision: str) -> Any:
    """Returns a model that another engine computes; its exported files are kept in the compile cache.

    Args:
      engine: An ``EngineName``; jax returns the model as it is.
      loaded: The model.
      model: The folder or hub id that it was loaded from.
      precision: The precision that it was loaded in.
    """
    if engine == "jax":
        return loaded
    from flaxbert.evaluation.bulk import identity_of
    from flaxbert.export import in_engine
    from flaxbert.weights.hub import resolve

    return in_engine(loaded, engine, digest=" ".join([*identity_of(resolve(model, offline=True)), precision]))
