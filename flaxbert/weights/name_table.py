"""Accounting for tensors: which leaf each tensor of a checkpoint belongs to, and what became of every one."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping

from flaxbert.architecture import TASK_HEADS, ModelConfig
from flaxbert.errors import WeightsError, nearest
from flaxbert.families import Family
from flaxbert.weights.formats.tensorflow_names import OPTIMIZER_STATE, SECOND_NETWORK

HEADS = (
    *dict.fromkeys(head for heads in TASK_HEADS.values() for head in heads),
    "classifier_dense",
    "prediction",
    "sentence_order",
)
"""First words of leaf names that belong to heads; all others belong to the encoder."""

_MOST_NAMES_SHOWN = 16


@dataclasses.dataclass(frozen=True)
class TensorAccount:
    """What every tensor of a checkpoint was used for, and which leaves are new.

    Attributes:
      used: Tensors that became leaves of the model.
      tied: Tensors that repeat another one and were found equal to it.
      renamed: Old names, as the checkpoint has them, and what they are called now.
      prefix: What was done to the prefix of all names; empty where nothing.
      ignored: Tensors that carry no weights.
      unused: Tensors of the family that this task has no use for.
      initialized: Leaves that were newly drawn, since the task needs them and the checkpoint has none that fit.
      notes: What was assumed or changed, one sentence each.
    """

    used: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    initialized: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Returns the account as a few lines of text, for logs and model cards."""
        lines = [f"{len(self.used)} tensors used"]
        if self.prefix:
            lines.append(self.prefix)
        if self.renamed:
            lines.append(f"{len(self.renamed)} old names renamed")
        for title, names in (
            ("tied, equal to what they repeat", self.tied),
            ("ignored, no weights", self.ignored),
            ("unused by this task", self.unused),
            ("newly initialised", self.initialized),
        ):
            if names:
                more = f" and {len(names) - _MOST_NAMES_SHOWN} more" if len(names) > _MOST_NAMES_SHOWN else ""
                lines.append(f"{title}: {', '.join(names[:_MOST_NAMES_SHOWN])}{more}")
        return "\n".join([*lines, *self.notes])


@dataclasses.dataclass(frozen=True)
class NamedTensors:
    """The tensors of a checkpoint sorted by what their names say.

    Attributes:
      leaves: Tensor name in the checkpoint by leaf name.
      tied: Tensor names in the checkpoint by their plain name in the family's table of tied tensors.
      ignored: Tensors that carry no weights.
      foreign: Tensors of heads that flaxbert has no task for.
      unexpected: Tensors that the family does not know.
      renamed: Old names and new names.
      prefix: What was done to the prefix.
    """

    leaves: Mapping[str, str]
    tied: Mapping[str, str]
    ignored: tuple[str, ...]
    foreign: tuple[str, ...]
    unexpected: tuple[str, ...]
    renamed: Mapping[str, str]
    prefix: str


def head_of(leaf: str) -> str:
    """Returns the head that a leaf belongs to, or an empty string for the encoder."""
    first = leaf.split(".", 1)[0]
    return first if first in HEADS else ""


def _current_name(name: str, renamed: Mapping[str, str]) -> str:
    for old, new in renamed.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _outer_prefix(names: Collection[str], family: Family) -> str:
    anchor = family.tensors[0].tensor
    found = {name.removesuffix(anchor) for name in names if name.endswith(anchor)}
    prefixes = sorted(prefix for prefix in found if prefix == "" or prefix.endswith("."))
    if len(prefixes) > 1:
        raise WeightsError(
            f"The checkpoint holds more than one encoder ({', '.join(prefix + anchor for prefix in prefixes)}); "
            "flaxbert reads folders with one."
        )
    return prefixes[0] if prefixes else ""


