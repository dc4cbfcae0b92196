"""Runs as the planner sees them: the real training step over shapes, without corpora, tokenizer or weights."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flaxbert.architecture import Execution, ModelConfig, resolve_task
from flaxbert.config import PretrainConfig, PretrainPhase, RunConfig, TrainConfig
from flaxbert.core.trees import leaf_names
from flaxbert.data.masking import num_prediction_slots
from flaxbert.data.pretraining_batches import split_steps
from flaxbert.errors import ConfigError
from flaxbert.families import get_family
from flaxbert.families.graph import abstract_params, finishes_first_token_alone
from flaxbert.model import Model
from flaxbert.train.flops import NetworkWork
from flaxbert.train.losses import loss_for
from flaxbert.train.recipes.forwards import model_forward
from flaxbert.train.recipes.plan import StepJob
from flaxbert.train.recipes.pretraining_networks import Networks, check_positions, new_model_config, new_networks
from flaxbert.train.recipes.pretraining_setup import phases_of, train_of
from flaxbert.train.recipes.setup import global_batch_size
from flaxbert.weights.folder import read_config

VOCABULARY_SIZES: dict[str, int] = {
    "bert": 30522,
    "roberta": 50265,
    "xlm-roberta": 250002,
    "camembert": 32005,
    "distilbert": 30522,
    "albert": 30000,
    "electra": 30522,
    "ernie": 18000,
    "convbert": 30522,
    "mpnet": 30527,
    "modernbert": 50368,
    "nomic_bert": 30528,
    "deberta": 50265,
    "deberta-v2": 128100,
}
"""Entries of the vocabulary that each family was published with."""

_CHOICES = 4
_DEFAULT_STEPS = 100_000


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """A run without its data.

    Attributes:
      title: What is trained, in words.
      model: Architecture of what is trained, or of its largest part.
      length: Tokens of a row; all count as real.
      rows_per_example: Rows that one example of the batch has.
      flops_per_row: FLOPs of the model itself for one row: forward and backward, without recomputation.
      train: Training options.
      make_job: Makes the step's job of a mesh and training options.
      num_steps: Steps of the run with batches of this shape; 0 where only its data would tell.
    """

    title: str
    model: ModelConfig
    length: int
    rows_per_example: int
    flops_per_row: float
    train: TrainConfig
    make_job: Callable[[Mesh, TrainConfig], StepJob]
    num_steps: int = 0

    def job(self, mesh: Mesh, batch_size: int) -> StepJob:
        """Returns what the step is made from.

        Args:
          mesh: The mesh.
          batch_size: Examples per optimizer step over all devices.
        """
        return self.make_job(mesh, dataclasses.replace(self.train, batch_size=batch_size))

    @property
    def batch_size(self) -> int:
        """Examples per optimizer step over all devices that the run asks for."""
        return global_batch_size(self.train)


def _steps(train: TrainConfig) -> int:
    return train.num_steps or _DEFAULT_STEPS


def _integers(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int32)


def _abstract_networks(config: PretrainConfig, model: ModelConfig) -> Networks:
    """Returns the networks with shapes in place of parameters: they are made under ``eval_shape``, so no weight is drawn."""
    made: list[Networks] = []
    stored = config.objective.generator
    generator = _stored_config(stored, "objective.generator (or none, for a new one)") if stored else None

    def make() -> Any:
        made.append(new_networks(config.model, config.objective, model, None, config.train.seed, generator))
        return made[0].params

    params = jax.eval_shape(make)
    models = {
        name: part.replace(params=abstract_params(part.config, part.task, part.execution))
        for name, part in made[0].models.items()
    }
    return dataclasses.replace(made[0], models=models, params=params)


def _pretraining_model(config: PretrainConfig, vocab_size: int, length: int) -> ModelConfig:
    source = config.model
    if source.path:
        model = _stored_config(source.path, "model.path (or model.family and model.size for a new model)")
        check_positions(model, source.path, length)
        return model
    size = vocab_size or VOCABULARY_SIZES.get(source.family, VOCABULARY_SIZES["bert"])
    return new_model_config(source, size, length, 1 if source.family == "mpnet" else 0)


def _pretraining_rows(config: PretrainConfig, model: ModelConfig, length: int) -> dict[str, np.ndarray]:
    """Returns one row as ``data.pretraining_rows`` makes it."""
    objective = config.objective
    slots = num_prediction_slots(config.masking.rate, length)
    rows = {name: _integers(1, length) for name in ("input_ids", "segment_ids", "position_ids")}
    rows |= {name: _integers(1, slots) for name in ("masked_positions", "labels")}
    if objective.pairs != "none":
        pieces = config.data.max_pieces or max(1, length // config.data.min_tokens)
        rows |= {name: _integers(1, pieces) for name in ("first_positions", "pair_labels")}
        if model.type_vocab_size > 1:
            rows["token_type_ids"] = _integers(1, length)
    return {**rows, "example_weight": np.ones(1, np.float32)}


def pretraining_workloads(config: PretrainConfig, vocab_size: int = 0) -> list[Workload]:
    """Returns the phases of a pre-training run as the planner sees them.

    Args:
      config: The run; its corpora are not read.
      vocab_size: Entries of the vocabulary; 0 takes those of the family's published models.

    Raises:
      ConfigError: The model, the objective or a phase is not usable.
      WeightsError: ``model.path`` is no model.
    """
    if config.teacher.path:
        raise ConfigError(
            "flaxbert plan does not count the work of a teacher; leave teacher.path out to plan the student alone."
        )
    phases = phases_of(config)
    model = _pretraining_model(config, vocab_size, max(phase.row_length for phase in phases))
    networks = _abstract_networks(config, model)
    train = config.train
    counts = split_steps(train.num_steps, [phase.share for phase in phases]) if train.num_steps else [0] * len(phases)
    return [_phase_workload(config, networks, phase, count) for phase, count in zip(phases, counts, strict=True)]


def _phase_workload(config: PretrainConfig, networks: Networks, phase: PretrainPhase, num_steps: int) -> Workload:
    length, rate = phase.row_length, config.masking.rate
    example = _pretraining_rows(config, networks.main.config, length)

    def make_job(mesh: Mesh, train: TrainConfig) -> StepJob:
        return StepJob(
            params=networks.params,
            forward=networks.forward,
            precision=config.model.precision,
            train=train,
            mesh=mesh,
            leaf_axes=networks.leaf_axes,
            total_steps=_steps(config.train),
            loss=networks.loss,
            example=example,
        )

    return Workload(
        title=f"pre-training of {_size_words(networks.models)}, rows of {length}, {_execution_words(config.model)}",
        model=networks.main.config,
        length=length,
        rows_per_example=1,
        flops_per_row=sum(part.training_flops(np.array([length]), rate * length) for part in networks.work),
        train=train_of(config.train, phase),
        make_job=make_job,
        num_steps=num_steps,
    )


def _stored_config(path: str, option: str) -> ModelConfig:
    if not path:
        raise ConfigError(f"The config names no model: set {option}.")
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"The model '{path}' is no folder on this machine, and only its config.json tells its size. Fetch it first (flaxbert convert, or "
            f"hf download {path} --include config.json --local-dir FOLDER) and set {option} to the folder."
        )
    return read_config(folder)


def _finetuning_example(config: RunConfig, model: ModelConfig, task: str, length: int) -> dict[str, np.ndarray]:
    choices = (_CHOICES,) if task == "multiple-choice" else ()
    tokens = ("input_ids", "attention_mask", "token_type_ids")
    rows: dict[str, np.ndarray] = {name: _integers(1, *choices, length) for name in tokens}
    if task == "relation-classification":
        rows["entity_mask"] = _integers(1, length)
    problem = config.model.problem_type or model.problem_type
    labels: dict[str, tuple[int, ...]] = {
        "token-classification": (1, length),
        "fill-mask": (1, length),
        "question-answering": (1, 2),
    }
    shape = labels.get(task, (1,))
    several = task == "sequence-classification" and problem in ("multi_label_classification", "regression")
    if several:
        rows["labels"] = np.zeros((1, model.num_labels), np.float32)
    else:
        rows["labels"] = _integers(*shape)
    return {**rows, "example_weight": np.ones(1, np.float32), "example_index": _integers(1)}


def _finetuning_model(config: RunConfig) -> tuple[ModelConfig, str]:
    source = config.model
    task = resolve_task(source.task or "sequence-classification")
    model = _stored_config(source.path, "model.path")
    changes: dict[str, Any] = {"num_labels": 1, "labels": ()} if task == "multiple-choice" else {}
    if config.data.labels and task != "multiple-choice":
        changes = {"labels": config.data.labels, "num_labels": len(config.data.labels)}
    if source.problem_type:
        changes["problem_type"] = source.problem_type
    for field, target in (
        ("dropout_rate", "hidden_dropout_rate"),
        ("attention_dropout_rate", "attention_dropout_rate"),
    ):
        if getattr(source, field) >= 0:
            changes[target] = getattr(source, field)
    if task not in get_family(model.family).architectures:
        raise ConfigError(f"The family {model.family} has no head for '{task}'.")
    return model.replace(**changes), task


def finetuning_workload(config: RunConfig) -> Workload:
    """Returns a fine-tuning run as the planner sees it: the longest batches, every token real.

    Args:
      config: The run; its examples are not read. ``model.path`` is a folder with a ``config.json``.

    Raises:
      ConfigError: The run names no model, or its task can not be trained.
      WeightsError: ``model.path`` is no model.
    """
    source = config.model
    model, task = _finetuning_model(config)
    execution = Execution(source.precision, source.attention, source.scan_layers, source.remat)
    params = abstract_params(model, task, execution)
    network = Model(config=model, params=params, task=task, execution=execution)
    longest = max(config.data.length_buckets, default=0) or config.data.max_length or model.max_length
    length = min(longest, model.max_length)
    weights = config.train.class_weights
    loss = loss_for(
        task,
        model.problem_type,
        label_smoothing_rate=config.train.label_smoothing_rate,
        class_weights=(1.0,) * model.num_labels if weights == "balanced" else tuple(weights),
    )
    example = _finetuning_example(config, model, task, length)
    axes = get_family(model.family).parameter_axes(leaf_names(params))

    def make_job(mesh: Mesh, train: TrainConfig) -> StepJob:
        return StepJob(
            params=params,
            forward=model_forward(network),
            precision=source.precision,
            train=train,
            mesh=mesh,
            leaf_axes=axes,
            total_steps=_steps(train),
            loss=loss,
            example=example,
        )

    first_only = finishes_first_token_alone(model, task, execution)
    rows = _CHOICES if task == "multiple-choice" else 1
    return Workload(
        title=f"fine-tuning of {_size_words({'model': network})} for {task}, inputs of {length}, {_execution_words(source)}",
        model=model,
        length=length,
        rows_per_example=rows,
        flops_per_row=NetworkWork(model, task, first_only).training_flops(np.array([length])),
        train=config.train,
        make_job=make_job,
        num_steps=config.train.num_steps,
    )


def _size_words(models: Mapping[str, Model]) -> str:
    return " and ".join(
        f"{model.config.family} ({model.config.num_hidden_layers} layers of {model.config.hidden_size})"
        for model in models.values()
    )


def _execution_words(source: Any) -> str:
    layers = "layers scanned" if source.scan_layers else "layers unrolled"
    return f"{source.precision}, {layers}, remat {source.remat}"
