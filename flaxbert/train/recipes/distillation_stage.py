"""One stage of a distillation: the step of student and teachers, and the losses on held-out examples."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.core.arrays import Params
from flaxbert.core.sharding import batch_share, batch_ways, place_batch, replicated
from flaxbert.data.batches import collate, evaluation_batches
from flaxbert.data.extended_batches import PROGRESS, ExtendedSource
from flaxbert.families.graph import finishes_first_token_alone
from flaxbert.model import Model
from flaxbert.train.distillation import DistillationObjective
from flaxbert.train.fixed_leaves import FixedLeaves
from flaxbert.train.flops import NetworkWork
from flaxbert.train.losses import Forward
from flaxbert.train.recipes.evaluator import EVALUATION_BATCH_SIZE
from flaxbert.train.recipes.forwards import distillation_forward, place_teachers, projection_axes
from flaxbert.train.recipes.plan import StepJob
from flaxbert.train.recipes.setup import Prepared

DISTILLATION_LOSS = "distillation_loss"
"""Metric: the weighted sum of all terms on held-out examples."""


@dataclasses.dataclass(frozen=True)
class DistillationStage:
    """What a stage works on.

    Attributes:
      prepared: The student's run, with the training options of this stage.
      teachers: Teachers that run in the step; none where all that is needed is stored.
      objective: What is learned.
      source: Training batches by the number of the step.
    """

    prepared: Prepared
    teachers: tuple[Model, ...]
    objective: DistillationObjective
    source: ExtendedSource

    @property
    def forward(self) -> Forward:
        """Student and teachers as a function of the parameters of a step."""
        return distillation_forward(self.prepared.model, self.teachers, self.objective)

    def place_teachers(self) -> FixedLeaves | None:
        """Returns the teachers' parameters on the mesh, or None without any."""
        return place_teachers(self.teachers, self.prepared.mesh)

    def job(self, fixed: FixedLeaves | None, projections: Params) -> StepJob:
        """Returns what the step is made from.

        Args:
          fixed: The teachers on the mesh.
          projections: From ``make_projections``.
        """
        prepared, train = self.prepared, self.prepared.config.train
        example = collate(prepared.data.train, np.zeros(1, np.int64), prepared.data.length_buckets[-1])
        extended = self.source.extend(example)
        return StepJob(
            params={**prepared.model.params, **projections},
            forward=self.forward,
            precision=prepared.model.execution.precision,
            train=train,
            mesh=prepared.mesh,
            leaf_axes={**prepared.leaf_axes, **projection_axes(projections)},
            total_steps=prepared.total_steps,
            loss=self.objective,
            example={**extended, PROGRESS: np.zeros(1, np.float32)},
            fixed=fixed,
        )

    def networks(self) -> list[NetworkWork]:
        """Returns what a step multiplies with."""
        keeps = self.objective.keeps_hidden
        works = []
        for number, model in enumerate((self.prepared.model, *self.teachers)):
            alone = finishes_first_token_alone(model.config, model.task, model.execution)
            works.append(
                NetworkWork(model.config, model.task, alone and not (keeps and number < 2), trained=not number)
            )
        return works


@dataclasses.dataclass(eq=False)
class DistillationEvaluator:
    """Computes the terms of a stage on the held-out examples.

    Attributes:
      stage: The stage.
      fixed: The teachers on the mesh.
    """

    stage: DistillationStage
    fixed: FixedLeaves | None

    def __post_init__(self) -> None:
        objective, run = self.stage.objective, self.stage.forward
        mesh = self.stage.prepared.mesh

        def measure(params: Any, fixed: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
            weighed = objective.weigh(batch)
            found = objective.losses(run({**params, **fixed}, weighed), weighed)
            return found, jnp.sum(batch["example_weight"])

        self._program = jax.jit(measure, out_shardings=replicated(mesh))

    def metrics(self, params: Params) -> dict[str, float]:
        """Returns the mean of every term and their weighted sum.

        Args:
          params: Parameters of a step on the mesh, without the teachers'.
        """
        prepared, terms = self.stage.prepared, self.stage.objective.terms
        ways = batch_ways(prepared.mesh)
        index, count = batch_share(prepared.mesh)
        size = prepared.config.train.evaluation_batch_size or EVALUATION_BATCH_SIZE
        batches = evaluation_batches(
            prepared.data.validation,
            -(-size // ways) * ways,
            prepared.data.length_buckets,
            process_index=index,
            process_count=count,
        )
        fixed = {} if self.fixed is None else self.fixed.tree()
        sums, examples = dict.fromkeys(terms, 0.0), 0.0
        with jax.set_mesh(prepared.mesh):
            for batch in batches:
                rows = {**batch, PROGRESS: np.zeros(len(batch["input_ids"]), np.float32)}
                found, weight = self._program(params, fixed, place_batch(rows, prepared.mesh))
                examples += float(weight)
                for name, value in found.items():
                    sums[name] += float(value)
        means = {name: value / max(examples, 1.0) for name, value in sums.items()}
        total = sum(terms[name] * value for name, value in means.items())
        return {DISTILLATION_LOSS: total, **{f"{name}_loss": value for name, value in means.items()}}
