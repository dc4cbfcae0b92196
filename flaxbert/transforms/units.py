"""Heads and neurons of a parameter tree: where they lie, how much they weigh, and trees without some of them."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Bool, Float

from flaxbert.architecture import ModelConfig
from flaxbert.core.arrays import Params, SparseArray, TypedArray
from flaxbert.core.trees import flatten_names, is_stacked, unflatten_names
from flaxbert.errors import RuleError, ShapeError
from flaxbert.transforms.leaves import host_weights, place_like

UnitKind = Literal["heads", "neurons"]
Scores = dict[str, Float[np.ndarray, "units"]]
Kept = Mapping[str, Bool[np.ndarray, "units"]]

_BLOCK = re.compile(r"^(encoder\.(?:layers\.(?P<layer>\d+)|groups\.\d+\.blocks\.\d+))\.")


@dataclasses.dataclass(frozen=True)
class UnitPlace:
    """An axis of a leaf along which units lie.

    Attributes:
      leaf: Name of the leaf.
      axis: Number of the axis, from 0.
      parts: How many times all units lie along it, one after the other.
      is_read: Whether products sum over the axis: the matrix takes what the units give, so that a unit whose rows are zero there gives nothing.
    """

    leaf: str
    axis: int
    parts: int
    is_read: bool

    def by_unit(self, array: np.ndarray, num_units: int) -> np.ndarray:
        """Returns an array with one row for each unit.

        Args:
          array: The leaf's array.
          num_units: Units along the axis.
        """
        moved = np.moveaxis(array, self.axis, 0)
        split = moved.reshape(self.parts, num_units, -1, *moved.shape[1:])
        return np.moveaxis(split, 1, 0).reshape(num_units, -1)

    def entries(self, kept: Bool[np.ndarray, "units"], size: int) -> Bool[np.ndarray, "entries"]:
        """Returns which entries of the axis belong to kept units.

        Args:
          kept: Which units are kept.
          size: Entries of the axis.
        """
        return np.tile(np.repeat(kept, size // (self.parts * len(kept))), self.parts)


@dataclasses.dataclass(frozen=True)
class UnitBlock:
    """The units of one block.

    Attributes:
      name: Name of the block, which the names of its leaves begin with.
      layer: Number of its layer; None where the block belongs to several.
      num_units: How many it has.
      places: Where they lie.
    """

    name: str
    layer: int | None
    num_units: int
    places: tuple[UnitPlace, ...]

    @property
    def reader(self) -> UnitPlace:
        """The matrix that takes what the units give."""
        return next(place for place in self.places if place.is_read)


@dataclasses.dataclass(frozen=True)
class Units:
    """All units of one kind in a tree.

    Attributes:
      kind: heads or neurons.
      blocks: The blocks, in order.
      shared: Places that all blocks share, such as a table of distances with a column for each head.
    """

    kind: UnitKind
    blocks: tuple[UnitBlock, ...]
    shared: tuple[UnitPlace, ...] = ()

    @property
    def is_shared(self) -> bool:
        """Whether all blocks must keep the same units."""
        return bool(self.shared)

    @property
    def needs_even(self) -> bool:
        """Whether all blocks must keep as many units as each other: what they share, or a block that is in several layers, has one size."""
        return self.is_shared or any(block.layer is None for block in self.blocks)


def find_units(
    config: ModelConfig,
    params: Mapping[str, Any],
    leaf_axes: Mapping[str, Sequence[str]],
    kind: UnitKind,
    unit_axes: Mapping[str, int],
) -> Units:
    """Finds where the heads or neurons of a model lie.

    Args:
      config: Architecture.
      params: Tree of named leaves, layers numbered.
      leaf_axes: Axis names by leaf name, from the family.
      kind: heads or neurons.
      unit_axes: Axes that carry them, and how many times all of them lie there one after the other, from the family.

    Returns:
      The units, block by block.

    Raises:
      ShapeError: Layers are stacked, or a matrix that takes what the units give is not found.
      RuleError: A leaf is stored in a form whose units can not be told apart.
    """
    if is_stacked(params):
        raise ShapeError("Heads and neurons can not be removed from stacked layers; unstack them (scan_layers: false).")
    leaves = flatten_names(params)
    found: dict[str, list[UnitPlace]] = {}
    layers: dict[str, int | None] = {}
    shared: list[UnitPlace] = []
    for name, leaf in leaves.items():
        for axis, word in enumerate(leaf_axes[name]):
            if word not in unit_axes:
                continue
            if isinstance(leaf, TypedArray) and not isinstance(leaf, SparseArray):
                raise RuleError(
                    f"'{name}' is {leaf.kind}: prune before you quantize, from the model as it was trained."
                )
            match = _BLOCK.match(name)
            place = UnitPlace(name, axis, unit_axes[word], match is not None and leaf.ndim == 2 and axis == 0)
            if match is None:
                shared.append(place)
                continue
            found.setdefault(match[1], []).append(place)
            layers[match[1]] = None if match["layer"] is None else int(match["layer"])
    blocks = []
    for name, places in found.items():
        if not any(place.is_read for place in places):
            raise ShapeError(f"Block '{name}' has no matrix that takes what its {kind} give.")
        layer = layers[name]
        sizes = config if layer is None else config.for_layer(layer)
        num_units = sizes.num_attention_heads if kind == "heads" else sizes.intermediate_size
        blocks.append(UnitBlock(name, layer, num_units, tuple(places)))
    return Units(kind, tuple(blocks), tuple(shared))


def magnitude_scores(params: Mapping[str, Any], units: Units) -> Scores:
    """Returns how large each unit's weights are: the root of the sum of their squares over all matrices that it lies in.

    Args:
      params: Tree of named leaves.
      units: Its units.

    Returns:
      One score per unit and block.
    """
    leaves, scores = flatten_names(params), {}
    for block in units.blocks:
        total = np.zeros(block.num_units)
        for place in block.places:
            leaf = leaves[place.leaf]
            if leaf.ndim > 1:
                weights = host_weights(place.leaf, leaf).astype(np.float64)
                total += np.square(place.by_unit(weights, block.num_units)).sum(axis=1)
        scores[block.name] = np.sqrt(total)
    return scores


def random_scores(units: Units, seed: int) -> Scores:
    """Returns scores that say nothing, the baseline that a method must beat.

    Args:
      units: The units.
      seed: Seed of the draw.
    """
    random = np.random.default_rng(seed)
    return {block.name: random.random(block.num_units) for block in units.blocks}


def _with_units(leaf: Any, place: UnitPlace, kept: np.ndarray) -> Any:
    """Returns a leaf whose entries of other units are gone."""
    entries = np.flatnonzero(place.entries(kept, leaf.shape[place.axis]))

    def cut(array: Any) -> Any:
        return place_like(np.take(np.asarray(array), entries, axis=place.axis), array)

    if isinstance(leaf, SparseArray):
        values, mask = cut(leaf.values), cut(leaf.mask)
        return values if bool(np.asarray(mask).all()) else SparseArray(values=values, mask=mask)
    return cut(leaf)


def _without_units(leaf: Any, place: UnitPlace, kept: np.ndarray) -> Any:
    """Returns a leaf of the same shape whose entries of other units are zero; for good where it is a matrix."""
    shape = [1] * leaf.ndim
    shape[place.axis] = -1
    mask = np.broadcast_to(place.entries(kept, leaf.shape[place.axis]).reshape(shape), leaf.shape)
    values = leaf.values if isinstance(leaf, SparseArray) else leaf
    host = np.asarray(values)
    zeroed = place_like(np.where(mask, host, np.zeros((), host.dtype)), values)
    if leaf.ndim == 1:
        return zeroed
    if isinstance(leaf, SparseArray):
        mask = mask & np.asarray(leaf.mask)
    return SparseArray(values=zeroed, mask=place_like(np.ascontiguousarray(mask), values))


def _places(units: Units, kept: Kept) -> Iterable[tuple[UnitPlace, np.ndarray]]:
    for block in units.blocks:
        yield from ((place, np.asarray(kept[block.name])) for place in block.places)
    for place in units.shared:
        yield place, np.asarray(kept[units.blocks[0].name])


def mask_units(params: Mapping[str, Any], units: Units, kept: Kept) -> Params:
    """Returns the tree with the weights of all other units set to zero, in the same shapes, masked so that training keeps them zero.

    Args:
      params: Tree of named leaves, layers numbered.
      units: Its units.
      kept: Which units of each block are kept.
    """
    leaves = flatten_names(params)
    for place, chosen in _places(units, kept):
        if not chosen.all() and place not in units.shared:
            leaves[place.leaf] = _without_units(leaves[place.leaf], place, chosen)
    return unflatten_names(leaves)


def take_units(params: Mapping[str, Any], units: Units, kept: Kept) -> Params:
    """Returns the tree without all other units: with smaller arrays.

    Args:
      params: Tree of named leaves, layers numbered.
      units: Its units.
      kept: Which units of each block are kept.
    """
    leaves = flatten_names(params)
    for place, chosen in _places(units, kept):
        if not chosen.all():
            leaves[place.leaf] = _with_units(leaves[place.leaf], place, chosen)
    return unflatten_names(leaves)


def silent_units(params: Mapping[str, Any], units: Units) -> dict[str, Bool[np.ndarray, "units"]]:
    """Returns which units give nothing: those whose rows are zero in the matrix that takes what they give.

    Where all blocks share the units, a unit must give nothing in all of them.

    Args:
      params: Tree of named leaves, layers numbered.
      units: Its units.
    """
    leaves = flatten_names(params)
    silent: dict[str, Any] = {}
    for block in units.blocks:
        leaf = leaves[block.reader.leaf]
        weights = np.asarray(jax.device_get(leaf.materialize() if isinstance(leaf, SparseArray) else leaf))
        silent[block.name] = ~np.any(block.reader.by_unit(weights, block.num_units), axis=1)
    if units.is_shared:
        everywhere = np.logical_and.reduce(list(silent.values()))
        silent = {name: everywhere.copy() for name in silent}
    return silent
