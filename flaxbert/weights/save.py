"""Writing model folders that stock transformers and sentence-transformers load, at once or not at all."""

import json
import pathlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from flaxbert.architecture import TASK_HEADS, ModelConfig
from flaxbert.core.arrays import TypedArray
from flaxbert.core.trees import flatten_names, unstack_layers
from flaxbert.errors import WeightsError, nearest
from flaxbert.families import Family, TensorName, get_family
from flaxbert.families.graph import abstract_params
from flaxbert.weights.readers import INDEX_FILE, SINGLE_FILE, read_json_object
from flaxbert.weights.sentence_transformers import SentencePooling, write_pooling
from flaxbert.weights.typed_leaves import (
    CODES_FILE,
    LEAVES_FILE,
    PARTS_FILE,
    StoredLeaf,
    describe_leaf,
    has_dense_form,
    leaves_to_json,
    quantization_config,
)
from flaxbert.weights.writers import (
    MANIFEST_FILE,
    describe_files,
    digest,
    fresh_folder,
    split_shards,
    write_safetensors,
)

MAX_SHARD_BYTES = 5_000_000_000
"""Weights above this many bytes are split into several files."""


def _tensor_name(entry: TensorName, family: Family, task: str) -> str:
    name = entry.name_for(task)
    return f"{family.prefix}.{name}" if entry.in_base and TASK_HEADS[task] else name


def _check_leaves(leaves: Mapping[str, Any], config: ModelConfig, task: str) -> None:
    expected = flatten_names(abstract_params(config, task))
    extra = [name for name in leaves if name not in expected]
    missing = [name for name in expected if name not in leaves]
    if extra or missing:
        named = (
            f"'{extra[0]}' is not one of them.{nearest(extra[0], expected)}" if extra else f"'{missing[0]}' is missing."
        )
        raise WeightsError(f"The parameters are not those of a {config.family} for '{task}': {named}")
    wrong = [name for name in expected if tuple(leaves[name].shape) != tuple(expected[name].shape)]
    if wrong:
        name = wrong[0]
        raise WeightsError(
            f"Leaf '{name}' has shape {tuple(leaves[name].shape)}, but the config needs {tuple(expected[name].shape)}."
        )


def _collect(
    leaves: Mapping[str, Any], config: ModelConfig, task: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, StoredLeaf]]:
    """Returns the tensors, the parts of typed leaves beside them, and how typed leaves are stored."""
    family = get_family(config.family)
    table = family.tensor_table(config)
    tensors: dict[str, np.ndarray] = {}
    parts: dict[str, np.ndarray] = {}
    typed: dict[str, StoredLeaf] = {}
    for leaf, value in leaves.items():
        name, transposed = _tensor_name(table[leaf], family, task), table[leaf].transform == "transpose"
        if isinstance(value, TypedArray):
            value.validate(leaf)
            typed[leaf] = describe_leaf(value, name, transposed)
            for part, place in typed[leaf].parts.items():
                if place.tensor is not None:
                    parts[place.tensor] = place.encode(np.asarray(getattr(value, part)))
        if not isinstance(value, TypedArray) or has_dense_form(value):
            array = np.asarray(value.materialize() if isinstance(value, TypedArray) else value)
            tensors[name] = array.T if transposed else array
    for plain, array in family.derived(config).items():
        tensors[f"{family.prefix}.{plain}" if TASK_HEADS[task] else plain] = array
    return tensors, parts, typed


def _write_tensors(folder: pathlib.Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> None:
    shards = split_shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / SINGLE_FILE, tensors)
        return
    stem = SINGLE_FILE.removesuffix(".safetensors")
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(array.nbytes for array in tensors.values())
    _write_json(
        folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    )


