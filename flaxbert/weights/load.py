"""Loading a checkpoint for a task: config, every tensor accounted for, labels, pooling."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxbert.architecture import TASK_HEADS, ModelConfig
from flaxbert.core.arrays import Params, TypedArray
from flaxbert.core.trees import flatten_names, map_leaves, unflatten_names
from flaxbert.errors import ConfigError, WeightsError
from flaxbert.families import TensorName
from flaxbert.families.graph import abstract_params, initialize_params
from flaxbert.weights.finite import find_not_finite, note_not_finite
from flaxbert.weights.folder import Source, check_folder, choose_task, declared_task, open_tensors, read_family
from flaxbert.weights.formats.stored import StoredTensor
from flaxbert.weights.labels import CLASSIFIER_TASKS, LabelPlan, plan_labels
from flaxbert.weights.name_table import (
    TensorAccount,
    check_unexpected,
    head_of,
    name_tensors,
)
from flaxbert.weights.sentence_transformers import (
    SentencePooling,
    declared_activation,
    read_pooling,
    token_projection,
    transformer_folder,
)
from flaxbert.weights.typed_leaves import read_leaf

DERIVED_TOLERANCE = 1e-4
"""Absolute; sines computed in float32 and float64 differ by about 3e-5 at position 512."""

_POOLER = "pooler.dense.kernel"


@dataclasses.dataclass(frozen=True)
class LoadedCheckpoint:
    """What a folder holds, made fit for a task.

    Attributes:
      config: Architecture, with the labels and problem type of the task.
      task: Canonical task name.
      params: Nested dictionary of numpy arrays and typed arrays, layers numbered.
      account: What every tensor was used for.
      pooling: How sentence vectors are made; None for tasks with a head, and where the folder of a bare encoder says nothing.
      folder: Where it came from.
    """

    config: ModelConfig
    task: str
    params: Params
    account: TensorAccount
    pooling: SentencePooling | None
    folder: pathlib.Path


def _classifier_of(task: str) -> str:
    return "relation.classifier" if task == "relation-classification" else "classifier"


def _num_outputs(source: Source, leaf: str) -> int | None:
    if leaf in source.typed:
        return next(iter(source.typed[leaf].parts.values())).shape[-1]
    name = source.named.leaves.get(leaf)
    return source.tensors[name].shape[0] if name and source.tensors[name].shape else None


def _fit_head(config: ModelConfig, task: str, source: Source) -> ModelConfig:
    """Returns the config with the outputs that the task's head has whatever the file says; refuses a head that the family lacks."""
    known = source.family.architectures
    if task not in known:
        raise ConfigError(f"A {config.family} has no head for {task}; it can be loaded for {', '.join(known)}.")
    if task == "multiple-choice":
        return config.replace(num_labels=1, labels=())
    if task == "late-interaction":
        return config.replace(projection_size=_num_outputs(source, "projection.dense.kernel") or config.projection_size)
    return config


def _add_modules(
    folder: pathlib.Path, tensors: dict[str, StoredTensor], json: Mapping[str, Any], config: ModelConfig
) -> tuple[dict[str, StoredTensor], Mapping[str, Any], ModelConfig]:
    """Adds what sentence-transformers keeps beside the transformer: ColBERT's projection, the activation of a cross-encoder."""
    projection, activation = token_projection(folder), declared_activation(folder)
    if projection is not None:
        tensors, json = {**tensors, "linear.weight": projection}, {**json, "architectures": ["HF_ColBERT"]}
    if activation:
        config = config.replace(extra={**config.extra, "sentence_transformers": {"activation_fn": activation}})
    return tensors, json, config


