"""Adding what a command has made to a registry."""

import pathlib
from collections.abc import Mapping
from typing import Any

from flaxbert.registry.names import check_name
from flaxbert.registry.registry import Registry


def check_registration(name: str, location: str) -> None:
    """Refuses a name or a registry that can not be, before any work is done.

    Args:
      name: The model; empty where nothing is to be added.
      location: The registry; empty takes ``FLAXBERT_REGISTRY``.

    Raises:
      ConfigError: The name is none, no registry is named, or it can not be opened.
    """
    if name:
        check_name(name)
        Registry(location)


def register(
    name: str,
    location: str,
    folder: pathlib.Path,
    *,
    source: str = "",
    origin: str = "",
    metrics: Mapping[str, float] | None = None,
    data: Mapping[str, Any] | None = None,
    note: str = "",
) -> str:
    """Adds a model folder to a registry.

    Args:
      name: The model.
      location: The registry; empty takes ``FLAXBERT_REGISTRY``.
      folder: What was made.
      source: Folder or hub id that it was made of; where that is a version of the registry, the version is its parent.
      origin: What is told of other sources.
      metrics: Scores; None takes those of its card.
      data: What it was trained on.
      note: A sentence for people.

    Returns:
      A line that says so.

    Raises:
      ConfigError: The same files are a version already.
      DataError: Files changed while they were copied.
    """
    registry = Registry(location)
    parent = registry.reference_of(source) or origin
    record = registry.add(name, folder, metrics=metrics, data=data, parent=parent, note=note)
    return f"It is {name}:{record.number} in {registry.location}."
