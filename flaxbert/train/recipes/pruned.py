"""Training that prunes: leaves get masks, the step changes them, and at the end zeros become smaller matrices."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxbert.architecture import ModelConfig
from flaxbert.config import FreezeRule, PruneConfig, TrainConfig
from flaxbert.core import axes
from flaxbert.core.arrays import Params, SparseArray, TypedArray
from flaxbert.core.movement_array import MovementArray
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.trees import STACKED, flatten_names, is_stacked, leaf_names, map_leaves, unstack_layers
from flaxbert.errors import ConfigError, RuleError, ShapeError
from flaxbert.families import get_family
from flaxbert.model import Model
from flaxbert.train.pruning import MaskSchedule, PenalizedLoss, PrunedLeaf, check_schedule, penalized_forward
from flaxbert.train.recipes.plan import StepJob
from flaxbert.train.recipes.setup import Say
from flaxbert.train.state import frozen_leaves
from flaxbert.transforms.report import CompressionReport
from flaxbert.transforms.shrink import shrink

FEW_STEPS = 5000
"""Steps in which masks change, below which movement pruning of weights is advised against. With 290 and 600, MiniLM fell to a constant on STS-B, where
magnitude kept 0.80 of 0.85; the runs of Sanh, Wolf and Rush (2020) have tens of thousands."""

_KERNELS = r"encoder\.(layers|groups)\..*\.kernel"


def unit_axes_of(config: ModelConfig) -> dict[Any, Mapping[str, int]]:
    """Returns the axes that carry heads and neurons, of the kinds that can be pruned in a model.

    Args:
      config: Architecture.
    """
    family = get_family(config.family)
    refused = family.unprunable(config)
    found = {"heads": family.head_axes, "neurons": family.neuron_axes}
    return {kind: carried for kind, carried in found.items() if kind not in refused}


def shrink_model(model: Model, even: bool = False) -> tuple[Model, CompressionReport]:
    """Takes out the heads and neurons of a model that give nothing; its results stay what they are.

    Args:
      model: The model.
      even: As for ``transforms.shrink``.

    Returns:
      The smaller model with unrolled layers, and what is left of every leaf.
    """
    model = model.with_execution(scan_layers=False)
    leaf_axes = get_family(model.config.family).parameter_axes(leaf_names(model.params))
    config, params, report = shrink(model.config, model.params, leaf_axes, unit_axes_of(model.config), even=even)
    return model.replace(config=config, params=params), report


def _block(leaf_axes: Sequence[str], config: ModelConfig, prune: PruneConfig) -> tuple[int, int] | None:
    """Returns height and width of the blocks of a leaf, 0 for the whole axis; None where it is not pruned."""
    size = prune.block_size()
    if size is not None:
        return size
    family, carried = get_family(config.family), unit_axes_of(config)
    first = next((axis for axis in leaf_axes if axis != axes.LAYERS), "")
    if first in carried.get("heads", {}) and axes.HEADS not in family.head_axes:
        return config.head_dim, 0
    return (1, 0) if first in carried.get("neurons", {}) else None


def _chosen(leaves: Mapping[str, Any], keep: Sequence[str]) -> dict[str, bool]:
    """Returns which leaves are kernels of layers that no pattern keeps; patterns are written for numbered layers."""
    marker = f".{STACKED}."
    numbered = {
        name: [name.replace(marker, f".{index}.") for index in range(leaf.shape[0] if marker in name else 1)]
        for name, leaf in leaves.items()
    }
    rules = [*(Rule(pattern, False) for pattern in keep), Rule(_KERNELS, True), Rule(r".*", False, optional=True)]
    found = match_rules([name for group in numbered.values() for name in group], rules, purpose="prune.keep")
    for group in numbered.values():
        if len({found[name] for name in group}) > 1:
            kept = next(name for name in group if not found[name])
            raise ConfigError(
                f"prune.keep keeps '{kept}' but not all layers, and scanned layers share one array; keep all layers or none, or train "
                "with unrolled layers (model.scan_layers: false)."
            )
    return {name: found[group[0]] for name, group in numbered.items()}


def find_pruned(
    params: Mapping[str, Any], leaf_axes: Mapping[str, Sequence[str]], config: ModelConfig, prune: PruneConfig
) -> tuple[PrunedLeaf, ...]:
    """Returns the leaves that a run prunes: the kernels of the encoder's layers, without those that are kept.

    Heads and neurons (``prune.block: units``) are pruned in the matrix that reads what they give: where its rows are zero, they
    give nothing, and shrinking takes the rest of them out. Where all layers must keep the same heads (MPNet), neurons alone go.

    Args:
      params: Tree of named leaves, layers stacked or not.
      leaf_axes: Axis names by leaf name.
      config: Architecture.
      prune: What is pruned.

    Raises:
      RuleError: A pattern of ``prune.keep`` matches no leaf, or a leaf is quantized.
      ShapeError: Blocks or groups do not divide a matrix.
      ConfigError: Movement would start from a leaf that is sparse already, or some layers of a stack are kept.
    """
    leaves, found, group = flatten_names(params), [], prune.group()
    chosen = _chosen(leaves, prune.keep)
    for name, leaf in leaves.items():
        block = _block(leaf_axes[name], config, prune) if chosen[name] else None
        if block is None:
            continue
        if isinstance(leaf, TypedArray) and not isinstance(leaf, SparseArray):
            raise RuleError(f"'{name}' is {leaf.kind}: prune before you quantize, from the model as it was trained.")
        has_scores = prune.method in ("movement", "soft_movement")
        if has_scores and isinstance(leaf, SparseArray):
            raise ConfigError(
                f"'{name}' is sparse already; {prune.method} starts from dense weights, magnitude from either."
            )
        height, width = block[0], block[1] or leaf.shape[-1]
        if leaf.shape[-2] % height or leaf.shape[-1] % width or (group and leaf.shape[-2] % group[1]):
            what = f"groups of {group[1]}" if group else f"blocks of {height}x{width}"
            raise ShapeError(
                f"'{name}' of shape {tuple(leaf.shape)} can not be cut into {what}; choose others, or keep it (prune.keep)."
            )
        found.append(PrunedLeaf(name, tuple(leaf.shape), height, width, has_scores))
    return tuple(found)


def with_masks(params: Mapping[str, Any], leaves: Sequence[PrunedLeaf]) -> Params:
    """Returns the tree with masks that keep everything, and scores of zero, on the leaves that are to be pruned.

    Args:
      params: Tree of named leaves; it may hold shapes.
      leaves: From ``find_pruned``.
    """
    pruned = {leaf.name: leaf for leaf in leaves}

    def convert(name: str, leaf: Any) -> Any:
        if name not in pruned or isinstance(leaf, SparseArray):
            return leaf
        shape = pruned[name].blocks if pruned[name].has_scores else tuple(leaf.shape)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            mask, scores = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (bool, np.float32))
        else:
            mask, scores = np.ones(shape, bool), np.zeros(shape, np.float32)
        if pruned[name].has_scores:
            return MovementArray(values=leaf, scores=scores, mask=mask)
        return SparseArray(values=leaf, mask=mask)

    return map_leaves(convert, params)


def _check_trained(params: Mapping[str, Any], freeze: Sequence[FreezeRule], leaves: Sequence[PrunedLeaf]) -> None:
    frozen = frozen_leaves(params, freeze)
    still = [leaf.name for leaf in leaves if frozen[leaf.name]]
    if still:
        raise ConfigError(
            f"'{still[0]}' is to be pruned, but train.freeze keeps it as it is ({len(still)} such leaves); train it, name it in "
            "prune.keep, or prune the model beforehand (flaxbert prune)."
        )


def prune_while_training(job: StepJob, config: ModelConfig, prune: PruneConfig, say: Say | None = None) -> StepJob:
    """Returns a job whose step also prunes, as a config says.

    It goes with any loss and any network over the parameters of the job: fine-tuning, distillation, pre-training.

    Args:
      job: What the step is made from.
      config: Architecture of what is trained.
      prune: What is pruned; with method none the job comes back as it is.
      say: Where lines for the user go; None: nowhere.

    Raises:
      ConfigError: The run is too short, stops early, or freezes what is pruned.
      RuleError: A pattern matches no leaf, or the model is quantized.
      ShapeError: Blocks or groups do not divide a matrix.
    """
    if not prune.is_on:
        return job
    _check_train(job.train)
    leaves = find_pruned(job.params, job.leaf_axes, config, prune)
    schedule = MaskSchedule(prune, leaves, job.total_steps)
    check_schedule(schedule)
    _check_trained(job.params, job.train.freeze, leaves)
    for line in describe_pruning(schedule):
        if say is not None:
            say(line)
    job = job.changed(params=with_masks(job.params, leaves), masks=schedule)
    if prune.method != "soft_movement":
        return job
    return job.changed(forward=penalized_forward(job.forward, prune), loss=PenalizedLoss(job.loss))


def _check_train(train: TrainConfig) -> None:
    if train.early_stopping_patience:
        raise ConfigError(
            f"train.early_stopping_patience is {train.early_stopping_patience}, but a run that prunes must reach the end of its "
            "schedule; set it 0."
        )


def describe_pruning(schedule: MaskSchedule) -> list[str]:
    """Returns lines for the user that say what a run prunes and when.

    Args:
      schedule: The schedule of the run.
    """
    prune, size = schedule.config, schedule.config.block_size()
    what = "heads and neurons" if size is None else "single weights" if size == (1, 1) else f"blocks of {prune.block}"
    share = prune.pattern or (
        f"{prune.rate:.0%}" if prune.method != "soft_movement" else "as many as the threshold says"
    )
    lines = [
        f"Prunes {what} by {prune.method}, {share}: from step {schedule.begin} to step {schedule.end}, every {schedule.every}."
    ]
    if size is not None and prune.method == "movement" and schedule.end - schedule.begin < FEW_STEPS:
        lines.append(
            f"Scores of weights tell little after few steps: in runs this short, prune.method movement can destroy a model "
            f"that magnitude keeps. Take at least {FEW_STEPS} steps from begin to end, magnitude, or prune.block units."
        )
    return lines


def least_step(job: StepJob) -> int:
    """Returns the first step whose masks are final; 0 for a job that does not prune.

    Args:
      job: What the step is made from.
    """
    return job.masks.end if isinstance(job.masks, MaskSchedule) else 0


def settle_masks(params: Mapping[str, Any]) -> Params:
    """Returns the tree with final masks: scores are gone, and masked weights are zero.

    Args:
      params: Tree of named leaves on the host.
    """

    def settle(_: str, leaf: Any) -> Any:
        if isinstance(leaf, MovementArray):
            return leaf.settle()
        if isinstance(leaf, SparseArray):
            values, mask = np.asarray(leaf.values), np.asarray(leaf.mask)
            return SparseArray(values=np.where(mask, values, np.zeros((), values.dtype)), mask=mask)
        return leaf

    return map_leaves(settle, params)


def finish_pruning(model: Model, prune: PruneConfig) -> tuple[Model, str]:
    """Returns a trained model with final masks, smaller where heads and neurons give nothing, and a line that says what is zero.

    Args:
      model: The model after training, with host parameters.
      prune: What was pruned.
    """
    params = settle_masks(model.params)
    masks = [np.asarray(leaf.mask) for leaf in flatten_names(params).values() if isinstance(leaf, SparseArray)]
    size = sum(mask.size for mask in masks)
    share = sum(int(np.count_nonzero(~mask)) for mask in masks) / size if size else 0.0
    said = f"Pruned: {share:.1%} of the weights of {len(masks)} matrices are zero."
    model = model.replace(params=params)
    if not prune.shrink:
        return model, said
    scanned = is_stacked(params)
    numbered = model.replace(
        params=unstack_layers(params) if scanned else params,
        execution=dataclasses.replace(model.execution, scan_layers=False),
    )
    smaller, report = shrink_model(numbered, prune.even)
    return smaller, f"{said} {' '.join(report.notes)}"
