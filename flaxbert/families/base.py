"""What a family is: a config mapping, a name table and axis names; its own blocks only where the mathematics differs."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core import axes
from flaxbert.core.axes import axis_size
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.trees import STACKED
from flaxbert.families.work import LayerWork, standard_layers

Transform = Literal["none", "transpose"]


def keep_layers(config: ModelConfig, kept: Sequence[int]) -> ModelConfig:
    """Returns the config with some layers only.

    Args:
      config: Architecture.
      kept: Numbers of the layers, in order.
    """
    return config.replace(
        num_hidden_layers=len(kept),
        layer_heads=tuple(config.layer_heads[layer] for layer in kept) if config.layer_heads else (),
        layer_intermediate=tuple(config.layer_intermediate[layer] for layer in kept)
        if config.layer_intermediate
        else (),
        head_size=config.head_dim,
    )


@dataclasses.dataclass(frozen=True)
class TensorName:
    """One line of a family's name table.

    Attributes:
      leaf: Our dotted leaf name; ``{layer}`` stands for the layer number.
      tensor: The tensor's name in a checkpoint, without the base prefix where ``in_base``.
      transform: none, or transpose (their linear weights are ``[out, in]``, our kernels ``[in, out]``).
      in_base: Whether checkpoints with a task head put the base prefix (``bert.``) before the name.
      by_task: The tensor's name in checkpoints of some tasks, where it differs.
      applies: Whether a model of an architecture has the leaf; of entries with one tensor name, one at most applies.
    """

    leaf: str
    tensor: str
    transform: Transform = "none"
    in_base: bool = True
    by_task: Mapping[str, str] = dataclasses.field(default_factory=dict)
    applies: Callable[[ModelConfig], bool] = lambda config: True

    def name_for(self, task: str) -> str:
        """Returns the tensor's name in checkpoints of a task.

        Args:
          task: Canonical task name.
        """
        return self.by_task.get(task, self.tensor)


@dataclasses.dataclass(frozen=True)
class TiedTensor:
    """A tensor that some checkpoints store although it repeats another one.

    Attributes:
      leaf: The leaf that it must equal.
      head: The head that reads it; where a task has no such head, the tensor is not looked at.
    """

    leaf: str
    head: str


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that is special about one family of encoders.

    Attributes:
      model_type: Name of the family in ``config.json``.
      prefix: Base prefix of tensor names in checkpoints with a task head.
      tensors: The name table, heads included.
      tied: Tensors that repeat another one, by name.
      ignored: Regular expressions of tensors that carry no weights (position numbers and the like).
      foreign: Regular expressions of tensors of heads that the family's checkpoints can have but flaxbert has no task for.
      renamed: Old endings of tensor names and what they are called now.
      axis_rules: Axis names by leaf name, ordered and total; without the ``layers`` axis of stacked leaves.
      architectures: Class name in ``config.json`` by task.
      config_from_json: Reads a ``config.json``.
      config_to_json: Writes a ``config.json`` for a task.
      network: Builds the module of a task.
      repeats: How often each number in braces occurs, by its word; ``{layer}`` once for each hidden layer.
      own_axes: Size of parameter axes that only this family has, by name; they are kept whole on every device.
      derived: Tensors that stock checkpoints store although the config gives them, by plain name: written on export, compared
        on import.
      stock_reads_padding: Whether stock classes let padding change the results of a text, which ours never do.
      adapt_config: What the names of a checkpoint's tensors say otherwise than its config.
      layer_work: How much each layer multiplies for a task, one after the other.
      head_axes: Parameter axes along which heads lie, and how many times all heads lie there one after the other (3 where queries,
        keys and values are one axis).
      neuron_axes: The same for the neurons of the feed-forward layer (2 where a gate lies beside them).
      unprunable: What can not be removed from a model (``heads``, ``neurons``, ``layers``), and why.
      select_layers: The config of a model that keeps some of its layers.
      next_layer_leaves: What the names of leaves of a layer begin with that stock checkpoints count to the layer after it.
      stock_head_size: Whether stock classes take heads that do not fill the hidden size.
    """

    model_type: str
    prefix: str
    tensors: tuple[TensorName, ...]
    tied: Mapping[str, TiedTensor]
    ignored: tuple[str, ...]
    foreign: tuple[str, ...]
    renamed: Mapping[str, str]
    axis_rules: tuple[Rule[tuple[str, ...]], ...]
    architectures: Mapping[str, str]
    config_from_json: Callable[[Mapping[str, Any]], ModelConfig]
    config_to_json: Callable[[ModelConfig, str], dict[str, Any]]
    network: Callable[[ModelConfig, str, Execution, Any], Any]
    repeats: Callable[[ModelConfig], Mapping[str, int]] = lambda config: {"layer": config.num_hidden_layers}
    own_axes: Mapping[str, Callable[[ModelConfig], int]] = dataclasses.field(default_factory=dict)
    derived: Callable[[ModelConfig], Mapping[str, np.ndarray]] = lambda config: {}
    stock_reads_padding: bool = False
    adapt_config: Callable[[ModelConfig, Collection[str]], ModelConfig] = lambda config, names: config
    layer_work: Callable[[ModelConfig, str], tuple[LayerWork, ...]] = standard_layers
    head_axes: Mapping[str, int] = dataclasses.field(default_factory=lambda: {axes.ATTENTION: 1})
    neuron_axes: Mapping[str, int] = dataclasses.field(default_factory=lambda: {axes.MLP: 1})
    unprunable: Callable[[ModelConfig], Mapping[str, str]] = lambda config: {}
    select_layers: Callable[[ModelConfig, Sequence[int]], ModelConfig] = keep_layers
    next_layer_leaves: tuple[str, ...] = ()
    stock_head_size: bool = False

    def is_stock(self, config: ModelConfig) -> bool:
        """Returns whether stock classes can have the sizes of a config: equal layers, and heads that fill the hidden size.

        Args:
          config: Architecture.
        """
        return config.has_equal_layers and (not config.head_size or self.stock_head_size)

    def axis_size(self, axis: str, config: ModelConfig) -> int:
        """Returns the size that a configuration gives to a parameter axis.

        Args:
          axis: One of ``core.axes.PARAMETER_AXES``, or of the family's own.
          config: Architecture.

        Raises:
          KeyError: There is no such axis.
        """
        return self.own_axes[axis](config) if axis in self.own_axes else axis_size(axis, config)

    def parameter_axes(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Returns the axis names of leaves, with ``layers`` first for stacked ones.

        Args:
          names: Leaf names of one model.

        Raises:
          RuleError: A leaf has no axes.
        """
        plain = [re.sub(rf"\.{STACKED}\.", ".0.", name) for name in names]
        matched = match_rules(list(dict.fromkeys(plain)), self.axis_rules, purpose=f"{self.model_type} axis")
        return {
            name: (("layers",) if f".{STACKED}." in name else ()) + matched[key]
            for name, key in zip(names, plain, strict=True)
        }

    def tensor_table(self, config: ModelConfig) -> dict[str, TensorName]:
        """Returns the name table by leaf name, with layers written out.

        Args:
          config: Architecture, for the number of layers.
        """
        table: dict[str, TensorName] = {}
        counts = self.repeats(config)
        for entry in self.tensors:
            if not entry.applies(config):
                continue
            words = [word for word in counts if f"{{{word}}}" in entry.leaf]
            for numbers in itertools.product(*(range(counts[word]) for word in words)):
                values = dict(zip(words, numbers, strict=True))
                leaf, tensor = entry.leaf.format(**values), entry.tensor.format(**values)
                table[leaf] = dataclasses.replace(entry, leaf=leaf, tensor=tensor)
        return table