def load_checkpoint(
    folder: str | pathlib.Path,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    problem_type: str | None = None,
    seed: int = 0,
    from_scratch: bool = False,
    place: Callable[[Any], Any] = lambda leaf: leaf,
) -> LoadedCheckpoint:
    """Loads a model folder for a task; every tensor is used or accounted for.

    Args:
      folder: A folder in Hugging Face or sentence-transformers layout.
      task: What the model is for; None takes what the folder says or, where it says nothing, what its tensors are.
      labels: Names for the classifier. Of another number than the folder's, the classifier is newly drawn; the same names
        in another order reorder it. None keeps the folder's.
      problem_type: single_label_classification, multi_label_classification or regression; None keeps the folder's.
      seed: Seed of newly drawn leaves.
      from_scratch: Draw all leaves; only the config is read.
      place: What becomes of each leaf as soon as it is read, such as an array on a device, so that it is not there twice for long.

    Returns:
      Config, task, parameters, account and pooling.

    Raises:
      ConfigError: The config can not be used, or the task is unknown.
      WeightsError: The folder is no model; a tensor is missing, unexpected, of a wrong shape, or not tied as it should be.
    """
    folder = pathlib.Path(folder)
    check_folder(folder)
    root = transformer_folder(folder)
    tensors, typed, parts = ({}, {}, {}) if from_scratch else open_tensors(root)
    json, family, config, notes = read_family(root, [*tensors, *parts])
    tensors, json, config = _add_modules(folder, tensors, json, config)
    named = name_tensors(tensors, family, config, declared_task(json, family)[0])
    check_unexpected(named, family, config)
    source = Source(root, family, json, tensors, typed, parts, named)
    pooling = read_pooling(folder)
    task, classifier_fits = choose_task(task, source, pooling, notes)
    declares_labels = bool(json.get("id2label")) or "num_labels" in json
    stored_labels = _num_outputs(source, f"{_classifier_of(task)}.kernel") if classifier_fits else None
    config = _fit_head(config, task, source)
    plan = plan_labels(config, task, labels, problem_type, stored_labels, declares_labels)
    notes.extend(plan.notes)
    config = plan.config
    if not TASK_HEADS[task]:
        config = config.replace(has_pooler=from_scratch or _POOLER in named.leaves or _POOLER in typed)
        if pooling is None and task == "sentence-similarity":
            pooling = SentencePooling()
            notes.append("The folder does not say how vectors are pooled; the mean of the token vectors is taken.")
    else:
        pooling = None
    if from_scratch:
        drawn = jax.tree.map(np.asarray, initialize_params(config, task, seed))
        notes.append("All weights are newly drawn (from_scratch).")
        account = TensorAccount(initialized=tuple(flatten_names(drawn)), notes=tuple(notes))
        return LoadedCheckpoint(config, task, map_leaves(lambda _, leaf: place(leaf), drawn), account, pooling, folder)
    leaves, account = _Assembly(source, config, task, plan, classifier_fits).run(seed, notes, place)
    return LoadedCheckpoint(config, task, unflatten_names(leaves), account, pooling, folder)


