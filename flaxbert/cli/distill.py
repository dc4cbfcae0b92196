"""``flaxbert distill``: trains a small model to do what a large one does."""

from flaxbert.config import (
    AugmentationConfig,
    DataConfig,
    DistillationConfig,
    DistillConfig,
    MeshConfig,
    ModelSource,
    OutputConfig,
    PruneConfig,
    StudentConfig,
    TaskConfig,
    TeacherConfig,
    TrainConfig,
)

EXIT_PREEMPTED = 143


def run(
    teacher: TeacherConfig = TeacherConfig(),
    student: StudentConfig = StudentConfig(),
    distillation: DistillationConfig = DistillationConfig(),
    model: ModelSource = ModelSource(),
    data: DataConfig = DataConfig(),
    task: TaskConfig = TaskConfig(),
    intermediate: TrainConfig = TrainConfig(),
    train: TrainConfig = TrainConfig(),
    mesh: MeshConfig = MeshConfig(),
    output: OutputConfig = OutputConfig(),
    prune: PruneConfig = PruneConfig(),
    augmentation: AugmentationConfig = AugmentationConfig(),
) -> int:
    """Trains a small model to do what a large one does.

    Args:
      teacher: Which model the student learns from.
      student: How the student is made of the teacher, where model.path names none.
      distillation: What it is compared by.
      model: The student, where it exists, and how it is executed.
      data: Which examples the run reads.
      task: What its task needs beyond texts and labels.
      intermediate: How the first of two stages trains.
      train: How the last stage trains.
      mesh: How devices are arranged.
      output: Where the run writes.
      prune: What is pruned of the student in the course of the last stage.
      augmentation: Texts that are added to the training examples.

    Returns:
      The exit code: 143 when the run was asked to stop and saved first.
    """
    from flaxbert.core.runtime import configure

    configure()
    from flaxbert.train.recipes.distill import distill

    config = DistillConfig(
        model=model,
        data=data,
        task=task,
        train=train,
        mesh=mesh,
        output=output,
        prune=prune,
        teacher=teacher,
        student=student,
        distillation=distillation,
        intermediate=intermediate,
        augmentation=augmentation,
    )
    return EXIT_PREEMPTED if distill(config).reason == "preempted" else 0
