"""ONNX Runtime and OpenVINO: the exported graph, on CPUs; batches as long as their longest row, without padding to a shape."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.data.tokenization import pad_token_id
from flaxbert.errors import WeightsError
from flaxbert.export import engines
from flaxbert.export.running import open_exported, require_engine, to_output
from flaxbert.model import Model
from flaxbert.nn.host_pooling import pool_tokens
from flaxbert.serve.engines.base import Engine, Report
from flaxbert.serve.functions import MASKED, POOL_MASK, SPARSE, TOKENS, VECTORS, Function
from flaxbert.serve.shapes import ShapePlan

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
        require_engine(name)
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
        self._run = open_exported(self.name, self._model, self._digest)
        for length in self.plan.lengths[-_WARM_LENGTHS:]:
            for function in self.functions.values():
                self.run(function.name, function.example(1, length))
        report(1, 1)

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
        output = to_output(self._run(batch))
        if function == VECTORS:
            return pool_tokens(output.last_hidden_state, batch[POOL_MASK], self._modes)
        if function == TOKENS:
            return output.logits if self._model.task == "late-interaction" else output.last_hidden_state
        if function == MASKED:
            return np.take_along_axis(output.logits, batch["masked_positions"][:, :, None], axis=1)
        if function == SPARSE:
            weights = np.log1p(np.maximum(output.logits, 0.0))
            return (weights * batch["attention_mask"][:, :, None]).max(axis=1)
        return output.logits

    def finish(self, started: Any) -> np.ndarray:
        """See ``Engine.finish``.

        Args:
          started: From ``start``.

        Returns:
          One entry a row.
        """
        return np.asarray(started, np.float32)
