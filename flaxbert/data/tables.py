"""Columns of raw values with the place that each row came from."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flaxbert.errors import DataError, nearest

_MAX_SHOWN_NAMES = 12
_MAX_SHOWN_CHARACTERS = 60


@dataclasses.dataclass(frozen=True)
class Table:
    """The columns that were asked for, as they were read.

    Attributes:
      name: What was read, for messages: a path, or a data set and its split.
      columns: Values by the name or position that was asked for; all of one length.
      lines: Line of each row in its file, from 1; None where there are no lines.
      class_names: Label names of the columns that hold class numbers with names of their own.
    """

    name: str
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int] | None = None
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def where(self, row: int) -> str:
        """Returns the place of a row for a message, such as ``train.tsv, line 17``.

        Args:
          row: Number of the row, from 0.
        """
        return f"{self.name}, row {row}" if self.lines is None else f"{self.name}, line {self.lines[row]}"


def find_columns(wanted: Sequence[str], available: Sequence[str], where: str, named: bool = True) -> list[int]:
    """Returns the positions of columns that are given by name or by 0-based position.

    Args:
      wanted: Names or positions; a name goes before a position that is spelled alike.
      available: Names of the columns there are, in order.
      where: What the columns belong to, for the message.
      named: Whether the columns have names of their own, or positions only.

    Raises:
      DataError: A column is not there; the message lists those that are, and the nearest.
    """
    positions = []
    for name in wanted:
        if name in available:
            positions.append(available.index(name))
        elif name.isdecimal() and int(name) < len(available):
            positions.append(int(name))
        else:
            raise DataError(_missing_column(name, available, where, named))
    return positions


def shorten(value: object) -> str:
    """Returns a value as it is shown in a message: quoted, and cut where it is long."""
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN_CHARACTERS else shown[: _MAX_SHOWN_CHARACTERS - 1] + "…"


def _missing_column(name: str, available: Sequence[str], where: str, named: bool) -> str:
    if not named:
        return (
            f"{where}: there is no column {name!r}: without header (data.header: false) its {len(available)} columns are "
            f"the positions 0 to {len(available) - 1}. Set data.text_column and data.label_column to positions."
        )
    shown = ", ".join(shorten(column) for column in available[:_MAX_SHOWN_NAMES])
    more = f" and {len(available) - _MAX_SHOWN_NAMES} more" if len(available) > _MAX_SHOWN_NAMES else ""
    return (
        f"{where}: there is no column {name!r}; its columns are {shown}{more}.{nearest(name, available)} Set "
        "data.text_column, data.text_pair_column and data.label_column to what the data calls them, and data.header to "
        "false if the first line is no header."
    )
