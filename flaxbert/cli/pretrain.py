"""``flaxbert pretrain``: trains a model on prepared text."""

from flaxbert.config import (
    DISTILBERT,
    DistillationConfig,
    MaskingConfig,
    MeshConfig,
    ObjectiveConfig,
    OutputConfig,
    PretrainConfig,
    PretrainData,
    PretrainModel,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)


def run(
    model: PretrainModel = PretrainModel(),
    data: PretrainData = PretrainData(),
    masking: MaskingConfig = MaskingConfig(),
    objective: ObjectiveConfig = ObjectiveConfig(),
    train: TrainConfig = TrainConfig(),
    mesh: MeshConfig = MeshConfig(),
    output: OutputConfig = OutputConfig(folder="runs/pretrain"),
    teacher: TeacherConfig = TeacherConfig(),
    student: StudentConfig = StudentConfig(),
    distillation: DistillationConfig = DISTILBERT,
) -> int:
    """Pre-trains a model on corpora that flaxbert prepare wrote.

    Args:
      model: Which model: new weights of a family and size, or a checkpoint to go on from.
      data: Which corpora, and how they become rows.
      masking: How words are hidden.
      objective: What is learned beside them.
      train: How the model is trained.
      mesh: How devices are arranged.
      output: Where the run writes.
      teacher: A model that fills in words, which a student learns from; nobody without teacher.path.
      student: How the student is made of the teacher, where model.path names none.
      distillation: What it is compared by.

    Returns:
      The exit code: 0 when finished, 143 when the run was asked to stop and saved its state.
    """
    from flaxbert.core.runtime import configure

    configure()
    from flaxbert.train.recipes.pretrain import pretrain

    config = PretrainConfig(model, data, masking, objective, train, mesh, output, teacher, student, distillation)
    result = pretrain(config)
    return 143 if result.reason == "preempted" else 0
