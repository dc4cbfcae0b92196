"""``flaxbert finetune``: trains a model for a task."""

from flaxbert.config import (
    DataConfig,
    MeshConfig,
    ModelSource,
    OutputConfig,
    PruneConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
    TrainQuantizeConfig,
)

EXIT_PREEMPTED = 143


def run(
    model: ModelSource = ModelSource(),
    data: DataConfig = DataConfig(),
    task: TaskConfig = TaskConfig(),
    train: TrainConfig = TrainConfig(),
    mesh: MeshConfig = MeshConfig(),
    output: OutputConfig = OutputConfig(),
    prune: PruneConfig = PruneConfig(),
    quantize: TrainQuantizeConfig = TrainQuantizeConfig(),
) -> int:
    """Trains a model for a task.

    Args:
      model: Which model the run starts from.
      data: Which examples it reads.
      task: What its task needs beyond texts and labels.
      train: How it is trained.
      mesh: How devices are arranged.
      output: Where the run writes.
      prune: What is pruned in the course of training.
      quantize: How it is rounded in the course of training.

    Returns:
      The exit code: 143 when the run was asked to stop and saved first.
    """
    from flaxbert.core.runtime import configure

    configure()
    from flaxbert.train.recipes.finetune import finetune

    result = finetune(RunConfig(model, data, task, train, mesh, output, prune, quantize))
    return EXIT_PREEMPTED if result.reason == "preempted" else 0
