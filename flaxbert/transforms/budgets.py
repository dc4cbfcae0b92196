"""How many heads or neurons are kept, and which."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from flaxbert.errors import ConfigError
from flaxbert.transforms.sparsify import smallest_mask
from flaxbert.transforms.units import Scores, Units


@dataclasses.dataclass(frozen=True)
class UnitBudget:
    """How many heads or neurons go.

    Attributes:
      rate: Share that is removed, in [0, 1).
      counts: Instead of a rate: how many are kept, one number for all layers or one for each.
      scope: With a rate: ``layer`` removes it from every layer; ``global`` ranks the units of all layers together, so that layers of little
        importance lose more.
      multiple_of: Numbers that are kept are rounded up to a multiple of it, which suits the matrix units of a device.
    """

    rate: float = 0.0
    counts: tuple[int, ...] = ()
    scope: Literal["layer", "global"] = "layer"
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not 0.0 <= self.rate < 1.0:
            raise ConfigError(
                f"rate is {self.rate!r}, but the share that is removed lies in [0, 1); something must stay."
            )
        if any(isinstance(count, bool) or count < 1 for count in self.counts):
            raise ConfigError(f"{list(self.counts)} keeps nothing of a layer; each must keep at least 1.")
        if self.rate and self.counts:
            raise ConfigError(
                f"A share {self.rate} to remove and numbers {list(self.counts)} to keep exclude each other."
            )
        if self.scope not in ("layer", "global"):
            raise ConfigError(f"scope is {self.scope!r}, but must be 'layer' or 'global'.")
        if self.counts and self.scope == "global":
            raise ConfigError("Numbers to keep are those of each layer; scope 'global' goes with a rate.")
        if self.multiple_of < 1:
            raise ConfigError(f"multiple_of is {self.multiple_of}, but must be at least 1.")


def _best(scores: Float[np.ndarray, "units"], num_kept: int) -> Bool[np.ndarray, "units"]:
    return smallest_mask(scores, len(scores) - num_kept)


def _rounded(num_kept: int, num_units: int, multiple_of: int) -> int:
    return min(num_units, -(-num_kept // multiple_of) * multiple_of)


def _counts(units: Units, budget: UnitBudget) -> list[int]:
    sizes = [block.num_units for block in units.blocks]
    if not budget.counts:
        return [max(1, size - round(budget.rate * size)) for size in sizes]
    if len(budget.counts) not in (1, len(sizes)):
        raise ConfigError(
            f"{len(budget.counts)} numbers of {units.kind} are given, but the model has {len(sizes)} layers; give one or {len(sizes)}."
        )
    counts = list(budget.counts) * (len(sizes) if len(budget.counts) == 1 else 1)
    wrong = next((index for index, size in enumerate(sizes) if counts[index] > size), None)
    if wrong is not None:
        raise ConfigError(
            f"{counts[wrong]} {units.kind} can not be kept of {units.blocks[wrong].name}, which has {sizes[wrong]}."
        )
    return counts


def _global_counts(units: Units, scores: Mapping[str, np.ndarray], rate: float) -> list[int]:
    """Returns how many units each block keeps when all are ranked together, each block's scores divided by their norm."""
    ranked = []
    for block in units.blocks:
        own = scores[block.name].astype(np.float64)
        own = own / max(float(np.linalg.norm(own)), np.finfo(np.float64).tiny)
        own[int(own.argmax())] = np.inf  # the best of every block stays
        ranked.append(own)
    joined = np.concatenate(ranked)
    num_removed = min(round(rate * joined.size), joined.size - len(ranked))
    mask = smallest_mask(joined, num_removed)
    return [int(part.sum()) for part in np.split(mask, np.cumsum([len(own) for own in ranked])[:-1])]


def choose_units(
    units: Units, scores: Scores, budget: UnitBudget, even: bool = False
) -> dict[str, Bool[np.ndarray, "units"]]:
    """Chooses the units of highest score that a budget leaves; at least one in every block.

    With a global budget the scores of each block are divided by their norm first (Michel, Levy and Neubig, 2019, section 4.1), so that
    blocks can be compared.

    Args:
      units: The units.
      scores: One score per unit and block.
      budget: How many are kept.
      even: Whether all blocks keep as many.

    Returns:
      Which units of each block are kept.

    Raises:
      ConfigError: The budget does not fit the model, or asks for different numbers where all must be alike.
    """
    needs_even = even or (units.needs_even and len(units.blocks) > 1)
    if needs_even and (budget.scope == "global" or len(set(budget.counts)) > 1):
        reason = "--even asks for" if even else "what its layers share needs"
        raise ConfigError(
            f"The budget would leave different numbers of {units.kind} in different layers, but {reason} the same number in all; "
            "give a share or one number for each layer alike."
        )
    if units.is_shared:
        total = np.sum([scores[block.name] for block in units.blocks], axis=0)
        scores = {block.name: total for block in units.blocks}
    counts = _global_counts(units, scores, budget.rate) if budget.scope == "global" else _counts(units, budget)
    if needs_even and len(set(counts)) > 1:
        counts = [max(counts)] * len(counts)
    return {
        block.name: _best(scores[block.name], _rounded(count, block.num_units, budget.multiple_of))
        for block, count in zip(units.blocks, counts, strict=True)
    }
