"""The start of a fine-tuning run: processes, data, model, mesh and compiled step."""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from flaxbert.architecture import Execution
from flaxbert.config import RunConfig, TrainConfig
from flaxbert.core.precision import Precision
from flaxbert.core.runtime import device_memory_limit_bytes, initialize_distributed
from flaxbert.core.sharding import batch_share, build_mesh, check_mesh_fits
from flaxbert.core.trees import leaf_names
from flaxbert.core.units import format_bytes
from flaxbert.data.batches import BatchPipeline
from flaxbert.errors import ConfigError
from flaxbert.families import get_family
from flaxbert.model import Model, load
from flaxbert.tasks.base import Setting
from flaxbert.tasks.load import TrainingData, load_examples
from flaxbert.weights.folder import read_config
from flaxbert.weights.hub import resolve
from flaxbert.weights.tokenizer import load_tokenizer

Say = Callable[[str], None]


def say_on_first(message: str) -> None:
    """Prints a line on the first process only.

    Args:
      message: The line.
    """
    if jax.process_index() == 0:
        print(message, file=sys.stdout, flush=True)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run ready to be compiled.

    Attributes:
      config: The resolved run.
      model: Model with host parameters, before training.
      data: Tokenized examples with their labels.
      mesh: The mesh.
      leaf_axes: Axis names of every leaf.
      total_steps: Optimizer steps of the whole run.
      steps_per_epoch: Optimizer steps of one pass.
      pipeline: Training batches of this process.
    """

    config: RunConfig
    model: Model
    data: TrainingData
    mesh: Mesh
    leaf_axes: Mapping[str, tuple[str, ...]]
    total_steps: int
    steps_per_epoch: int
    pipeline: BatchPipeline

    @property
    def setting(self) -> Setting:
        """What the task's functions depend on, with what the model remembers."""
        return self.data.setting.replace(extra=self.model.config.extra)

    @property
    def metric(self) -> tuple[str, bool]:
        """The metric that chooses the best checkpoint, and whether higher is better."""
        return self.data.task.primary(self.setting, self.config.train.metric)


def global_batch_size(train: TrainConfig) -> int:
    """Returns the examples per optimizer step over all devices.

    Args:
      train: Training options.
    """
    return train.target_batch_size if train.batch_size == "auto" else train.batch_size


def load_model(config: RunConfig, data: TrainingData, task: str, folder: str) -> Model:
    """Loads the model of a run with a head that fits the data.

    Args:
      config: The run.
      data: Examples, for labels and problem type.
      task: Canonical task name.
      folder: Folder of the checkpoint.

    Returns:
      The model.
    """
    source = config.model
    model = load(
        folder,
        task=task,
        labels=data.setting.labels if data.task.names_labels else None,
        problem_type=data.setting.problem_type,
        precision=source.precision,
        attention=source.attention,
        scan_layers=source.scan_layers,
        remat=source.remat,
        from_scratch=source.from_scratch,
        seed=config.train.seed,
    )
    changes: dict[str, Any] = {}
    for field, target in (
        ("dropout_rate", "hidden_dropout_rate"),
        ("attention_dropout_rate", "attention_dropout_rate"),
        ("classifier_dropout_rate", "classifier_dropout_rate"),
    ):
        if getattr(source, field) >= 0:
            changes[target] = getattr(source, field)
    return model.replace(config=model.config.replace(**changes)) if changes else model


def count_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """Returns the optimizer steps of a run.

    Args:
      config: The run.
      steps_per_epoch: Optimizer steps of one pass.
    """
    if config.train.num_steps:
        return config.train.num_steps
    return max(1, math.ceil(steps_per_epoch * config.train.num_epochs))


def make_pipeline(config: RunConfig, data: TrainingData, share: tuple[int, int]) -> BatchPipeline:
    """Returns the training batches of a run.

    Args:
      config: The run.
      data: Its examples.
      share: Number of the share of every batch that this process reads, and how many there are.
    """
    return BatchPipeline(
        data.train,
        batch_size=global_batch_size(config.train),
        seed=config.train.seed,
        shuffle=config.data.shuffle,
        length_buckets=data.length_buckets,
        group_by_length=config.data.group_by_length,
        process_index=share[0],
        process_count=share[1],
    )


def prepare(config: RunConfig, say: Say = say_on_first) -> Prepared:
    """Reads data and model and lays out the mesh.

    Args:
      config: The run.
      say: Where lines for the user go.

    Returns:
      The prepared run.

    Raises:
      ConfigError: The run names no model or no data, or settings do not fit together.
      DataError: The data can not be read or does not fit the task.
      WeightsError: The model can not be loaded.
      MeshError: The mesh does not fit devices, model or batch.
    """
    if not config.model.path:
        raise ConfigError("model.path is empty: name a folder or hub id to start from, for example --model.path MODEL.")
    if not config.data.train:
        raise ConfigError("data.train is empty: name a file, folder or hub id of training examples.")
    initialize_distributed(config.mesh)
    mesh = build_mesh(config.mesh)
    folder = resolve(config.model.path, revision=config.model.revision or None, offline=config.model.offline)
    stored = read_config(folder)
    data = load_examples(
        config.data,
        load_tokenizer(folder, stored),
        config.model.task or "sequence-classification",
        config.model.problem_type,
        seed=config.train.seed,
        options=config.task,
        model_max_length=stored.max_length,
    )
    model = load_model(config, data, data.task.name, str(folder))
    if model.account is not None:
        say(model.account.summary())
    batch_size = global_batch_size(config.train)
    micro_batch = batch_size // config.train.fixed_accumulation_steps
    check_mesh_fits(mesh, model.config, micro_batch, data.length_buckets)
    pipeline = make_pipeline(config, data, batch_share(mesh))
    family = get_family(model.config.family)
    return Prepared(
        config=config,
        model=model,
        data=data,
        mesh=mesh,
        leaf_axes=family.parameter_axes(leaf_names(model.params)),
        total_steps=count_steps(config, pipeline.steps_per_epoch),
        steps_per_epoch=pipeline.steps_per_epoch,
        pipeline=pipeline,
    )


def describe(prepared: Prepared) -> str:
    """Returns a few lines that say what is about to be trained on what.

    Args:
      prepared: The run.
    """
    mesh, model, config = prepared.mesh, prepared.model, prepared.config
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    device = mesh.devices.flat[0]
    execution: Execution = model.execution
    return (
        f"{model.config.family} with {model.config.num_hidden_layers} layers of {model.config.hidden_size}, "
        f"task {model.task}, {model.config.problem_type or 'no problem type'}; "
        f"{prepared.data.report['train'].num_examples} training and "
        f"{prepared.data.report['validation'].num_examples} held-out examples; "
        f"{prepared.total_steps} steps of {global_batch_size(config.train)}; {Precision(execution.precision).name}; "
        f"mesh {shape} on {device.device_kind} ({format_bytes(device_memory_limit_bytes(device))} a device)"
    )
