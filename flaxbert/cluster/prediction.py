"""Prediction over Ray Data: the batches that one machine would compute, computed by many, and put back in order.

Texts are tokenized and cut into batches in the launching process, as ``flaxbert predict`` does it, so that every batch has the shape that
it has there and the numbers are the same; only the network runs elsewhere.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flaxbert import inference
from flaxbert.cluster.plan import LaunchPlan
from flaxbert.cluster.rows import Arrays, RowWorker, spread
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.model import Model, load

LoadOptions = Mapping[str, Any]
"""Arguments of ``flaxbert.load``."""


@dataclasses.dataclass(frozen=True)
class ClusterModel(Model):
    """A model whose network runs in the workers of a cluster that this process is connected to.

    Attributes:
      plan: What is launched.
      source: How a worker loads the model.
    """

    plan: LaunchPlan | None = None
    source: LoadOptions = dataclasses.field(default_factory=dict)

    def _run_features(
        self,
        features: TokenizedExamples,
        postprocess: inference.Postprocess,
        batch_size: int,
        max_length: int,
        keep_length: bool,
    ) -> list[np.ndarray]:
        if self.plan is None:
            return super()._run_features(features, postprocess, batch_size, max_length, keep_length)
        batches = list(inference.input_batches(features, batch_size=batch_size, max_length=max_length))
        arguments = (str(self.plan.folder), self.source, postprocess)
        lengths = features.lengths
        results: list[Any] = [None] * len(lengths)
        outputs = spread((batch for _, batch in batches), BatchWorker, arguments, self.plan.cluster)
        for number, arrays in outputs:
            inference.put_back(results, batches[number][0], arrays["output"], lengths, keep_length)
        return results


def load_on_cluster(plan: LaunchPlan) -> Callable[..., ClusterModel]:
    """Returns what stands for ``flaxbert.load`` where the network runs on a cluster.

    Args:
      plan: What is launched.
    """

    def load_model(path_or_id: str, **options: Any) -> ClusterModel:
        source = {"path_or_id": path_or_id, **options}
        found = load(**source)
        parts = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        return ClusterModel(**{**parts, "params": {}}, plan=plan, source=source)

    return load_model


class BatchWorker(RowWorker):
    """Runs the network on batches.

    Args:
      folder: As for ``RowWorker``.
      source: How the model is loaded.
      postprocess: What of the network's output is returned.
    """

    def __init__(self, folder: str, source: LoadOptions, postprocess: inference.Postprocess) -> None:
        super().__init__(folder)
        self._source, self._postprocess = source, postprocess
        self._program: Callable[[Any], Any] | None = None

    def work(self, number: int, arrays: Arrays) -> Arrays:
        """See ``RowWorker.work``."""
        del number
        if self._program is None:
            from flaxbert.core.runtime import configure

            configure()
            model = load(**self._source)
            program = inference.compiled_forward(model.config, model.task, model.execution, self._postprocess)
            self._program = lambda batch: program(model.params, batch)
        return {"output": np.asarray(self._program(dict(arrays)))}
