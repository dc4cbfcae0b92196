"""Masks that change while a model is trained: a function of the step, computed inside the compiled step."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxbert.config import PruneConfig
from flaxbert.core.movement_array import MovementArray, gather, spread
from flaxbert.core.trees import flatten_names
from flaxbert.errors import ConfigError
from flaxbert.train.losses import Forward, LossFunction
from flaxbert.train.step import Batch

Leaves = dict[str, jax.Array]


def _largest(fits: Callable[[jax.Array], jax.Array], num_bits: int) -> jax.Array:
    """Returns the largest number of some bits that fits, where all smaller ones fit too; 0 always does."""

    def narrow(place: jax.Array, found: jax.Array) -> jax.Array:
        tried = found | (jnp.uint32(1) << (jnp.uint32(num_bits - 1) - place.astype(jnp.uint32)))
        return jnp.where(fits(tried), tried, found)

    return jax.lax.fori_loop(0, num_bits, narrow, jnp.uint32(0))


def keep_largest(judged: Float[Array, "entries"], num_pruned: Int[Array, ""]) -> Bool[Array, "entries"]:
    """Returns which entries stay when exactly ``num_pruned`` of the smallest go; of equal ones the first go.

    The limit is found bit by bit, each by counting what lies below: some fifty passes over the entries, where sorting them takes fifteen times as
    long on CPU (11.7 million entries, 0.6 and 8.8 s), and which entries of a mesh can make where they lie.

    Args:
      judged: What entries are ranked by; what is not a number stays longest.
      num_pruned: Entries to prune; a traced number.
    """
    plain = jnp.where(judged == 0, jnp.float32(0.0), judged.astype(jnp.float32))  # -0.0 is 0.0
    plain = jnp.where(jnp.isnan(plain), jnp.float32(jnp.inf), plain)
    bits, sign = jax.lax.bitcast_convert_type(plain, jnp.uint32), jnp.uint32(1 << 31)
    keys = jnp.where(bits & sign != 0, ~bits, bits | sign)  # whole numbers in the order of the floats
    count = lambda chosen: jnp.sum(chosen, dtype=jnp.int32)
    limit = _largest(lambda tried: count(keys < tried) <= num_pruned, 32)
    below, same = keys < limit, keys == limit
    num_left, places = num_pruned - count(below), jax.lax.iota(jnp.uint32, keys.size)
    end = _largest(lambda tried: count(same & (places < tried)) <= num_left, keys.size.bit_length())
    return ~(below | (same & (places < end)))


def keep_of_groups(
    judged: Float[Array, "*layers in_axis out_axis"], size: int, num_kept: Int[Array, ""]
) -> Bool[Array, "*layers in_axis out_axis"]:
    """Returns which entries stay when each group of neighbours along the inputs keeps its largest; of equal ones the first stay.

    Args:
      judged: What entries are ranked by; what is not a number goes first.
      size: Entries of a group.
      num_kept: How many stay; a traced number.
    """
    judged = jnp.where(jnp.isnan(judged), jnp.float32(-jnp.inf), judged)
    groups = judged.reshape(*judged.shape[:-2], -1, size, judged.shape[-1])
    places = jnp.arange(size, dtype=jnp.int32)[:, None]

    def compare(place: jax.Array, ranks: jax.Array) -> jax.Array:
        other = jax.lax.dynamic_slice_in_dim(groups, place, 1, axis=-2)
        before = (other > groups) | ((other == groups) & (place < places))
        return ranks + before.astype(jnp.int32)

    ranks = jax.lax.fori_loop(0, size, compare, jnp.zeros(groups.shape, jnp.int32))
    return (ranks < num_kept).reshape(judged.shape)


@dataclasses.dataclass(frozen=True)
class PrunedLeaf:
    """A leaf whose mask changes.

    Attributes:
      name: Name of the leaf.
      shape: Its shape.
      height: Rows of a block.
      width: Columns of a block.
      has_scores: Whether it is a ``MovementArray``; else a ``SparseArray``.
    """

    name: str
    shape: tuple[int, ...]
    height: int = 1
    width: int = 1
    has_scores: bool = False

    @property
    def blocks(self) -> tuple[int, ...]:
        """Shape of one entry for each block."""
        return (*self.shape[:-2], self.shape[-2] // self.height, self.shape[-1] // self.width)

    def judged(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> jax.Array:
        """Returns what the blocks are ranked by: scores, or the root of the mean square of what is not pruned yet.

        Args:
          trainable: Trained arrays by part name.
          frozen: All others.
        """
        if self.has_scores:
            return trainable[f"{self.name}@scores"]
        values = trainable[f"{self.name}@values"]
        values = jnp.where(frozen[f"{self.name}@mask"], values, jnp.float32(0.0))
        if self.height * self.width == 1:
            return jnp.abs(values)
        return jnp.sqrt(gather(values * values, self.blocks) / jnp.float32(self.height * self.width))

    def mask(self, kept: jax.Array) -> jax.Array:
        """Returns the stored mask of the blocks that stay.

        Args:
          kept: One entry per block.
        """
        return kept if self.has_scores else spread(kept, self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class MaskSchedule:
    """When masks change, and what they become.

    The share that is pruned after step ``t`` is ``rate * (1 - (1 - p)**3)`` with ``p = (t - begin) / (end - begin)``
    clipped to [0, 1] (Zhu and Gupta, 2017, equation 1). It is a function of the step alone, and masks follow from the state, so a run
    that goes on from a checkpoint repeats the uninterrupted one.

    Attributes:
      config: What is pruned.
      leaves: The leaves.
      total_steps: Optimizer steps of the whole run.
    """

    config: PruneConfig
    leaves: tuple[PrunedLeaf, ...]
    total_steps: int

    @property
    def begin(self) -> int:
        """Step before the first change."""
        return round(self.config.begin_rate * self.total_steps)

    @property
    def end(self) -> int:
        """Step of the last change; masks stay from here on."""
        return max(self.begin + 1, round(self.config.end_rate * self.total_steps))

    @property
    def every(self) -> int:
        """Steps between two changes."""
        return self.config.every or max(1, math.ceil((self.end - self.begin) / 100))

    def progress(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Returns how much of the final share is pruned after a step, in [0, 1].

        Args:
          step: Steps taken.
        """
        passed = (step - jnp.int32(self.begin)).astype(jnp.float32) / jnp.float32(self.end - self.begin)
        left = jnp.float32(1.0) - jnp.clip(passed, jnp.float32(0.0), jnp.float32(1.0))
        return jnp.float32(1.0) - left * left * left

    def _ranked(self, judged: Mapping[str, jax.Array], share: jax.Array) -> Leaves:
        if self.config.scope == "global":
            joined = jnp.concatenate([array.reshape(-1) for array in judged.values()])
            kept = keep_largest(joined, _count(share, joined.size))
            lengths = [array.size for array in judged.values()]
            ends = [sum(lengths[: number + 1]) for number in range(len(lengths) - 1)]
            pieces = jnp.split(kept, ends)
            return {name: part.reshape(judged[name].shape) for name, part in zip(judged, pieces, strict=True)}
        # Matrices of one size are ranked by one loop, so that the program stays as small for many layers as for one.
        sizes: dict[int, list[str]] = {}
        for name, array in judged.items():
            sizes.setdefault(array.shape[-2] * array.shape[-1], []).append(name)
        found: Leaves = {}
        for size, names in sizes.items():
            num_pruned = jnp.minimum(_count(share, size), size - 1)
            rows = jnp.concatenate([judged[name].reshape(-1, size) for name in names])
            kept = jax.lax.map(lambda row, number=num_pruned: keep_largest(row, number), rows)
            ends = [sum(judged[name].size // size for name in names[: number + 1]) for number in range(len(names) - 1)]
            pieces = jnp.split(kept, ends)
            found |= {name: part.reshape(judged[name].shape) for name, part in zip(names, pieces, strict=True)}
        return found

    def masks(self, step: Int[Array, ""], trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> Leaves:
        """Returns the masks that the schedule asks for after a step, by part name.

        Args:
          step: Steps taken.
          trainable: Trained arrays by part name.
          frozen: All others.
        """
        config, progress = self.config, self.progress(step)
        judged = {leaf.name: leaf.judged(trainable, frozen) for leaf in self.leaves}
        group = config.group()
        if config.method == "soft_movement":
            threshold = jnp.float32(config.threshold) * progress
            factor = jnp.float32(config.score_factor)
            kept = {name: jax.nn.sigmoid(scores * factor) > threshold for name, scores in judged.items()}
        elif group is not None:
            num_kept = jnp.int32(group[1]) - jnp.round(progress * (group[1] - group[0])).astype(jnp.int32)
            kept = {name: keep_of_groups(array, group[1], num_kept) for name, array in judged.items()}
        else:
            kept = self._ranked(judged, progress * jnp.float32(config.rate))
        return {f"{leaf.name}@mask": leaf.mask(kept[leaf.name]) for leaf in self.leaves}

    def __call__(self, step: Int[Array, ""], trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arrays that are not trained after a step, with new masks where the schedule has a change.

        Args:
          step: Steps taken, this one included.
          trainable: Trained arrays by part name, after the step's update.
          frozen: All others.
        """
        passed = step - jnp.int32(self.begin)
        is_due = (passed > 0) & (step <= self.end) & ((passed % self.every == 0) | (step == self.end))
        before = {f"{leaf.name}@mask": frozen[f"{leaf.name}@mask"] for leaf in self.leaves}
        after = jax.lax.cond(is_due, lambda: self.masks(step, trainable, frozen), lambda: before)
        return {**frozen, **after}


def _count(share: jax.Array, size: int) -> jax.Array:
    return jnp.round(share * jnp.float32(size)).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PenalizedOutput:
    """What a network puts out, and a penalty of its parameters.

    Attributes:
      output: The network's output.
      penalty: Scalar that the mean loss gets on top.
    """

    output: Any
    penalty: Any


def score_penalty(params: Mapping[str, Any], config: PruneConfig) -> Float[Array, ""]:
    """Returns the mean sigmoid of all scores times its weight (Sanh, Wolf and Rush, 2020, section 4).

    Scores are stored divided by ``score_factor``, so that one learning rate moves them that much faster than weights; the penalty is
    divided by it too, which gives scores the gradient of the penalty beside the one that passes straight through.

    Args:
      params: Tree of named leaves.
      config: Weight and factor.
    """
    factor = jnp.float32(config.score_factor)
    scores = [leaf.scores for leaf in flatten_names(params).values() if isinstance(leaf, MovementArray)]
    total = sum((jnp.sum(jax.nn.sigmoid(array * factor)) for array in scores), jnp.zeros((), jnp.float32))
    size = sum(array.size for array in scores)
    return total * jnp.float32(config.penalty / (size * config.score_factor))


def penalized_forward(forward: Forward, config: PruneConfig) -> Forward:
    """Returns a network that also puts out the penalty of its scores.

    Args:
      forward: The network as a function of its parameters.
      config: Weight of the penalty.
    """

    def run(params: Any, batch: Batch, *, dropout_key: Any = None) -> PenalizedOutput:
        return PenalizedOutput(forward(params, batch, dropout_key=dropout_key), score_penalty(params, config))

    return run


@dataclasses.dataclass(frozen=True)
class PenalizedLoss:
    """A loss whose mean gets the penalty on top.

    Attributes:
      loss: The loss.
    """

    loss: LossFunction

    def weigh(self, batch: Batch) -> dict[str, Any]:
        """Returns a whole batch as the loss weighs it.

        Args:
          batch: The batch.
        """
        return getattr(self.loss, "weigh", dict)(batch)

    def __call__(self, output: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the weighted sum of losses, each with the penalty, and the sum of weights.

        Args:
          output: A ``PenalizedOutput``.
          batch: Its batch.
        """
        total, weight = self.loss(output.output, batch)
        return total + output.penalty * weight, weight


def check_schedule(schedule: MaskSchedule) -> None:
    """Refuses a run that is too short for its schedule.

    Args:
      schedule: The schedule.

    Raises:
      ConfigError: The masks would never be final, or nothing is pruned.
    """
    if not schedule.leaves:
        raise ConfigError("prune.method is set, but no matrix is left to prune; change prune.keep or prune.block.")
    if schedule.end > schedule.total_steps:
        raise ConfigError(
            f"A run of {schedule.total_steps} steps is too short to prune between step {schedule.begin} and {schedule.end}; "
            "train longer (train.num_steps, train.num_epochs)."
        )
