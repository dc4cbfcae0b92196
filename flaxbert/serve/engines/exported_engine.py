"""ONNX Runtime and OpenVINO: the exported graph, on CPUs; batches as long as their longest row, without padding to a shape."""

import hashlib
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.core.processor import multiplies_bfloat16, sums_bytes_exactly
from flaxbert.core.runtime import compilation_cache_folder
from flaxbert.core.trees import computes_in_int8
from flaxbert.data.tokenization import pad_token_id
from flaxbert.errors import WeightsError
from flaxbert.export import engines
from flaxbert.export.export import ExportOptions, export_model
from flaxbert.model import Model
from flaxbert.serve.engines.base import Engine, Report
from flaxbert.serve.functions import LOGITS, MASKED, POOL_MASK, SPARSE, TOKENS, VECTORS, Function
from flaxbert.serve.pooling import pool_tokens
from flaxbert.serve.shapes import ShapePlan

FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}
"""Format of the files that each engine runs."""

CACHE_FOLDER = "served-exports"
_WARM_LENGTHS = 3


class ExportedEngine(Engine):
    """A graph that takes any shape.

    Args:
      name: ``onnxruntime`` or ``openvino``.
      model: The model.
      functions: What is computed of it.
      plan: The shapes; only their limits count.
      digest: What identifies the model's bytes, so that the files can be kept; empty to make them anew.

    Raises:
      DependencyError: A package of the extra ``onnx`` or ``openvino`` is missing.
    """

    exact_shapes = False

    def __init__(
        self, name: str, model: Model, functions: Mapping[str, Function], plan: ShapePlan, digest: str = ""
    ) -> None:
        engines.require(name, f"--engine {name}")
        engines.require("onnx", f"--engine {name}")
        self.name = name
        self.functions = functions
        self.plan = plan
        self.pad_token_id = pad_token_id(model.tokenizer)
        self._model = model
        self._digest = digest
        self._modes = tuple(model.pooling.modes) if model.pooling is not None else ("mean",)
        self._run: engines.Engine | None = None

    def prepare(self, report: Report) -> None:
        """See ``Engine.prepare``: exports the model where that was not done before, opens it and runs it once for some lengths.

        Args:
          report: Is told how far it is.

        Raises:
          WeightsError: The exported graph does not compute what the model does.
        """
        report(0, 1)
        folder = self._kept_folder()
        if folder is not None and folder.is_dir():
            try:
                self._run = self._open(folder)
            except Exception:  # noqa: BLE001  a file that was kept and can not be opened is made anew
                shutil.rmtree(folder, ignore_errors=True)
        if self._run is None:
            self._export(folder)
        for length in self.plan.lengths[-_WARM_LENGTHS:]:
            for function in self.functions.values():
                self.run(function.name, function.example(1, length))
        report(1, 1)

    def _kept_folder(self) -> pathlib.Path | None:
        cache = compilation_cache_folder()
        if cache is None or not self._digest:
            return None
        import importlib.metadata

        versions = [importlib.metadata.version(package) for package in ("flaxbert", self.name)]
        words = [self.name, self._digest, self._model.task, str(self._options()), *versions]
        parent = cache / CACHE_FOLDER
        parent.mkdir(mode=0o700, exist_ok=True)
        return parent / hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]

    def _options(self) -> ExportOptions:
        reduced = computes_in_int8(self._model.params) and not sums_bytes_exactly()
        return ExportOptions(format=FORMATS[self.name], reduced_range=reduced)

    def _export(self, kept: pathlib.Path | None) -> None:
        parent = kept.parent if kept is not None else None
        work = pathlib.Path(tempfile.mkdtemp(prefix=".export-", dir=parent))
        try:
            export_model(self._model, work / "model", self._options())
            if kept is None:
                self._run = self._open(work / "model")
                return
            try:
                (work / "model").rename(kept)
            except OSError:  # another process was faster
                if not kept.is_dir():
                    raise
            self._run = self._open(kept)
        finally:
            shutil.rmtree(work, ignore_errors=True)  # an open engine has read what it needs

    def _open(self, folder: pathlib.Path) -> engines.Engine:
        if self.name == "onnxruntime":
            return engines.open_onnxruntime(folder / engines.ONNX_FILE)
        return engines.open_openvino(folder / engines.OPENVINO_FILE, precision=self._openvino_precision())

    def _openvino_precision(self) -> str:
        """Returns the type of what is not int8: bfloat16 where there are units for it and it was asked for, or the model is int8."""
        coarse = self._model.execution.precision == "bfloat16" or computes_in_int8(self._model.params)
        return "bf16" if coarse and multiplies_bfloat16() else "f32"

    def start(self, function: str, batch: Mapping[str, Int[np.ndarray, "..."]]) -> Any:
        """See ``Engine.start``; everything happens here.

        Args:
          function: Name of the function.
          batch: Its inputs.

        Returns:
          What ``finish`` takes.

        Raises:
          WeightsError: The engine is not ready.
        """
        if self._run is None:
            raise WeightsError("The engine is not ready.")
        outputs = self._run(batch)
        if function == VECTORS:
            return pool_tokens(outputs["last_hidden_state"], batch[POOL_MASK], self._modes)
        if function == TOKENS:
            return outputs["logits" if self._model.task == "late-interaction" else "last_hidden_state"]
        scores = outputs.get("logits", outputs.get("prediction_logits"))
        if function == MASKED and scores is not None:
            return np.take_along_axis(scores, batch["masked_positions"][:, :, None], axis=1)
        if function == SPARSE and scores is not None:
            weights = np.log1p(np.maximum(scores, 0.0))
            return (weights * batch["attention_mask"][:, :, None]).max(axis=1)
        if function == LOGITS and scores is None:
            return np.stack([outputs["start_logits"], outputs["end_logits"]], axis=-1)
        return scores

    def finish(self, started: Any) -> np.ndarray:
        """See ``Engine.finish``.

        Args:
          started: From ``start``.

        Returns:
          One entry a row.
        """
        return np.asarray(started, np.float32)
