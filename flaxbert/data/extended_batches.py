"""Batches with further entries: numbers of their examples and tokens that were worked out before, and how far the run is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Num

from flaxbert.data.pipeline import Batch

PROGRESS = "progress"
"""Entry of a batch: the share of the run that is over, alike in all rows."""


@dataclasses.dataclass(frozen=True)
class ExtendedSource:
    """The batches of another source with further entries.

    Attributes:
      source: Random access to batches with ``example_index``, over ``source.examples``.
      total_steps: Steps of the whole run.
      rows: Numbers of every example by their name in a batch.
      tokens: Numbers of every token of the examples, one after the other, by their name in a batch; padding gets 0.
      identity_of_rows: What the further entries are, for the position of a run; fit for JSON.
    """

    source: Any
    total_steps: int
    rows: Mapping[str, Num[np.ndarray, "examples ..."]] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, Num[np.ndarray, "tokens ..."]] = dataclasses.field(default_factory=dict)
    identity_of_rows: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that show every example once."""
        return self.source.steps_per_epoch

    @property
    def identity(self) -> dict[str, Any]:
        """What the order and content of the batches depend on."""
        return {**self.source.identity, **self.identity_of_rows}

    def __getitem__(self, index: int) -> Batch:
        """Returns the batch of step ``index`` of this process."""
        batch = self.extend(self.source[index])
        share = np.float32(min(1.0, int(index) / max(1, self.total_steps)))
        return {**batch, PROGRESS: np.full(len(batch["input_ids"]), share, np.float32)}

    def extend(self, batch: Batch) -> Batch:
        """Returns a batch with what is known of its examples and tokens.

        Args:
          batch: Arrays by name; rows whose ``example_index`` is -1 only fill it and get 0.
        """
        indices, added = batch["example_index"], {}
        real = indices >= 0
        for name, values in self.rows.items():
            added[name] = np.where(real.reshape(-1, *(1,) * (values.ndim - 1)), values[np.maximum(indices, 0)], 0)
            added[name] = added[name].astype(values.dtype)
        offsets, mask = self.source.examples.offsets, batch["attention_mask"] > 0
        for name, values in self.tokens.items():
            padded = np.zeros((*mask.shape, *values.shape[1:]), values.dtype)
            for row, example in enumerate(indices.tolist()):
                if example >= 0:
                    padded[row, mask[row]] = values[offsets[example] : offsets[example + 1]]
            added[name] = padded
        return {**batch, **added}
