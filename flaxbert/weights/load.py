"""Loading a checkpoint for a task: config, every tensor accounted for, labels, pooling."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxbert.architecture import TASK_HEADS, ModelConfig, resolve_task
from flaxbert.core.arrays import Params, TypedArray
from flaxbert.core.trees import flatten_names, unflatten_names
from flaxbert.errors import ConfigError, WeightsError, nearest
from flaxbert.families import FAMILIES, Family, TensorName, get_family
from flaxbert.families.graph import abstract_params, initialize_params
from flaxbert.weights.labels import CLASSIFIER_TASKS, LabelPlan, plan_labels
from flaxbert.weights.name_table import (
    NamedTensors,
    TensorAccount,
    check_unexpected,
    derive_task,
    head_of,
    name_tensors,
)
from flaxbert.weights.readers import (
    StoredTensor,
    open_weights,
    read_json_object,
    read_safetensors_header,
)
from flaxbert.weights.sentence_transformers import SentencePooling, read_pooling, transformer_folder
from flaxbert.weights.tokenizer import load_tokenizer
from flaxbert.weights.typed_leaves import CODES_FILE, StoredLeaf, open_parts, read_leaf, read_leaves

DERIVED_TOLERANCE = 1e-4
"""Absolute; sines computed in float32 and float64 differ by about 3e-5 at position 512."""

_CONFIG_FILES = ("config.json", "bert_config.json")
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


@dataclasses.dataclass(frozen=True)
class _Source:
    """The opened folder: tensors by name (parts of typed leaves aside) and typed leaves by leaf name."""

    folder: pathlib.Path
    family: Family
    json: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    typed: Mapping[str, StoredLeaf]
    parts: Mapping[str, StoredTensor]
    named: NamedTensors


def check_folder(folder: pathlib.Path) -> None:
    """Refuses a path that is no model folder.

    Args:
      folder: The path.

    Raises:
      WeightsError: It does not exist, is a file, or has no config; says what is there and what is needed.
    """
    if not folder.exists():
        raise WeightsError(f"The folder {folder} does not exist.")
    if not folder.is_dir():
        raise WeightsError(f"{folder} is a file; a model is a folder with config.json and model.safetensors.")
    root = transformer_folder(folder)
    if not any((root / name).is_file() for name in _CONFIG_FILES):
        names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        listing = ", ".join(names[:12]) + (" …" if len(names) > 12 else "") or "nothing"
        raise WeightsError(
            f"{root} is no model folder: it has no config.json. Needed are config.json and model.safetensors, and "
            f"tokenizer.json or vocab.txt for texts; there is {listing}."
        )


def _read_config(root: pathlib.Path, names: Sequence[str]) -> tuple[Mapping[str, Any], Family, ModelConfig, list[str]]:
    file = next(root / name for name in _CONFIG_FILES if (root / name).is_file())
    json, notes = read_json_object(file), []
    model_type = json.get("model_type")
    if model_type is None:
        fitting = [
            f.model_type for f in FAMILIES.values() if not names or any(n.endswith(f.tensors[0].tensor) for n in names)
        ]
        prefixed = [name for name in fitting if any(n.startswith(f"{get_family(name).prefix}.") for n in names)]
        if not fitting:
            raise WeightsError(
                f"{file} has no model_type and the tensors' names fit no family ({', '.join(FAMILIES)})."
            )
        model_type = (prefixed or fitting)[0]
        notes.append(f"{file.name} has no model_type; taken for {model_type}, which its keys and tensor names fit.")
    try:
        family = get_family(str(model_type))
        return json, family, family.adapt_config(family.config_from_json(json), names), notes
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def read_config(folder: str | pathlib.Path) -> ModelConfig:
    """Returns the architecture that a model folder describes, without reading its weights.

    Args:
      folder: A folder in Hugging Face or sentence-transformers layout.

    Raises:
      WeightsError: The folder is no model.
      ConfigError: Its ``config.json`` is not usable.
    """
    folder = pathlib.Path(folder)
    check_folder(folder)
    return _read_config(transformer_folder(folder), [])[2]


def _open(root: pathlib.Path) -> tuple[dict[str, StoredTensor], dict[str, StoredLeaf], dict[str, StoredTensor]]:
    typed = read_leaves(root)
    if not typed:
        return open_weights(root), {}, {}
    tensors = read_safetensors_header(root / CODES_FILE)[0] if (root / CODES_FILE).is_file() else open_weights(root)
    part_names = {place.tensor for leaf in typed.values() for place in leaf.parts.values()}
    parts = {name: tensor for name, tensor in tensors.items() if name in part_names} | open_parts(root)
    return {name: tensor for name, tensor in tensors.items() if name not in part_names}, typed, parts


def _declared_task(json: Mapping[str, Any], family: Family) -> tuple[str | None, str]:
    classes = json.get("architectures")
    if not classes:
        return None, ""
    name = str(classes[0]) if isinstance(classes, list) else str(classes)
    by_class = {architecture: task for task, architecture in family.architectures.items()}
    return by_class.get(name), name


def _choose_task(
    task: str | None, source: _Source, pooling: SentencePooling | None, notes: list[str]
) -> tuple[str, bool]:
    """Returns the task, and whether the folder's classifier was made for it."""
    declared, name = _declared_task(source.json, source.family)
    if task is not None:
        task = resolve_task(task)
        return task, not name or declared == task
    if pooling is not None:
        return "sentence-similarity", False
    if declared is not None:
        return declared, True
    if name:
        known = ", ".join(source.family.architectures.values())
        raise ConfigError(
            f"{source.folder} was made for {name}, for which flaxbert has no task (it knows {known})."
            f"{nearest(name, source.family.architectures.values())} Pass task= to use its encoder for another task."
        )
    task = derive_task([*source.named.leaves, *source.typed])
    notes.append(f"config.json names no architectures; the tensors are those of {task}.")
    return task, True