def _write_json(file: pathlib.Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _write_weights(
    folder: pathlib.Path, config: ModelConfig, task: str, leaves: Mapping[str, Any], max_shard_bytes: int
) -> dict[str, StoredLeaf]:
    tensors, parts, typed = _collect(leaves, config, task)
    is_stock = get_family(config.family).is_stock(config)
    if is_stock and all(
        place.tensor is None or leaf.kind == "sparse" for leaf in typed.values() for place in leaf.parts.values()
    ):
        _write_tensors(folder, tensors, max_shard_bytes)
        if parts:
            write_safetensors(folder / PARTS_FILE, parts)
    else:
        write_safetensors(folder / CODES_FILE, tensors | parts)
    if typed:
        _write_json(folder / LEAVES_FILE, leaves_to_json(typed))
    return typed


def _save_tokenizer(folder: pathlib.Path, tokenizer: Any) -> None:
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:  # tokenizers raises bare Exception where writing fails
        if type(error) is not Exception:
            raise
        raise OSError(None, f"the tokenizer can not be written ({error})") from error


def _versions() -> dict[str, str]:
    found = {}
    for package in ("flaxbert", "jax", "flax", "numpy", "safetensors", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def save_checkpoint(
    path: str | pathlib.Path,
    *,
    config: ModelConfig,
    task: str,
    params: Mapping[str, Any],
    tokenizer: Any = None,
    pooling: SentencePooling | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    files: Mapping[str, str] | None = None,
) -> pathlib.Path:
    """Writes a model as a folder that flaxbert and, unless leaves are quantized or sizes its own, stock transformers load.

    The folder appears at once, complete, or not at all. ``flaxbert_manifest.json`` holds the SHA-256 of every file.

    Args:
      path: The folder; it and its parents are made.
      config: Architecture.
      task: Canonical task name.
      params: Parameter tree; layers stacked or not.
      tokenizer: A tokenizer of transformers, or None.
      pooling: Written in sentence-transformers' layout where the task has no head; None for none.
      overwrite: Whether a model in the folder is replaced; files of other kinds in it are kept.
      max_shard_bytes: Weights above it are split into several files.
      files: Further text files by name, for example ``README.md``.

    Returns:
      The folder.

    Raises:
      WeightsError: The folder holds something and ``overwrite`` is not set, the disk is full, or the parameters are not
        those of the config.
    """
    target = pathlib.Path(path)
    leaves = flatten_names(unstack_layers(params))
    _check_leaves(leaves, config, task)
    with fresh_folder(target, overwrite) as folder:
        typed = _write_weights(folder, config, task, leaves, max_shard_bytes)
        write_description(folder, config, task, tokenizer, pooling, quantization_config(typed))
        for name, text in (files or {}).items():
            (folder / name).write_text(text, "utf-8")
        write_manifest(folder, task)
    return target


def write_description(
    folder: pathlib.Path,
    config: ModelConfig,
    task: str,
    tokenizer: Any = None,
    pooling: SentencePooling | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Writes what a model folder says beside the weights: ``config.json``, the tokenizer's files and how vectors are pooled.

    Args:
      folder: The folder, which exists.
      config: As for ``save_checkpoint``.
      task: The same.
      tokenizer: The same.
      pooling: The same.
      quantization: How leaves are quantized, for ``config.json``; None for nothing.
    """
    settings = get_family(config.family).config_to_json(config, task)
    if quantization is not None:
        settings["quantization_config"] = quantization
    _write_json(folder / "config.json", settings)
    max_length = config.max_length
    if tokenizer is not None:
        _save_tokenizer(folder, tokenizer)
        max_length = min(max_length, int(tokenizer.model_max_length))
    if pooling is not None and not TASK_HEADS[task]:
        max_length = min(max_length, pooling.max_length or max_length)
        write_pooling(folder, pooling, config.hidden_size, max_length, write_safetensors)


def write_manifest(folder: pathlib.Path, task: str) -> None:
    """Writes versions, and the SHA-256 of every file of a folder.

    Args:
      folder: The folder, otherwise complete.
      task: Canonical task name.
    """
    manifest = {"format_version": 1, "task": task, "versions": _versions(), "files": describe_files(folder)}
    _write_json(folder / MANIFEST_FILE, manifest)


def verify_checkpoint(folder: str | pathlib.Path) -> list[str]:
    """Compares the files of a folder with its manifest.

    Args:
      folder: A folder that ``save_checkpoint`` wrote.

    Returns:
      One sentence per file that is missing or differs; empty where all are as written.

    Raises:
      WeightsError: The folder has no manifest.
    """
    folder = pathlib.Path(folder)
    if not (folder / MANIFEST_FILE).is_file():
        raise WeightsError(f"{folder} has no {MANIFEST_FILE}; flaxbert did not write it, so it can not be verified.")
    problems = []
    for name, entry in read_json_object(folder / MANIFEST_FILE)["files"].items():
        file = folder / name
        if not file.is_file():
            problems.append(f"{file} is missing.")
        elif file.stat().st_size != entry["size_bytes"] or digest(file) != entry["sha256"]:
            problems.append(f"{file} differs from what was written (SHA-256).")
    return problems


__all__ = ["MAX_SHARD_BYTES", "save_checkpoint", "verify_checkpoint", "write_description", "write_manifest"]
