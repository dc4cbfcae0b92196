"""Models that compute in ONNX Runtime or OpenVINO: exported once, kept, opened, and used as any model is."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxbert.core.processor import multiplies_bfloat16, sums_bytes_exactly
from flaxbert.core.runtime import compilation_cache_folder
from flaxbert.core.trees import computes_in_int8
from flaxbert.errors import ConfigError, ShapeError, nearest
from flaxbert.export import engines
from flaxbert.export.export import ExportOptions, export_model
from flaxbert.model import Model
from flaxbert.nn.network import ModelOutput, check_inputs

ENGINE_FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}
"""Format of the files that each engine runs."""

CACHE_FOLDER = "served-exports"
"""Folder of the compile cache in which exported files are kept."""

MOST_KEPT = 32
"""Exported models that are kept."""

_UNFINISHED = ".export-"
_LEFT_SECONDS = 86_400.0
_LOG = logging.getLogger("flaxbert.export")


def require_engine(name: str) -> None:
    """Checks that an engine and what writes its files are installed.

    Args:
      name: A key of ``ENGINE_FORMATS``.

    Raises:
      ConfigError: There is no such engine.
      DependencyError: A package of the extra ``onnx`` or ``openvino`` is missing.
    """
    if name not in ENGINE_FORMATS:
        known = ", ".join(ENGINE_FORMATS)
        raise ConfigError(f"Unknown engine '{name}'; choose {known}.{nearest(name, ENGINE_FORMATS)}")
    for package in (name, "onnx"):
        engines.require(package, f"--engine {name}")


def open_exported(name: str, model: Model, digest: str = "") -> engines.Engine:
    """Exports a model, unless that was done before, and returns an engine with it.

    What is int8 of the model is int8 in the engine. The rest is computed in float32, and by OpenVINO in bfloat16 where the processor has units
    for it and the model is int8 or asks for it. On processors whose sums of byte products overflow, codes keep within the reduced range.

    Args:
      name: ``onnxruntime`` or ``openvino``.
      model: The model.
      digest: What identifies the model's bytes, so that the files can be kept in the compile cache; empty to make them anew.

    Returns:
      The engine.

    Raises:
      ConfigError: There is no such engine.
      DependencyError: A package of the extra ``onnx`` or ``openvino`` is missing.
      WeightsError: The exported graph does not compute what the model does.
    """
    require_engine(name)
    kept = _kept_folder(name, model, digest)
    if kept is not None and kept.is_dir():
        with contextlib.suppress(OSError):  # the time of use of files that can not be written stays as it is
            os.utime(kept)
        try:
            return _open(name, model, kept)
        except Exception:  # noqa: BLE001  a file that was kept and can not be opened is made anew
            shutil.rmtree(kept, ignore_errors=True)
    return _export(name, model, kept)


def in_engine(model: Model, name: str, digest: str = "") -> Model:
    """Returns a model whose forward passes over texts and files are computed by another engine: ``predict``, ``predict_logits``, ``encode``…

    ``apply`` is a function of parameters and stays with JAX; so does a copy with other parameters.

    Args:
      model: The model.
      name: As for ``open_exported``.
      digest: As for ``open_exported``.

    Returns:
      The model.

    Raises:
      ConfigError: There is no such engine.
      DependencyError: A package of the extra ``onnx`` or ``openvino`` is missing.
      WeightsError: The exported graph does not compute what the model does.
      ShapeError: (When called) an input is longer than the model's positions, or not what the task takes.

    Example:
      >>> in_engine(load("MODEL-int8"), "openvino").predict(["A fine film."])  # doctest: +SKIP
    """
    return model.replace(
        engine=ExportedForward(name, open_exported(name, model, digest), model.task, model.config.max_length)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedForward:
    """The forward pass of a model in another engine.

    Attributes:
      name: ``onnxruntime`` or ``openvino``.
      run: The engine with the exported files.
      task: The model's task.
      max_length: Its positions.
    """

    name: str
    run: engines.Engine
    task: str
    max_length: int

    def __call__(self, batch: Mapping[str, Any]) -> ModelOutput:
        """Returns what the network returns.

        Args:
          batch: Integer arrays by name.

        Raises:
          ShapeError: An input is longer than the model's positions, or not what the task takes.
        """
        shape = batch["input_ids"].shape
        check_inputs(self.task, shape, has_entities="entity_mask" in batch)
        if shape[-1] > self.max_length:
            raise ShapeError(
                f"An input of {shape[-1]} tokens is longer than the {self.max_length} positions of the model; truncate it."
            )
        return to_output(self.run(batch))


def to_output(outputs: Mapping[str, np.ndarray]) -> ModelOutput:
    """Returns outputs of an exported graph as the network returns them.

    Args:
      outputs: Arrays by the names that ``signature.named_outputs`` gives them.
    """
    logits = outputs.get("logits", outputs.get("prediction_logits"))
    if "start_logits" in outputs:
        logits = np.stack([outputs["start_logits"], outputs["end_logits"]], axis=-1)
    return ModelOutput(logits, outputs.get("last_hidden_state"))


def _kept_folder(name: str, model: Model, digest: str) -> pathlib.Path | None:
    cache = compilation_cache_folder()
    if cache is None or not digest:
        return None
    versions = [importlib.metadata.version(package) for package in ("flaxbert", "onnx", name)]
    words = [name, digest, model.task, str(model.config), str(_options(name, model)), *versions]
    parent = cache / CACHE_FOLDER
    parent.mkdir(mode=0o700, exist_ok=True)
    return parent / hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]


def _options(name: str, model: Model) -> ExportOptions:
    reduced = computes_in_int8(model.params) and not sums_bytes_exactly()
    return ExportOptions(format=ENGINE_FORMATS[name], reduced_range=reduced)


def _export(name: str, model: Model, kept: pathlib.Path | None) -> engines.Engine:
    work = pathlib.Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=None if kept is None else kept.parent))
    try:
        made = work / "model"
        for notice in export_model(model, made, _options(name, model)).notices:
            _LOG.warning("%s", notice)
        if kept is None:
            return _open(name, model, made)
        try:
            made.rename(kept)
        except OSError:  # another process was faster
            if not kept.is_dir():
                raise
        _prune(kept.parent)
        return _open(name, model, kept)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # an open engine has read what it needs


def _prune(parent: pathlib.Path) -> None:
    """Deletes what was not used for longest, and what interrupted processes left; an open engine has read its files."""
    used = []
    for folder in parent.iterdir():
        with contextlib.suppress(OSError):  # another process deletes too
            used.append((folder.stat().st_mtime, folder))
    whole = sorted((last, folder) for last, folder in used if not folder.name.startswith(_UNFINISHED))
    left = [
        folder for last, folder in used if folder.name.startswith(_UNFINISHED) and time.time() - last > _LEFT_SECONDS
    ]
    for folder in (*left, *(folder for _, folder in whole[:-MOST_KEPT])):
        shutil.rmtree(folder, ignore_errors=True)


def _open(name: str, model: Model, folder: pathlib.Path) -> engines.Engine:
    if name == "onnxruntime":
        return engines.open_onnxruntime(folder / engines.ONNX_FILE)
    return engines.open_openvino(folder / engines.OPENVINO_FILE, precision=_openvino_precision(model))


def _openvino_precision(model: Model) -> str:
    """Returns the type of what is not int8: bfloat16 where there are units for it and it was asked for, or the model is int8."""
    coarse = model.execution.precision == "bfloat16" or computes_in_int8(model.params)
    return "bf16" if coarse and multiplies_bfloat16() else "f32"
