"""What a model folder says of itself: its config and family, its tensors unread, the task it was made for."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flaxbert.architecture import ModelConfig, resolve_task
from flaxbert.errors import ConfigError, WeightsError, nearest
from flaxbert.families import FAMILIES, Family, get_family
from flaxbert.weights.name_table import NamedTensors, derive_task
from flaxbert.weights.readers import StoredTensor, open_weights, read_json_object, read_safetensors_header
from flaxbert.weights.sentence_transformers import SentencePooling, transformer_folder
from flaxbert.weights.typed_leaves import CODES_FILE, StoredLeaf, open_parts, read_leaves

_CONFIG_FILES = ("config.json", "bert_config.json", "albert_config.json")


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened folder.

    Attributes:
      folder: Where config and weights lie.
      family: The family.
      json: The parsed config.
      tensors: Tensors by name, parts of typed leaves aside.
      typed: Typed leaves by leaf name.
      parts: Parts of typed leaves by tensor name.
      named: The tensors sorted by what the family's table says of them.
    """

    folder: pathlib.Path
    family: Family
    json: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    typed: Mapping[str, StoredLeaf]
    parts: Mapping[str, StoredTensor]
    named: NamedTensors


def check_folder(folder: pathlib.Path) -> None:
    """Refuses a path that is no model folder.

    Args:
      folder: The path.

    Raises:
      WeightsError: It does not exist, is a file, or has no config; says what is there and what is needed.
    """
    if not folder.exists():
        raise WeightsError(f"The folder {folder} does not exist.")
    if not folder.is_dir():
        raise WeightsError(f"{folder} is a file; a model is a folder with config.json and weights (model.safetensors).")
    root = transformer_folder(folder)
    if not any((root / name).is_file() for name in _CONFIG_FILES):
        names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        listing = ", ".join(names[:12]) + (" …" if len(names) > 12 else "") or "nothing"
        raise WeightsError(
            f"{root} is no model folder: it has no config.json. Needed are config.json and model.safetensors, and "
            f"tokenizer.json or vocab.txt for texts; there is {listing}."
        )


def read_family(root: pathlib.Path, names: Sequence[str]) -> tuple[Mapping[str, Any], Family, ModelConfig, list[str]]:
    """Returns the parsed config, the family, the architecture, and notes on what was assumed.

    Args:
      root: Folder of the config.
      names: Names of the tensors beside it, for a config that does not say the family.

    Raises:
      ConfigError: The family is unknown, or the config can not be used.
      WeightsError: There is no ``model_type`` and the names fit no family.
    """
    file = next(root / name for name in _CONFIG_FILES if (root / name).is_file())
    json, notes = read_json_object(file), []
    if "auto_map" in json:
        notes.append(f"{file.name} asks for code of its own (auto_map), which flaxbert never runs.")
    model_type = json.get("model_type")
    if model_type is None:
        fitting = [
            f.model_type for f in FAMILIES.values() if not names or any(n.endswith(f.tensors[0].tensor) for n in names)
        ]
        prefixed = [name for name in fitting if any(n.startswith(f"{get_family(name).prefix}.") for n in names)]
        if not fitting:
            raise WeightsError(
                f"{file} has no model_type and the tensors' names fit no family ({', '.join(FAMILIES)})."
            )
        model_type = (prefixed or fitting)[0]
        notes.append(f"{file.name} has no model_type; taken for {model_type}, which its keys and tensor names fit.")
    try:
        family = get_family(str(model_type))
        return json, family, family.adapt_config(family.config_from_json(json), names), notes
    except ConfigError as error:
        own = " It comes with code of its own (auto_map), which flaxbert never runs." if "auto_map" in json else ""
        raise ConfigError(f"{file}: {error}{own}") from error


def read_config(folder: str | pathlib.Path) -> ModelConfig:
    """Returns the architecture that a model folder describes, without reading its weights.

    Args:
      folder: A folder in Hugging Face or sentence-transformers layout.

    Raises:
      WeightsError: The folder is no model.
      ConfigError: Its ``config.json`` is not usable.
    """
    folder = pathlib.Path(folder)
    check_folder(folder)
    return read_family(transformer_folder(folder), [])[2]


def open_tensors(root: pathlib.Path) -> tuple[dict[str, StoredTensor], dict[str, StoredLeaf], dict[str, StoredTensor]]:
    """Returns the tensors, the typed leaves and the tensors that are parts of these, none of them read yet.

    Args:
      root: Folder of the weights.

    Raises:
      WeightsError: There are no weights that flaxbert reads, or a file is broken.
    """
    typed = read_leaves(root)
    tensors = read_safetensors_header(root / CODES_FILE)[0] if (root / CODES_FILE).is_file() else open_weights(root)
    if not typed:
        return tensors, {}, {}
    part_names = {place.tensor for leaf in typed.values() for place in leaf.parts.values()}
    parts = {name: tensor for name, tensor in tensors.items() if name in part_names} | open_parts(root)
    return {name: tensor for name, tensor in tensors.items() if name not in part_names}, typed, parts


def declared_task(json: Mapping[str, Any], family: Family) -> tuple[str | None, str]:
    """Returns the task that a folder was made for, None where there is none, and the class that it names.

    Args:
      json: The parsed config.
      family: The family.
    """
    classes = json.get("architectures")
    if not classes:
        return None, ""
    name = str(classes[0]) if isinstance(classes, list) else str(classes)
    by_class = {architecture: task for task, architecture in family.architectures.items()}
    return by_class.get(name), name


def choose_task(
    task: str | None, source: Source, pooling: SentencePooling | None, notes: list[str]
) -> tuple[str, bool]:
    """Returns the task, and whether the folder's classifier was made for it.

    Args:
      task: The task asked for; None takes what the folder says or, where it says nothing, what its tensors are.
      source: The folder.
      pooling: How its sentence vectors are made; None where it is no sentence model.
      notes: Receives what was assumed.

    Raises:
      ConfigError: The task is unknown, or the folder was made for a class that flaxbert has no task for.
    """
    declared, name = declared_task(source.json, source.family)
    if task is not None:
        task = resolve_task(task)
        return task, not name or declared == task
    if pooling is not None:
        return "sentence-similarity", False
    if declared is not None:
        return declared, True
    if name:
        known = ", ".join(source.family.architectures.values())
        raise ConfigError(
            f"{source.folder} was made for {name}, for which flaxbert has no task (it knows {known})."
            f"{nearest(name, source.family.architectures.values())} Pass task= to use its encoder for another task."
        )
    task = derive_task([*source.named.leaves, *source.typed])
    notes.append(f"config.json names no architectures; the tensors are those of {task}.")
    return task, True
