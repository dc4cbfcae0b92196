"""What examples of any task have in common, and how some of them are held out."""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from flaxbert.data.shuffling import stable_permutation
from flaxbert.errors import DataError

_HOLD_OUT_STREAM = 0x5EED


@runtime_checkable
class ExampleSet(Protocol):
    """Checked examples of a task, in order, each with the place that it came from."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    @property
    def name(self) -> str:
        """What was read, for messages: a path, or a data set and its split."""
        ...

    def where(self, index: int) -> str:
        """Returns file and line of an example.

        Args:
          index: Number of the example, from 0.
        """
        ...

    def group_keys(self) -> Sequence[Hashable]:
        """Returns a key for each example; those with equal ones stay together when examples are held out."""
        ...

    def select(self, indices: Int[np.ndarray, "chosen"]) -> Any:
        """Returns the examples at the given positions.

        Args:
          indices: Numbers of the examples, from 0.
        """
        ...


def hold_out(examples: Any, validation_rate: float, seed: int) -> tuple[Any, Any]:
    """Splits examples at random; those of one group (equal texts, one article) stay on one side.

    Args:
      examples: An ``ExampleSet``.
      validation_rate: Share to hold out, in (0, 1); at least one example is.
      seed: The split depends on it and on the examples alone.

    Returns:
      The training and the validation examples, each in their order.

    Raises:
      DataError: There are fewer than two groups.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(examples.group_keys()):
        groups.setdefault(key, []).append(index)
    if len(groups) < 2:
        raise DataError(
            f"{examples.name}: {len(examples)} examples with {len(groups)} different texts can not be split into "
            "training and validation; give data.validation, or more examples."
        )
    wanted = max(1, round(validation_rate * len(examples)))
    members = list(groups.values())
    held_out: list[int] = []
    for group in stable_permutation(len(members), seed, _HOLD_OUT_STREAM)[:-1].tolist():
        if len(held_out) >= wanted:
            break
        held_out.extend(members[group])
    inside = np.zeros(len(examples), bool)
    inside[held_out] = True
    return examples.select(np.flatnonzero(~inside)), examples.select(np.flatnonzero(inside))
