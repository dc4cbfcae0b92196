"""What is written beside the arrays of a version, and with which software."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxbert.errors import CheckpointError

SOFTWARE = ("flaxbert", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
"""Packages whose versions are kept with every version of a run."""


def software_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide what a run computes, by name."""
    found = {"python": platform.python_version()}
    for package in SOFTWARE:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__}")


def encode_json(document: Mapping[str, Any], name: str) -> bytes:
    """Returns a document as JSON text; numpy numbers become plain ones.

    Args:
      document: Nested dictionaries, lists, text, numbers, truth values and None.
      name: What the document is, for the message.

    Returns:
      UTF-8 text that ends with a line break.

    Raises:
      CheckpointError: It holds anything else.
    """
    try:
        return json.dumps(document, default=_plain, indent=1).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name} of a checkpoint holds what JSON can not: {error}. Give numbers, text, lists and dictionaries."
        ) from error
