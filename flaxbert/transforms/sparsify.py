"""Pruning of weights in place: single ones, N of every M along the contracted axis, or blocks; masks survive further training."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from flaxbert.core.arrays import Params, SparseArray, TypedArray
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.trees import flatten_names, map_leaves, unflatten_names
from flaxbert.errors import ConfigError, RuleError, ShapeError
from flaxbert.transforms.compensation import prune_rows
from flaxbert.transforms.leaves import contracted_axis, host_weights, place_like
from flaxbert.transforms.report import CompressionReport, LeafReport, compare_leaf, kept_leaf
from flaxbert.transforms.statistics import Statistics

Criterion = Literal["magnitude", "second_moment", "random"]
"""What a weight is judged by: its magnitude; what it gives to the outputs on measured inputs, where the others make up for it; or, as the baseline that a
method must beat, nothing."""

BY_MOMENT = "second_moment"


def _check_rate(rate: object, scope: str) -> None:
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 <= rate < 1.0:
        raise ConfigError(f"rate is {rate!r}, but the share of pruned weights lies in [0, 1).")
    if scope not in ("leaf", "global"):
        raise ConfigError(f"scope is {scope!r}, but must be 'leaf' or 'global'.")


@dataclasses.dataclass(frozen=True)
class MagnitudeSparsity:
    """Prunes the weights of smallest magnitude (Han et al., 2015).

    Attributes:
      rate: Share of weights that become zero, in [0, 1).
      scope: ``leaf`` prunes every leaf (and every stacked layer) at the rate; ``global`` ranks the weights of all leaves
        with this specification together, so that leaves with small weights lose more.
      criterion: magnitude; second_moment (leaf by leaf, in blocks of rows); or random, which draws the weights instead.
      seed: Seed of the draw.
    """

    rate: float = 0.5
    scope: Literal["leaf", "global"] = "leaf"
    criterion: Criterion = "magnitude"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_rate(self.rate, self.scope)
        if self.criterion == BY_MOMENT and self.scope == "global":
            raise ConfigError("The criterion second_moment ranks within each matrix; leave the scope 'leaf'.")


@dataclasses.dataclass(frozen=True)
class BlockSparsity:
    """Prunes the blocks of smallest norm (Gray, Radford and Kingma, 2017).

    Attributes:
      rate: Share of blocks that become zero, in [0, 1).
      rows: Height of a block: entries along the inputs.
      columns: Width of a block: entries along the outputs.
      scope: As for ``MagnitudeSparsity``.
      criterion: magnitude, the root of the mean of the squares in a block; or random.
      seed: Seed of the draw.
    """

    rate: float = 0.5
    rows: int = 4
    columns: int = 4
    scope: Literal["leaf", "global"] = "leaf"
    criterion: Criterion = "magnitude"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_rate(self.rate, self.scope)
        if self.criterion == BY_MOMENT:
            raise ConfigError(
                "Blocks are pruned by magnitude or at random; second_moment is for single weights and N:M."
            )
        if self.rows < 1 or self.columns < 1 or self.rows * self.columns == 1:
            raise ConfigError(f"{self.rows}x{self.columns} is no block; name one of at least two weights, such as 4x4.")


@dataclasses.dataclass(frozen=True)
class GroupSparsity:
    """Keeps N of every M neighbours along the contracted axis (Mishra et al., 2021).

    Attributes:
      num_kept: Weights kept of each group, N.
      group_size: Neighbouring weights of a group, M.
      criterion: magnitude, second_moment or random, as for ``MagnitudeSparsity``.
      seed: Seed of the draw.
    """

    num_kept: int = 2
    group_size: int = 4
    criterion: Criterion = "magnitude"
    seed: int = 0

    def __post_init__(self) -> None:
        whole = all(
            isinstance(value, int) and not isinstance(value, bool) for value in (self.num_kept, self.group_size)
        )
        if not whole or not 1 <= self.num_kept < self.group_size:
            raise ConfigError(
                f"The pattern {self.num_kept}:{self.group_size} is no N:M with whole numbers 1 <= N < M, such as 2:4."
            )


SparsitySpec = MagnitudeSparsity | GroupSparsity | BlockSparsity
SparsityRule = Rule[SparsitySpec | None]
"""What matching leaves get: a specification, or None to keep them dense."""


def default_sparsity_rules(spec: SparsitySpec = GroupSparsity()) -> tuple[SparsityRule, ...]:
    """Returns rules that prune every kernel of the encoder's layers and keep the rest.

    Args:
      spec: How they are pruned.
    """
    return (Rule(r"encoder\.(layers|groups)\..*\.kernel", spec), Rule(r".*", None))


def smallest_mask(magnitudes: np.ndarray, num_pruned: int) -> np.ndarray:
    """Returns which entries stay when exactly ``num_pruned`` of the smallest go; of equal ones the first go.

    Args:
      magnitudes: Magnitudes of any shape.
      num_pruned: Entries to prune.

    Returns:
      Boolean mask of the same shape, True where the entry stays.
    """
    flat = magnitudes.reshape(-1)
    if num_pruned <= 0:
        return np.ones(magnitudes.shape, bool)
    threshold = np.partition(flat, num_pruned - 1)[num_pruned - 1]
    kept = flat >= threshold
    num_ties = num_pruned - int(np.count_nonzero(~kept))
    kept[np.flatnonzero(flat == threshold)[:num_ties]] = False
    return kept.reshape(magnitudes.shape)


def group_mask(magnitudes: np.ndarray, axis: int, spec: GroupSparsity) -> np.ndarray:
    """Returns the mask that keeps the N largest of every M neighbours along an axis; of equal ones the first stay.

    Args:
      magnitudes: Magnitudes; the axis must be a multiple of M.
      axis: Axis of the groups.
      spec: N and M.
    """
    moved = np.moveaxis(magnitudes, axis, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, spec.group_size)
    order = np.argsort(-groups, axis=-1, kind="stable")
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[..., : spec.num_kept], True, axis=-1)
    return np.moveaxis(mask.reshape(moved.shape), -1, axis)


def _judged(name: str, weights: np.ndarray, spec: SparsitySpec) -> np.ndarray:
    """Returns what the entries of a leaf are ranked by; for blocks one number each, ``[..., in / rows, out / columns]``."""
    if spec.criterion == "random":
        weights = np.random.default_rng([spec.seed, zlib.crc32(name.encode())]).random(weights.shape, np.float32)
    if not isinstance(spec, BlockSparsity):
        return np.abs(weights)
    inputs, outputs = weights.shape[-2:]
    if inputs % spec.rows or outputs % spec.columns:
        raise ShapeError(
            f"'{name}' of shape {weights.shape} can not be cut into blocks of {spec.rows}x{spec.columns}; choose sizes that "
            "divide it, or keep the leaf (--keep)."
        )
    blocks = weights.reshape(*weights.shape[:-2], inputs // spec.rows, spec.rows, outputs // spec.columns, spec.columns)
    return np.sqrt(np.square(blocks).mean(axis=(-3, -1)))


def _spread(mask: np.ndarray, spec: SparsitySpec) -> np.ndarray:
    """Returns the mask of all entries from that of their blocks."""
    if not isinstance(spec, BlockSparsity):
        return mask
    return mask.repeat(spec.rows, axis=-2).repeat(spec.columns, axis=-1)


def _leaf_mask(name: str, magnitudes: np.ndarray, axis: int, spec: SparsitySpec) -> np.ndarray:
    if isinstance(spec, GroupSparsity):
        size = magnitudes.shape[axis]
        if size % spec.group_size:
            raise ShapeError(
                f"'{name}' of shape {magnitudes.shape} has {size} entries along axis {magnitudes.ndim + axis}, which is "
                f"not divisible by the group size {spec.group_size} of {spec.num_kept}:{spec.group_size}."
            )
        return group_mask(magnitudes, axis, spec)
    matrices = magnitudes.reshape(-1, *magnitudes.shape[-2:])
    num_pruned = round(spec.rate * matrices[0].size)
    return np.stack([smallest_mask(matrix, num_pruned) for matrix in matrices]).reshape(magnitudes.shape)


def _global_masks(magnitudes: Mapping[str, np.ndarray], rate: float) -> dict[str, np.ndarray]:
    joined = np.concatenate([array.reshape(-1) for array in magnitudes.values()])
    mask = smallest_mask(joined, round(rate * joined.size))
    ends = np.cumsum([array.size for array in magnitudes.values()])[:-1]
    pieces = np.split(mask, ends)
    return {name: piece.reshape(array.shape) for (name, array), piece in zip(magnitudes.items(), pieces, strict=True)}


def _pooled_masks(params: Mapping[str, Any], specs: Mapping[str, SparsitySpec | None]) -> dict[str, np.ndarray]:
    """Returns the masks of all leaves that are ranked together, one pool per specification."""
    pools: dict[MagnitudeSparsity | BlockSparsity, dict[str, np.ndarray]] = {}
    for name, leaf in flatten_names(params).items():
        spec = specs[name]
        if spec is not None and not isinstance(spec, GroupSparsity) and spec.scope == "global":
            _check_prunable(name, leaf)
            pools.setdefault(spec, {})[name] = _judged(name, host_weights(name, leaf), spec)
    masks: dict[str, np.ndarray] = {}
    for spec, magnitudes in pools.items():
        found = _global_masks(magnitudes, spec.rate)
        masks.update({name: _spread(mask, spec) for name, mask in found.items()})
    return masks


def _check_prunable(name: str, leaf: Any) -> int:
    if isinstance(leaf, TypedArray) and not isinstance(leaf, SparseArray):
        raise RuleError(f"'{name}' is {leaf.kind} and can not be pruned any more; prune before you quantize.")
    return contracted_axis(name, leaf, "a sparsity mask")


def _by_moment(
    name: str, leaf: Any, weights: np.ndarray, spec: SparsitySpec, statistics: Statistics
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights after pruning, those that stay changed too, and which stay."""
    moment = statistics[name].second_moment if name in statistics else None
    if moment is None:
        raise ConfigError(
            f"What '{name}' is multiplied by is not known; the criterion second_moment needs its second moment (calibrate the model)."
        )
    if weights.ndim != 2:
        raise ShapeError(
            f"'{name}' holds stacked layers; prune by second_moment with numbered layers (scan_layers false)."
        )
    before = np.asarray(leaf.mask) if isinstance(leaf, SparseArray) else None
    if isinstance(spec, GroupSparsity):
        if len(weights) % spec.group_size:
            _leaf_mask(name, weights, -2, spec)  # says why not
        return prune_rows(weights, moment, lambda cost: group_mask(cost, 0, spec), spec.group_size, before)
    rate = spec.rate
    return prune_rows(weights, moment, lambda cost: smallest_mask(cost, round(rate * cost.size)), allowed=before)


