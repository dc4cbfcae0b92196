"""Fewer layers: a model that keeps some of its own (Sajjad et al., 2023)."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flaxbert.architecture import ModelConfig
from flaxbert.core.arrays import Params
from flaxbert.core.trees import flatten_names, is_stacked, unflatten_names
from flaxbert.errors import ConfigError, ShapeError
from flaxbert.transforms.report import CompressionReport, compare_trees

_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.(.+)$")
_FORM = re.compile(r"(first|last|spread):(\d+)")


def parse_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """Returns the numbers of the layers that a text says to keep.

    Args:
      text: ``0,2,4``, the numbers themselves; ``first:6``, which drops the last ones; ``last:6``; or ``spread:6``, which drops every other
        of twelve and keeps as even a distance for other numbers.
      num_layers: Layers of the model.

    Raises:
      ConfigError: The text is none of these, or names layers that there are not.

    Example:
      >>> parse_layers("spread:6", 12), parse_layers("0,2", 3)
      ((0, 2, 4, 6, 8, 10), (0, 2))
    """
    match = _FORM.fullmatch(text.strip())
    if match is not None:
        count = int(match[2])
        if not 1 <= count <= num_layers:
            raise ConfigError(f"{count} layers can not be kept of {num_layers}; keep between 1 and {num_layers}.")
        if match[1] == "first":
            return tuple(range(count))
        if match[1] == "last":
            return tuple(range(num_layers - count, num_layers))
        return tuple(number * num_layers // count for number in range(count))
    if not re.fullmatch(r"\d+(\s*,\s*\d+)*", text.strip()):
        raise ConfigError(f"Layers '{text}' are neither numbers such as 0,2,4 nor first:N, last:N or spread:N.")
    kept = tuple(int(number) for number in text.split(","))
    if list(kept) != sorted(set(kept)) or kept[-1] >= num_layers:
        raise ConfigError(f"Layers '{text}' must be rising numbers from 0 to {num_layers - 1}, each once.")
    return kept


def keep_layers(
    config: ModelConfig,
    params: Mapping[str, Any],
    kept: Sequence[int],
    *,
    select_layers: Callable[[ModelConfig, Sequence[int]], ModelConfig],
    next_layer_leaves: Sequence[str] = (),
) -> tuple[ModelConfig, Params, CompressionReport]:
    """Drops all layers but some, which are numbered anew in their order.

    Args:
      config: Architecture.
      params: Tree of named leaves, layers numbered.
      kept: Numbers of the layers to keep, rising, from 0.
      select_layers: Gives the config of the shorter model, from the family.
      next_layer_leaves: What names within a layer begin with that belong to the layer after it (a norm before its attention), from the
        family: a dropped layer takes its own along.

    Returns:
      The config, the tree, and a report per leaf of the old tree.

    Raises:
      ConfigError: Nothing or a layer that is not there would be kept, or the first layer can not be dropped.
      ShapeError: Layers are stacked.
    """
    num_layers = config.num_hidden_layers
    if is_stacked(params):
        raise ShapeError("Layers can not be dropped while they are stacked; unstack them (scan_layers: false).")
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= num_layers:
        raise ConfigError(
            f"Layers {list(kept)} can not be kept of {num_layers}; name rising numbers from 0 to {num_layers - 1}."
        )
    if next_layer_leaves and kept[0] != 0:
        raise ConfigError(
            "The first layer can not be dropped: it alone reads the embeddings without a norm before its attention."
        )
    places = {layer: number for number, layer in enumerate(kept)}
    # A leaf that belongs to the layer after: that of the layer before the next one that is kept; behind the last one, the model's last.
    following = {after - 1: number for number, after in enumerate((*kept[1:], num_layers))}
    leaves: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, leaf in flatten_names(params).items():
        match = _LAYER.match(name)
        new = name
        if match is not None:
            numbers = following if match[2].startswith(tuple(next_layer_leaves)) else places
            if int(match[1]) not in numbers:
                continue
            new = f"encoder.layers.{numbers[int(match[1])]}.{match[2]}"
        leaves[new], sources[new] = leaf, name
    shorter = unflatten_names(leaves)
    notes = (f"{len(kept)} of {num_layers} layers are left: {', '.join(map(str, kept))}.",)
    return select_layers(config, kept), shorter, compare_trees("layers", params, shorter, sources=sources, notes=notes)
