"""A whole fine-tuning run."""

import dataclasses
from typing import Any

from flaxbert.config.data import DataConfig
from flaxbert.config.mesh import MeshConfig
from flaxbert.config.model import ModelSource
from flaxbert.config.output import OutputConfig
from flaxbert.config.pruning import PruneConfig
from flaxbert.config.quantization import TrainQuantizeConfig
from flaxbert.config.task import TaskConfig
from flaxbert.config.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole fine-tuning run.

    Attributes:
      model: Which model the run starts from.
      data: Which examples it reads.
      task: What its task needs beyond texts and labels.
      train: How it is trained.
      mesh: How devices are arranged.
      output: Where the run writes.
      prune: What is pruned in the course of training.
      quantize: How it is rounded in the course of training.
    """

    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    output: OutputConfig = dataclasses.field(default_factory=OutputConfig)
    prune: PruneConfig = dataclasses.field(default_factory=PruneConfig)
    quantize: TrainQuantizeConfig = dataclasses.field(default_factory=TrainQuantizeConfig)

    def to_dict(self) -> dict[str, Any]:
        """Returns the run as plain nested dictionaries, ready for JSON or YAML."""
        return dataclasses.asdict(self)