def _prune_leaf(
    name: str, leaf: Any, spec: SparsitySpec, pooled: Mapping[str, np.ndarray], statistics: Statistics
) -> tuple[SparseArray, LeafReport]:
    axis = _check_prunable(name, leaf)
    weights = host_weights(name, leaf)
    before, mask = weights, pooled.get(name)
    if spec.criterion == BY_MOMENT:
        weights, mask = _by_moment(name, leaf, weights, spec, statistics)
    if mask is None:
        mask = _spread(_leaf_mask(name, _judged(name, weights, spec), axis, spec), spec)
    values = leaf
    if isinstance(leaf, SparseArray):
        mask, values = mask & np.asarray(leaf.mask), leaf.values
    pruned = np.where(mask, weights, np.float32(0.0))
    sparse = SparseArray(values=place_like(pruned.astype(values.dtype), values), mask=place_like(mask, values))
    sparse.validate(name)
    return sparse, compare_leaf(name, "sparse", leaf, sparse, before, pruned, float(np.mean(mask)))


def sparsify(
    params: Mapping[str, Any],
    rules: Sequence[SparsityRule] = default_sparsity_rules(),
    statistics: Statistics | None = None,
) -> tuple[Params, CompressionReport]:
    """Sets weights to zero, those of smallest magnitude, those that matter least on measured inputs, or drawn ones, and keeps them zero through training.

    A pruned entry stays pruned when a sparse leaf is sparsified again, so that rates can rise step by step.

    Args:
      params: Tree of named leaves, layers numbered or stacked.
      rules: Tried in order against the leaf name; the first match decides (None keeps the leaf).
      statistics: What is known of the inputs, by leaf, with second moments; for the criterion ``second_moment``, after which the weights that stay make up for the others.

    Returns:
      The tree under the same names, matched leaves as ``SparseArray``; and a report per leaf: share of weights kept,
      bytes, largest and root-mean-square relative error.

    Raises:
      RuleError: A rule matched no leaf or a leaf no rule, or a leaf is quantized.
      ConfigError: Nothing is known of the inputs of a leaf that is judged by them.
      ShapeError: The contracted axis of a leaf is not divisible by the group size, blocks do not divide it, or it is no matrix.
      WeightsError: A matched leaf holds NaN or infinity.

    Example:
      >>> import numpy as np
      >>> kernel = np.array([[1.0], [-3.0], [2.0], [0.5]], np.float32)
      >>> params, report = sparsify({"dense": {"kernel": kernel}}, [Rule(".*", GroupSparsity(2, 4))])
      >>> params["dense"]["kernel"].mask[:, 0].tolist(), report.kept_share
      ([False, True, True, False], 0.5)
    """
    specs = match_rules(params, rules, purpose="sparsity")
    pooled = _pooled_masks(params, specs)
    leaves: dict[str, Any] = {}
    reports: list[LeafReport] = []
    for name, leaf in flatten_names(params).items():
        spec = specs[name]
        leaves[name], report = (
            (leaf, kept_leaf(name, leaf)) if spec is None else _prune_leaf(name, leaf, spec, pooled, statistics or {})
        )
        reports.append(report)
    notes = ("Masks are stored beside the weights so that training can go on; densify merges them.",)
    return unflatten_names(leaves), CompressionReport("sparsify", tuple(reports), notes)


def densify(params: Mapping[str, Any]) -> Params:
    """Returns the tree with sparse leaves written out as dense arrays that hold the zeros.

    Args:
      params: Tree of named leaves.
    """
    return map_leaves(lambda _, leaf: leaf.materialize() if isinstance(leaf, SparseArray) else leaf, params)
