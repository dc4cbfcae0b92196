"""Rows of tokens, as batches of different requests are made of them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from flaxbert.data.tokenization import TokenizedExamples

Values = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One input of a network.

    Attributes:
      values: Numbers of its tokens by the name of the input: ``input_ids`` and, where they are not all 0, others.
      slots: Numbers that do not stand for tokens, such as the places of masked tokens, by name; as many in every row of a function.
    """

    values: Values
    slots: Values = dataclasses.field(default_factory=dict)

    @property
    def length(self) -> int:
        """Its tokens."""
        return len(self.values["input_ids"])


def rows_of(features: TokenizedExamples) -> list[Row]:
    """Returns tokenized examples as rows.

    Args:
      features: The examples.
    """
    named = {"input_ids": features.input_ids, **features.token_values}
    if features.token_type_ids is not None:
        named["token_type_ids"] = features.token_type_ids
    places = [slice(*ends) for ends in zip(features.offsets[:-1].tolist(), features.offsets[1:].tolist(), strict=True)]
    return [Row({name: values[place] for name, values in named.items()}) for place in places]


def collate_rows(
    rows: Sequence[Row], num_rows: int, length: int, inputs: Sequence[str], pad_token_id: int
) -> dict[str, Int[np.ndarray, "..."]]:
    """Returns the batch of some rows, padded to a shape; rows that only fill it repeat the first.

    Args:
      rows: One to ``num_rows`` rows of at most ``length`` tokens.
      num_rows: Rows of the batch.
      length: Tokens of each of its rows.
      inputs: Names of the inputs that the network takes.
      pad_token_id: What fills ``input_ids``.
    """
    batch: dict[str, np.ndarray] = {}
    for name in inputs:
        if name in rows[0].slots:
            batch[name] = np.stack([row.slots[name] for row in _filled(rows, num_rows)]).astype(np.int32)
            continue
        array = np.full((num_rows, length), pad_token_id if name == "input_ids" else 0, np.int32)
        for place, row in enumerate(_filled(rows, num_rows)):
            array[place, : row.length] = 1 if name == "attention_mask" else row.values.get(name, 0)
        batch[name] = array
    return batch


def _filled(rows: Sequence[Row], num_rows: int) -> Iterator[Row]:
    yield from rows
    for _ in range(num_rows - len(rows)):
        yield rows[0]