def _classifier_of(task: str) -> str:
    return "relation.classifier" if task == "relation-classification" else "classifier"


def _num_outputs(source: _Source, leaf: str) -> int | None:
    if leaf in source.typed:
        return next(iter(source.typed[leaf].parts.values())).shape[-1]
    name = source.named.leaves.get(leaf)
    return source.tensors[name].shape[0] if name and source.tensors[name].shape else None


def _fit_head(config: ModelConfig, task: str, source: _Source) -> ModelConfig:
    """Returns the config with the outputs that the task's head has whatever the file says."""
    if task == "multiple-choice":
        return config.replace(num_labels=1, labels=())
    if task == "late-interaction":
        return config.replace(projection_size=_num_outputs(source, "projection.dense.kernel") or config.projection_size)
    return config


def load_checkpoint(
    folder: str | pathlib.Path,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    problem_type: str | None = None,
    seed: int = 0,
    from_scratch: bool = False,
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

    Returns:
      Config, task, parameters, account and pooling.

    Raises:
      ConfigError: The config can not be used, or the task is unknown.
      WeightsError: The folder is no model; a tensor is missing, unexpected, of a wrong shape, or not tied as it should be.
    """
    folder = pathlib.Path(folder)
    check_folder(folder)
    root = transformer_folder(folder)
    tensors, typed, parts = ({}, {}, {}) if from_scratch else _open(root)
    json, family, config, notes = _read_config(root, [*tensors, *parts])
    named = name_tensors(tensors, family, config)
    check_unexpected(named, family, config)
    source = _Source(root, family, json, tensors, typed, parts, named)
    pooling = read_pooling(folder)
    task, classifier_fits = _choose_task(task, source, pooling, notes)
    if task not in family.architectures:
        raise ConfigError(
            f"A {family.model_type} has no head for {task}; it can be loaded for {', '.join(family.architectures)}."
        )
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
            notes.append(
                "The folder does not say how sentence vectors are pooled; the mean of the token vectors is taken."
            )
    else:
        pooling = None
    if from_scratch:
        drawn = jax.tree.map(np.asarray, initialize_params(config, task, seed))
        notes.append("All weights are newly drawn (from_scratch).")
        account = TensorAccount(initialized=tuple(flatten_names(drawn)), notes=tuple(notes))
        return LoadedCheckpoint(config, task, drawn, account, pooling, folder)
    leaves, account = _Assembly(source, config, task, plan, classifier_fits).run(seed, notes)
    return LoadedCheckpoint(config, task, unflatten_names(leaves), account, pooling, folder)


class _Assembly:
    """Puts the leaves of one task together from an opened folder."""

    def __init__(self, source: _Source, config: ModelConfig, task: str, plan: LabelPlan, classifier_fits: bool) -> None:
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

    def run(self, seed: int, notes: list[str]) -> tuple[dict[str, Any], TensorAccount]:
        """Returns the leaves by name, and the account."""
        self._settle_tied(notes)
        self._check_derived()
        missing = [name for name in self.expected if not self._has(name)]
        self._check_missing(missing)
        leaves = {name: self._read(name) for name in self.expected if name not in missing}
        if missing:
            drawn = flatten_names(initialize_params(self.config, self.task, seed, missing))
            leaves |= {name: np.asarray(leaf) for name, leaf in drawn.items()}
        if self.plan.order is not None:
            for name in (f"{_classifier_of(self.task)}.{part}" for part in ("kernel", "bias")):
                leaves[name] = jax.tree.map(
                    lambda array: np.ascontiguousarray(array[..., self.plan.order]), leaves[name]
                )
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
        return {name: leaves[name] for name in self.expected}, account

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
        return np.ascontiguousarray(array.T) if entry.transform == "transpose" else array

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
    "check_folder",
    "load_checkpoint",
    "load_tokenizer",
]
