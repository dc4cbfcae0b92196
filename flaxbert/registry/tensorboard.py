"""Versions of a model side by side in TensorBoard's HPARAMS tab."""

import json
import pathlib
import uuid
from typing import Any

from flaxbert.registry.difference import CONFIG_FILE
from flaxbert.registry.registry import Registry
from flaxbert.registry.state import VersionRecord

_ARCHITECTURE = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def write_hparams(registry: Registry, name: str, folder: str | pathlib.Path) -> list[int]:
    """Writes what each version is and how it scores, as runs of TensorBoard: ``FOLDER/NAME/VERSION``.

    A version never changes, so what is there already is left as it is.

    Args:
      registry: The registry.
      name: The model.
      folder: Folder of TensorBoard's runs.

    Returns:
      Numbers of the versions that were written now.

    Raises:
      ConfigError: There is no such model.
    """
    import tensorboardX

    written = []
    for number, record in sorted(registry.state(name).versions.items()):
        place = pathlib.Path(folder) / name / str(number)
        if place.is_dir():
            continue
        staged = place.with_name(f".{place.name}-{uuid.uuid4().hex}")  # so that a run is there whole or not at all
        with tensorboardX.SummaryWriter(logdir=str(staged)) as writer:
            writer.add_hparams(
                describe(registry, name, record), dict(record.metrics), name="version", global_step=number
            )
        staged.rename(place)
        written.append(number)
    return written


def describe(registry: Registry, name: str, record: VersionRecord) -> dict[str, bool | str | float | int]:
    """Returns what distinguishes a version from others, flat.

    Args:
      registry: The registry.
      name: The model.
      record: The version.
    """
    content = registry.storage.read(f"{name}/versions/{record.folder}/{CONFIG_FILE}")
    config = json.loads(content) if content is not None else {}
    told: dict[str, Any] = {
        "version": record.number,
        "family": record.family,
        "task": record.task,
        "parent": record.parent,
        "note": record.note,
        "size_bytes": record.size_bytes,
        **{key: config[key] for key in _ARCHITECTURE if isinstance(config.get(key), int)},
        **{f"data.{key}": value for key, value in record.data.items()},
    }
    return {key: value for key, value in told.items() if isinstance(value, bool | str | float | int) and value != ""}
