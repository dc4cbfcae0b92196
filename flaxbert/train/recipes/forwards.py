"""Networks as functions of the parameters of a step: a model alone, or a student beside its teachers and learned projections."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flaxbert.core.arrays import Params, materialize
from flaxbert.core.trees import leaf_names
from flaxbert.families import get_family
from flaxbert.families.graph import forward, graph_definition
from flaxbert.model import Model
from flaxbert.train.distillation import DistillationObjective, DistillationOutput
from flaxbert.train.fixed_leaves import FixedLeaves
from flaxbert.train.losses import Forward
from flaxbert.train.narrowing import fit

TEACHERS, PROJECTIONS = "teachers", "projections"
"""Names of what stands beside the student in the parameters of a step."""


def model_forward(model: Model) -> Forward:
    """Returns the network of a model as a function of its parameters.

    Args:
      model: Gives architecture, task and how it is executed.
    """
    graphdef = graph_definition(model.config, model.task, model.execution)

    def run(params: Any, batch: Mapping[str, Any], *, dropout_key: Any = None) -> Any:
        return forward(graphdef, params, batch, dropout_key=dropout_key)

    return run


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


def place_teachers(teachers: Sequence[Model], mesh: Mesh) -> FixedLeaves | None:
    """Returns the parameters of teachers on a mesh, or None without any.

    Args:
      teachers: Those that run in the step.
      mesh: The mesh.
    """
    if not teachers:
        return None
    trees = {str(number): teacher.params for number, teacher in enumerate(teachers)}
    leaf_axes: dict[str, tuple[str, ...]] = {}
    for number, teacher in enumerate(teachers):
        own = get_family(teacher.config.family).parameter_axes(leaf_names(teacher.params))
        leaf_axes.update({f"{TEACHERS}.{number}.{name}": axes for name, axes in own.items()})
    return FixedLeaves.place({TEACHERS: trees}, leaf_axes, mesh)


def projection_axes(projections: Params) -> dict[str, tuple[str, ...]]:
    """Returns the axis names of learned projections.

    Args:
      projections: From ``make_projections``.
    """
    return dict.fromkeys(leaf_names(projections), ("student_width", "teacher_width"))
