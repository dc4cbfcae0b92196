"""From zeros to smaller matrices: heads and neurons that give nothing are taken out, with the config that says so."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from flaxbert.architecture import ModelConfig
from flaxbert.core.arrays import Params, SparseArray
from flaxbert.core.trees import flatten_names, map_leaves
from flaxbert.transforms.leaves import place_like
from flaxbert.transforms.report import CompressionReport, compare_trees
from flaxbert.transforms.units import UnitKind, Units, find_units, silent_units, take_units

_LAYER = re.compile(r"^encoder\.layers\.\d+\.")


def _kept(units: Units, silent: Mapping[str, Bool[np.ndarray, "units"]], even: bool) -> dict[str, np.ndarray]:
    """Returns the units that stay: those that give something, and so many others that no block is empty or, where asked for, all are alike."""
    counts = [max(1, int(np.count_nonzero(~gone))) for gone in silent.values()]
    if even or units.needs_even:
        counts = [max(counts)] * len(counts)
    kept = {}
    for (name, gone), count in zip(silent.items(), counts, strict=True):
        stays = ~gone
        stays[np.flatnonzero(gone)[: max(0, count - int(stays.sum()))]] = True
        kept[name] = stays
    return kept


def resize(config: ModelConfig, units: Units, kept: Mapping[str, np.ndarray]) -> ModelConfig:
    """Returns the config of a model that keeps some units.

    Args:
      config: Architecture.
      units: Its units.
      kept: Which of each block are kept.
    """
    counts = [int(np.count_nonzero(kept[block.name])) for block in units.blocks]
    whole, layers = (
        ("num_attention_heads", "layer_heads") if units.kind == "heads" else ("intermediate_size", "layer_intermediate")
    )
    sizes: dict[str, Any] = {"head_size": config.head_dim, whole: max(counts), layers: ()}
    if len(set(counts)) > 1:
        sizes[layers] = tuple(counts)
    return config.replace(**sizes)


def _alike(params: Params) -> Params:
    """Returns the tree with a mask in all layers where one layer's leaf has one, so that layers can be stacked."""
    leaves = flatten_names(params)
    tails = {_LAYER.sub("*.", name) for name, leaf in leaves.items() if isinstance(leaf, SparseArray)}

    def masked(name: str, leaf: Any) -> Any:
        if isinstance(leaf, SparseArray) or not _LAYER.match(name) or _LAYER.sub("*.", name) not in tails:
            return leaf
        return SparseArray(values=leaf, mask=place_like(np.ones(leaf.shape, bool), leaf))

    return map_leaves(masked, params)


def shrink(
    config: ModelConfig,
    params: Mapping[str, Any],
    leaf_axes: Mapping[str, Sequence[str]],
    unit_axes: Mapping[UnitKind, Mapping[str, int]],
    *,
    even: bool = False,
) -> tuple[ModelConfig, Params, CompressionReport]:
    """Takes out heads and neurons that give nothing, with their biases; results stay what they are.

    A head gives ``mix_h(x) W_h`` to the residual stream, where ``W_h`` are its rows of the output projection, and a neuron
    ``activation(x u + b) d``: where ``W_h`` or ``d`` is zero, so is what it gives, whatever else belongs to it. Masks that keep all that
    is left are given up.

    Args:
      config: Architecture.
      params: Tree of named leaves, layers numbered.
      leaf_axes: Axis names by leaf name, from the family.
      unit_axes: Axes that carry heads and neurons, as for ``find_units``; a kind that is left out stays as it is.
      even: Whether all layers keep as many as the one that keeps most, so that they can be scanned and stock classes can have them.

    Returns:
      The config of the smaller model, its tree under the same names, and a report per leaf.

    Raises:
      RuleError: A leaf is quantized.
      ShapeError: Layers are stacked.
    """
    smaller, small = config, dict(params)
    notes = []
    for kind, axes in unit_axes.items():
        units = find_units(smaller, small, leaf_axes, kind, axes)
        kept = _kept(units, silent_units(small, units), even)
        before, after = sum(block.num_units for block in units.blocks), sum(int(mask.sum()) for mask in kept.values())
        notes.append(f"{after} of {before} {kind} are left.")
        small = take_units(small, units, kept)
        smaller = resize(smaller, units, kept)
    small = _alike(small) if even else small
    return smaller, small, compare_trees("shrink", params, small, notes=notes)