def name_tensors(names: Iterable[str], family: Family, config: ModelConfig, task: str | None = None) -> NamedTensors:
    """Sorts tensor names by what the family's table says of them.

    Accepts every name with or without the base prefix, with one more prefix around all of it (``module.``), and with the
    old endings of the family.

    Args:
      names: Names in the checkpoint.
      family: The family.
      config: Architecture, for the number of layers.
      task: Task that the checkpoint was made for, which decides what a name means that tasks share; None where not known.

    Returns:
      Every name in exactly one of the fields.

    Raises:
      WeightsError: Two tensors claim one leaf, or the checkpoint holds two encoders.
    """
    names = list(names)
    base = f"{family.prefix}."
    found = _outer_prefix(names, family)
    outer = found.removesuffix(base) if found.endswith(base) else found
    entries = family.tensor_table(config)
    table = {name: leaf for leaf, entry in entries.items() for name in (entry.tensor, *entry.by_task.values())}
    table |= {
        entry.by_task[task]: leaf for leaf, entry in entries.items() if task is not None and task in entry.by_task
    }
    leaves: dict[str, str] = {}
    tied: dict[str, str] = {}
    renamed: dict[str, str] = {}
    ignored, foreign, unexpected = [], [], []
    for name in names:
        current = _current_name(name, family.renamed)
        if current != name:
            renamed[name] = current
        plain = current.removeprefix(outer).removeprefix(base)
        if any(re.fullmatch(pattern, plain) for pattern in (*family.ignored, OPTIMIZER_STATE)):
            ignored.append(name)
        elif plain in family.tied:
            tied[plain] = name
        elif any(re.fullmatch(pattern, plain) for pattern in (*family.foreign, SECOND_NETWORK)):
            foreign.append(name)
        elif plain not in table:
            unexpected.append(name)
        elif table[plain] in leaves:
            raise WeightsError(
                f"The tensors '{leaves[table[plain]]}' and '{name}' both claim the leaf '{table[plain]}'."
            )
        else:
            leaves[table[plain]] = name
    note = f"prefix '{outer}' removed" if outer else ("" if found else f"prefix '{base}' added")
    return NamedTensors(leaves, tied, tuple(ignored), tuple(foreign), tuple(unexpected), renamed, note)


def check_unexpected(named: NamedTensors, family: Family, config: ModelConfig) -> None:
    """Refuses a checkpoint with tensors that the family does not know.

    Args:
      named: The sorted tensors.
      family: The family.
      config: Architecture.

    Raises:
      WeightsError: There are such tensors; names them and what they may have been meant to be.
    """
    if not named.unexpected:
        return
    table = [entry.tensor for entry in family.tensor_table(config).values()]
    shown = []
    for name in named.unexpected[:8]:
        shown.append(f"'{name}'" + (nearest(name.removeprefix(f"{family.prefix}."), table) if len(shown) < 3 else ""))
    more = f" and {len(named.unexpected) - 8} more" if len(named.unexpected) > 8 else ""
    raise WeightsError(
        f"The checkpoint has {len(named.unexpected)} tensors that no {family.model_type} of {config.num_hidden_layers} "
        f"layers has: {', '.join(shown)}{more}. Is config.json that of these weights?"
    )


_TASK_OF_HEAD: dict[str, str] = {
    "span": "question-answering",
    "relation": "relation-classification",
    "replaced_token": "replaced-token-detection",
    "projection": "late-interaction",
}


def derive_task(leaves: Collection[str]) -> str:
    """Returns the task that a checkpoint without ``architectures`` was made for, from the leaves it has.

    Args:
      leaves: Leaf names that the checkpoint has tensors for.
    """
    heads = {head_of(leaf) for leaf in leaves} - {""}
    if "masked_lm" in heads:
        return "fill-mask" if heads.isdisjoint({"next_sentence", "sentence_order"}) else "pretraining"
    for head, task in _TASK_OF_HEAD.items():
        if head in heads:
            return task
    if "next_sentence" in heads:
        return "next-sentence-prediction"
    if "classifier" in heads:
        return "token-classification" if heads.isdisjoint({"pooler", "classifier_dense"}) else "sequence-classification"
    return "feature-extraction"
