"""Scores of parameters on the splits of a run, and the settings that a run shares with its checkpoints."""

import dataclasses
from typing import Any

from flaxbert.core.arrays import Params
from flaxbert.core.sharding import batch_share, batch_ways
from flaxbert.data.batches import evaluation_batches
from flaxbert.evaluation.evaluate import collect_logits, evaluation_program
from flaxbert.tasks.base import Scored
from flaxbert.train.recipes.setup import Prepared

EVALUATION_BATCH_SIZE = 32
"""Examples per evaluation batch unless the config says otherwise."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Scores parameters on tokenized examples.

    Attributes:
      prepared: The run, for mesh, model and batch sizes.
    """

    prepared: Prepared

    def outputs(self, params: Params, split: str) -> Any:
        """Returns the logits of a split, in the order of its inputs.

        Args:
          params: Parameter tree on the mesh.
          split: validation or test.
        """
        run, model = self.prepared, self.prepared.model
        features = run.data.splits[split].features
        program = evaluation_program(model.config, model.task, model.execution, run.mesh)
        ways = batch_ways(run.mesh)
        process_index, process_count = batch_share(run.mesh)
        size = run.config.train.evaluation_batch_size or EVALUATION_BATCH_SIZE
        batches = evaluation_batches(
            features,
            -(-size // ways) * ways,
            run.data.length_buckets,
            process_index=process_index,
            process_count=process_count,
        )
        return collect_logits(program, params, batches, len(features), run.mesh)

    def score(self, params: Params, split: str) -> Scored:
        """Returns how well parameters do on a split.

        Args:
          params: Parameter tree on the mesh.
          split: validation or test.
        """
        data = self.prepared.data
        return data.task.score(data.splits[split], self.outputs(params, split), self.prepared.setting)

    def metrics(self, params: Params) -> dict[str, float]:
        """Returns the task's metrics of parameters on the held-out examples.

        Args:
          params: Parameter tree on the mesh.
        """
        return dict(self.score(params, "validation").metrics)


MUST_AGREE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model", ("path", "task", "problem_type", "scan_layers", "precision")),
    ("data", ("train", "max_length", "max_train_examples", "length_buckets")),
    ("task", ("tag_scheme", "model_scheme", "stride", "entity_markers")),
    ("train", ("optimizer", "batch_size", "target_batch_size", "num_steps", "num_epochs", "schedule", "learning_rate")),
    ("train", ("freeze", "seed")),
    ("prune", ("method", "rate", "pattern", "block", "scope", "begin_rate", "end_rate", "every")),
    ("prune", ("threshold", "penalty", "score_factor", "keep")),
    ("quantize", ("bits", "group_size", "activations", "num_examples", "keep")),
)
"""Settings that a resumed run shares with its checkpoints; the data position checks seed, order and examples itself."""
