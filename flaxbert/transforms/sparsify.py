"""Pruning by magnitude: single weights, or N of every M along the contracted axis; masks survive further training."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from flaxbert.core.arrays import Params, SparseArray, TypedArray
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.trees import flatten_names, map_leaves, unflatten_names
from flaxbert.errors import ConfigError, RuleError, ShapeError
from flaxbert.transforms.leaves import contracted_axis, host_weights, place_like
from flaxbert.transforms.report import CompressionReport, LeafReport, compare_leaf, kept_leaf


@dataclasses.dataclass(frozen=True)
class MagnitudeSparsity:
    """Prunes the weights of smallest magnitude (Han et al., 2015).

    Attributes:
      rate: Share of weights that become zero, in [0, 1).
      scope: ``leaf`` prunes every leaf (and every stacked layer) at the rate; ``global`` ranks the weights of all leaves
        with this specification together, so that leaves with small weights lose more.
    """

    rate: float = 0.5
    scope: Literal["leaf", "global"] = "leaf"

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not isinstance(self.rate, int | float) or not 0.0 <= self.rate < 1.0:
            raise ConfigError(f"rate is {self.rate!r}, but the share of pruned weights lies in [0, 1).")
        if self.scope not in ("leaf", "global"):
            raise ConfigError(f"scope is {self.scope!r}, but must be 'leaf' or 'global'.")


@dataclasses.dataclass(frozen=True)
class GroupSparsity:
    """Keeps N of every M neighbours along the contracted axis (Mishra et al., 2021).

    Attributes:
      num_kept: Weights kept of each group, N.
      group_size: Neighbouring weights of a group, M.
    """

    num_kept: int = 2
    group_size: int = 4

    def __post_init__(self) -> None:
        whole = all(
            isinstance(value, int) and not isinstance(value, bool) for value in (self.num_kept, self.group_size)
        )
        if not whole or not 1 <= self.num_kept < self.group_size:
            raise ConfigError(
                f"The pattern {self.num_kept}:{self.group_size} is no N:M with whole numbers 1 <= N < M, such as 2:4."
            )


SparsitySpec = MagnitudeSparsity | GroupSparsity
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
    pools: dict[MagnitudeSparsity, dict[str, np.ndarray]] = {}
    for name, leaf in flatten_names(params).items():
        spec = specs[name]
        if isinstance(spec, MagnitudeSparsity) and spec.scope == "global":
            _check_prunable(name, leaf)
            pools.setdefault(spec, {})[name] = np.abs(host_weights(name, leaf))
    masks: dict[str, np.ndarray] = {}
    for spec, magnitudes in pools.items():
        masks.update(_global_masks(magnitudes, spec.rate))
    return masks


def _check_prunable(name: str, leaf: Any) -> int:
    if isinstance(leaf, TypedArray) and not isinstance(leaf, SparseArray):
        raise RuleError(f"'{name}' is {leaf.kind} and can not be pruned any more; sparsify before you quantize.")
    return contracted_axis(name, leaf, "a sparsity mask")


def _prune_leaf(
    name: str, leaf: Any, spec: SparsitySpec, pooled: Mapping[str, np.ndarray]
) -> tuple[SparseArray, LeafReport]:
    axis = _check_prunable(name, leaf)
    weights = host_weights(name, leaf)
    mask = pooled[name] if name in pooled else _leaf_mask(name, np.abs(weights), axis, spec)
    values = leaf
    if isinstance(leaf, SparseArray):
        mask, values = mask & np.asarray(leaf.mask), leaf.values
    pruned = np.where(mask, weights, np.float32(0.0))
    sparse = SparseArray(values=place_like(pruned.astype(values.dtype), values), mask=place_like(mask, values))
    sparse.validate(name)
    return sparse, compare_leaf(name, "sparse", leaf, sparse, weights, pruned, float(np.mean(mask)))


def sparsify(
    params: Mapping[str, Any], rules: Sequence[SparsityRule] = default_sparsity_rules()
) -> tuple[Params, CompressionReport]:
    """Sets the weights of smallest magnitude to zero and keeps them zero through further training.

    A pruned entry stays pruned when a sparse leaf is sparsified again, so that rates can rise step by step.

    Args:
      params: Tree of named leaves, layers numbered or stacked.
      rules: Tried in order against the leaf name; the first match decides (None keeps the leaf).

    Returns:
      The tree under the same names, matched leaves as ``SparseArray``; and a report per leaf: share of weights kept,
      bytes, largest and root-mean-square relative error.

    Raises:
      RuleError: A rule matched no leaf or a leaf no rule, or a leaf is quantized.
      ShapeError: The contracted axis of a leaf is not divisible by the group size, or the leaf is no matrix.
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
        leaves[name], report = (leaf, kept_leaf(name, leaf)) if spec is None else _prune_leaf(name, leaf, spec, pooled)
        reports.append(report)
    notes = ("Masks are stored beside the weights so that training can go on; densify merges them.",)
    return unflatten_names(leaves), CompressionReport("sparsify", tuple(reports), notes)


def densify(params: Mapping[str, Any]) -> Params:
    """Returns the tree with sparse leaves written out as dense arrays that hold the zeros.

    Args:
      params: Tree of named leaves.
    """
    return map_leaves(lambda _, leaf: leaf.materialize() if isinstance(leaf, SparseArray) else leaf, params)
