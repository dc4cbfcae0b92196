"""``flaxbert plan pretrain`` and ``flaxbert plan finetune``: what a run would cost on devices that are not there."""

from flaxbert.config import (
    DataConfig,
    MaskingConfig,
    MeshConfig,
    ModelSource,
    ObjectiveConfig,
    OutputConfig,
    PretrainConfig,
    PretrainData,
    PretrainModel,
    RunConfig,
    TaskConfig,
    TrainConfig,
)


def pretrain(
    topology: str,
    model: PretrainModel = PretrainModel(),
    data: PretrainData = PretrainData(),
    masking: MaskingConfig = MaskingConfig(),
    objective: ObjectiveConfig = ObjectiveConfig(),
    train: TrainConfig = TrainConfig(),
    mesh: MeshConfig = MeshConfig(),
    output: OutputConfig = OutputConfig(folder="runs/pretrain"),
    meshes: tuple[MeshConfig, ...] = (),
    batches_per_device: tuple[int, ...] = (),
    search: bool = False,
    largest: bool = True,
    max_compiles: int = 24,
    vocab_size: int = 0,
    json: str = "",
) -> int:
    """Says what a pre-training run would cost on devices that are not there; reads neither corpora nor tokenizer.

    Args:
      topology: Devices: v5e:16x16, v5p:4x4x8, v6e:16x16, 2*v5e:16x16 (two slices), h200:8, h100:8, a100:8 or cpu:8.
      model: Which model, as for flaxbert pretrain.
      data: Length of the rows; corpora are not read.
      masking: How words are hidden.
      objective: What is learned beside them.
      train: How the model is trained; batch and optimizer count here.
      mesh: How devices are arranged, unless meshes are given.
      output: Not used; stands in the config of a run.
      meshes: Meshes to compare, for example [{"fsdp": 16}, {"tensor": 2}].
      batches_per_device: Examples of a micro batch on each device, instead of train.batch_size; several are compared.
      search: Rank meshes and batches instead of planning those given.
      largest: Look for the largest batch that fits, which compiles twice more.
      max_compiles: Most pairs of mesh and batch that a search compiles.
      vocab_size: Entries of the vocabulary of a new model; 0 takes those of the family's published models.
      json: File to write everything to; empty for none.

    Returns:
      0.
    """
    from flaxbert.planning.command import PlanRequest, run_plan

    request = PlanRequest(
        topology, meshes, batches_per_device, search, largest, max_compiles, vocab_size=vocab_size, json=json
    )
    run_plan(PretrainConfig(model, data, masking, objective, train, mesh, output), request)
    return 0


def finetune(
    topology: str,
    model: ModelSource = ModelSource(),
    data: DataConfig = DataConfig(),
    task: TaskConfig = TaskConfig(),
    train: TrainConfig = TrainConfig(),
    mesh: MeshConfig = MeshConfig(),
    output: OutputConfig = OutputConfig(),
    meshes: tuple[MeshConfig, ...] = (),
    batches_per_device: tuple[int, ...] = (),
    search: bool = False,
    largest: bool = True,
    max_compiles: int = 24,
    json: str = "",
) -> int:
    """Says what a fine-tuning run would cost on devices that are not there; reads no examples, and of the model only config.json.

    Args:
      topology: Devices: v5e:16x16, v5p:4x4x8, v6e:16x16, 2*v5e:16x16 (two slices), h200:8, h100:8, a100:8 or cpu:8.
      model: Which model, as for flaxbert finetune; a folder on this machine.
      data: Longest input; examples are not read.
      task: What the task needs beyond texts and labels.
      train: How the model is trained; batch and optimizer count here.
      mesh: How devices are arranged, unless meshes are given.
      output: Not used; stands in the config of a run.
      meshes: Meshes to compare, for example [{"fsdp": 16}, {"tensor": 2}].
      batches_per_device: Examples of a micro batch on each device, instead of train.batch_size; several are compared.
      search: Rank meshes and batches instead of planning those given.
      largest: Look for the largest batch that fits, which compiles twice more.
      max_compiles: Most pairs of mesh and batch that a search compiles.
      json: File to write everything to; empty for none.

    Returns:
      0.
    """
    from flaxbert.planning.command import PlanRequest, run_plan

    request = PlanRequest(topology, meshes, batches_per_device, search, largest, max_compiles, json=json)
    run_plan(RunConfig(model, data, task, train, mesh, output), request)
    return 0