class _Assembly:
    """Puts the leaves of one task together from an opened folder."""

    def __init__(self, source: Source, config: ModelConfig, task: str, plan: LabelPlan, classifier_fits: bool) -> None:
        self.source, self.config, self.task, self.plan = source, config, task, plan
        self.skipped: tuple[str, ...] = ()
        if task in CLASSIFIER_TASKS and not (classifier_fits and plan.keeps_classifier):
            self.skipped = (f"{_classifier_of(task)}.",)
        if not classifier_fits:
            self.skipped = (*self.skipped, "classifier.", "classifier_dense.")
        self.table = source.family.tensor_table(config)
        needed = flatten_names(abstract_params(config, task))
        self.expected = {name: tuple(needed[name].shape) for name in self.table if name in needed}
        self.chosen = dict(source.named.leaves)
        self.tied: list[str] = []
        self.unused: list[str] = list(source.named.foreign)

    def run(self, seed: int, notes: list[str], place: Callable[[Any], Any]) -> tuple[dict[str, Any], TensorAccount]:
        """Returns the leaves by name, and the account."""
        self._settle_tied(notes)
        self._check_derived()
        missing = [name for name in self.expected if not self._has(name)]
        self._check_missing(missing)
        drawn = flatten_names(initialize_params(self.config, self.task, seed, missing)) if missing else {}
        leaves, not_finite = {}, []
        for name in self.expected:
            leaf = self._ordered(name, np.asarray(drawn[name]) if name in drawn else self._read(name))
            not_finite += find_not_finite({self.chosen.get(name, name): leaf})
            leaves[name] = place(leaf)
        notes.extend(note_not_finite(not_finite, self.source.folder))
        used, unused = self._used_and_unused()
        named = self.source.named
        narrow = sorted(
            {str(self.source.tensors[name].dtype) for name in used if name in self.source.tensors} - {"float32"}
        )
        if narrow:
            notes.append(f"Tensors stored as {', '.join(narrow)} are held in float32.")
        account = TensorAccount(
            used=used,
            tied=tuple(self.tied),
            renamed=named.renamed,
            prefix=named.prefix,
            ignored=named.ignored,
            unused=unused,
            initialized=tuple(missing),
            notes=tuple(notes),
        )
        return leaves, account

    def _ordered(self, name: str, leaf: Any) -> Any:
        """Returns a leaf of the classifier with its labels in the order that was asked for; others as they are."""
        if self.plan.order is None or name.rpartition(".")[0] != _classifier_of(self.task):
            return leaf
        return jax.tree.map(lambda array: np.ascontiguousarray(array[..., self.plan.order]), leaf)

    def _has(self, leaf: str) -> bool:
        if leaf.startswith(self.skipped):
            return False
        return leaf in self.chosen or leaf in self.source.typed

    def _settle_tied(self, notes: list[str]) -> None:
        source = self.source
        for plain, name in source.named.tied.items():
            tie = source.family.tied[plain]
            if tie.head not in TASK_HEADS[self.task] or tie.leaf in source.typed:
                self.unused.append(name)
            elif tie.leaf not in self.chosen:
                self.chosen[tie.leaf] = name
                notes.append(f"'{tie.leaf}' is read from '{name}', which is tied to it.")
            else:
                self._check_tied(name, self.chosen[tie.leaf])
                self.tied.append(name)

    def _check_tied(self, name: str, other: str) -> None:
        first, second = self.source.tensors[name], self.source.tensors[other]
        if first.shape != second.shape or not np.array_equal(first.read(), second.read()):
            raise WeightsError(
                f"Tensor '{name}' of {first.file} {first.shape} should repeat '{other}' {second.shape}, but differs. "
                "flaxbert ties the decoder to the word embedding; a model with an untied decoder can only be loaded for "
                "tasks without that head."
            )

    def _check_derived(self) -> None:
        leaves = {entry.tensor: leaf for leaf, entry in self.table.items()}
        for plain, expected in self.source.family.derived(self.config).items():
            name = self.chosen.get(leaves.get(plain, ""))
            if name is None:
                continue
            tensor = self.source.tensors[name]
            if tensor.shape != expected.shape or not np.allclose(tensor.read(), expected, atol=DERIVED_TOLERANCE):
                raise WeightsError(
                    f"Tensor '{name}' of {tensor.file} {tensor.shape} should be what the config says (sinusoids, or zeros), "
                    "but differs. Is config.json that of these weights?"
                )

    def _check_missing(self, missing: Sequence[str]) -> None:
        lost = [self.table[name].tensor for name in missing if not head_of(name)]
        if lost:
            shown = ", ".join(f"'{name}'" for name in lost[:6]) + (
                f" and {len(lost) - 6} more" if len(lost) > 6 else ""
            )
            raise WeightsError(
                f"The weights in {self.source.folder} lack {len(lost)} tensors of the encoder: {shown}. Is config.json "
                "that of these weights, and is the download complete?"
            )

    def _read(self, leaf: str) -> Any:
        stored = self.source.typed.get(leaf)
        if stored is None:
            return self._read_dense(leaf)
        dense = self._read_dense(leaf) if leaf in self.chosen else None
        value: TypedArray = read_leaf(leaf, stored, self.source.parts, dense)
        if value.shape != self.expected[leaf]:
            raise WeightsError(f"Leaf '{leaf}' has shape {value.shape}, but this config needs {self.expected[leaf]}.")
        return value

    def _read_dense(self, leaf: str) -> np.ndarray:
        entry: TensorName = self.table[leaf]
        tensor = self.source.tensors[self.chosen[leaf]]
        needed = self.expected[leaf][::-1] if entry.transform == "transpose" else self.expected[leaf]
        if tensor.shape != needed:
            raise WeightsError(
                f"Tensor '{tensor.name}' of {tensor.file} has shape {tensor.shape}, but the config needs {needed} "
                f"(leaf '{leaf}', axes {', '.join(self.source.family.parameter_axes([*self.expected])[leaf])}). "
                "Is config.json that of these weights?"
            )
        array = tensor.read()
        if array.dtype != np.float32:
            raise WeightsError(
                f"Tensor '{tensor.name}' of {tensor.file} holds {array.dtype}, but weights are floating point."
            )
        return np.ascontiguousarray(array.T if entry.transform == "transpose" else array)

    def _used_and_unused(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        used, unused = [], list(self.unused)
        for leaf, name in self.chosen.items():
            (used if leaf in self.expected and self._has(leaf) else unused).append(name)
        for leaf, stored in self.source.typed.items():
            names = [place.tensor for place in stored.parts.values() if place.tensor]
            (used if leaf in self.expected and self._has(leaf) else unused).extend(names)
        return tuple(used), tuple(unused)


__all__ = [
    "LoadedCheckpoint",
    "TensorAccount",
    "load_checkpoint",
]
