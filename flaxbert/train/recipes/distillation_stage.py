"""One stage of a distillation: the step of student and teachers, and the losses on held-out examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.core.arrays import Params, materialize
from flaxbert.core.sharding import batch_share, batch_ways, place_batch, replicated
from flaxbert.core.trees import leaf_names
from flaxbert.data.batches import collate, evaluation_batches
from flaxbert.data.extended_batches import PROGRESS, ExtendedSource
from flaxbert.families import get_family
from flaxbert.families.graph import finishes_first_token_alone, forward, graph_definition
from flaxbert.model import Model
from flaxbert.train.distillation import DistillationObjective, DistillationOutput
from flaxbert.train.fixed_leaves import FixedLeaves
from flaxbert.train.flops import NetworkWork
from flaxbert.train.narrowing import fit
from flaxbert.train.recipes.evaluator import EVALUATION_BATCH_SIZE
from flaxbert.train.recipes.plan import StepJob
from flaxbert.train.recipes.setup import Prepared
from flaxbert.train.step import Forward

TEACHERS, PROJECTIONS = "teachers", "projections"
"""Names of what stands beside the student in the parameters of a step."""

DISTILLATION_LOSS = "distillation_loss"
"""Metric: the weighted sum of all terms on held-out examples."""


def student_part(params: Mapping[str, Any]) -> Params:
    """Returns the student's own parameters out of those of a step.

    Args:
      params: With projections and teachers, or without.
    """
    return {name: value for name, value in params.items() if name not in (TEACHERS, PROJECTIONS)}


def make_projections(
    student: Model, teacher: Model, objective: DistillationObjective, seed: int, is_sliced: bool = False
) -> Params:
    """Returns the learned kernels that a stage needs: one for the embeddings, one for all hidden states (Jiao et al., 2020, section 3.1).

    Args:
      student: The student.
      teacher: The first teacher.
      objective: The terms of the stage.
      seed: Seed of the draw.
      is_sliced: Whether the student's coordinates are directions of the teacher's: then the kernels start as the least squares fit
        of the teacher's word rows to the student's, since gradients through random ones would undo what the student knows.

    Returns:
      ``projections.embedding.kernel`` and ``projections.hidden.kernel``, as far as widths differ and terms need them.
    """
    width, wide = student.config.hidden_size, teacher.config.hidden_size
    needed = {
        "embedding": "embedding" in objective.terms,
        "hidden": bool({"hidden", "hidden_cosine", "patient"} & objective.terms.keys()),
    }
    if width == wide or not any(needed.values()):
        return {}
    random = np.random.default_rng(seed)
    drawn = {name: (random.standard_normal((width, wide)) / np.sqrt(width)).astype(np.float32) for name in needed}
    if is_sliced:
        rows = [
            np.asarray(materialize(model.params["embeddings"]["word"]["embedding"])) for model in (student, teacher)
        ]
        drawn = dict.fromkeys(needed, fit(rows[0], rows[1])[0])
    kernels = {name: {"kernel": kernel.copy()} for name, kernel in drawn.items()}
    return {PROJECTIONS: {name: kernels[name] for name, is_needed in needed.items() if is_needed}}


def distillation_forward(student: Model, teachers: Sequence[Model], objective: DistillationObjective) -> Forward:
    """Returns student and teachers as a function of the parameters of a step.

    Teachers get no gradients and no dropout, and compute in their own precision.

    Args:
      student: The student.
      teachers: Those that run in the step.
      objective: Says what of the networks is needed.
    """
    keeps = {"keep_hidden": objective.keeps_hidden, "keep_attention": objective.keeps_attention}
    own = graph_definition(student.config, student.task, student.execution)
    theirs = [graph_definition(teacher.config, teacher.task, teacher.execution) for teacher in teachers]

    def run(params: Any, batch: Mapping[str, Any], *, dropout_key: Any = None) -> DistillationOutput:
        outputs = []
        for number, graphdef in enumerate(theirs):
            kept = keeps if number == 0 else {}
            outputs.append(jax.lax.stop_gradient(forward(graphdef, params[TEACHERS][str(number)], batch, **kept)))
        output = forward(own, student_part(params), batch, dropout_key=dropout_key, **keeps)
        kernels = {name: layer["kernel"] for name, layer in params.get(PROJECTIONS, {}).items()}
        return DistillationOutput(output, tuple(outputs), kernels)

    return run


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
        if not self.teachers:
            return None
        trees = {str(number): teacher.params for number, teacher in enumerate(self.teachers)}
        leaf_axes: dict[str, tuple[str, ...]] = {}
        for number, teacher in enumerate(self.teachers):
            own = get_family(teacher.config.family).parameter_axes(leaf_names(teacher.params))
            leaf_axes.update({f"{TEACHERS}.{number}.{name}": axes for name, axes in own.items()})
        return FixedLeaves.place({TEACHERS: trees}, leaf_axes, self.prepared.mesh)

    def job(self, fixed: FixedLeaves | None, projections: Params) -> StepJob:
        """Returns what the step is made from.

        Args:
          fixed: The teachers on the mesh.
          projections: From ``make_projections``.
        """
        prepared, train = self.prepared, self.prepared.config.train
        own = dict.fromkeys(leaf_names(projections), ("student_width", "teacher_width"))
        example = collate(prepared.data.train, np.zeros(1, np.int64), prepared.data.length_buckets[-1])
        extended = self.source.extend(example)
        return StepJob(
            params={**prepared.model.params, **projections},
            forward=self.forward,
            precision=prepared.model.execution.precision,
            train=train,
            mesh=prepared.mesh,
            leaf_axes={**prepared.leaf_axes, **own},
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
