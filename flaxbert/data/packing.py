"""Several short pieces of text in one row, so that a batch holds no padding."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from flaxbert.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Packing:
    """Which pieces form which row.

    Attributes:
      pieces: Numbers of the pieces, row by row, in the order in which they stand.
      offsets: Row ``i`` holds the pieces from ``offsets[i]`` to ``offsets[i + 1]``.
      row_length: Tokens that a row has room for.
      num_tokens: Tokens of all pieces.
    """

    pieces: Int[np.ndarray, "pieces"]
    offsets: Int[np.ndarray, "boundaries"]
    row_length: int
    num_tokens: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> Int[np.ndarray, "pieces"]:
        """Returns the pieces of a row.

        Args:
          number: Number of the row.
        """
        return self.pieces[self.offsets[number] : self.offsets[number + 1]]

    @property
    def efficiency(self) -> float:
        """Share of the rows' room that tokens fill."""
        return self.num_tokens / max(1, len(self) * self.row_length)


def pack(
    lengths: Int[np.ndarray, "pieces"], row_length: int, *, strategy: str = "best_fit", max_pieces: int = 0
) -> Packing:
    """Distributes pieces over rows.

    ``best_fit`` takes the longest piece first and puts each into the fullest row that has room (Krell et al., 2021, section 3);
    ``first_fit`` keeps the order of the pieces and takes the first such row. Both depend on the lengths alone.

    Args:
      lengths: Tokens of each piece, special ones included.
      row_length: Tokens that a row has room for.
      strategy: best_fit or first_fit.
      max_pieces: Most pieces of a row; 0 for any number.

    Returns:
      The rows, each with at least one piece.

    Raises:
      ConfigError: The strategy is unknown, or the row has no room.
      DataError: A piece is longer than a row, or empty.

    Example:
      >>> packing = pack(np.array([3, 5, 2, 4, 2]), 8)
      >>> [packing.row(i).tolist() for i in range(len(packing))], packing.efficiency
      ([[1, 0], [3, 2, 4]], 1.0)
    """
    if row_length < 1 or max_pieces < 0:
        raise ConfigError(f"Rows of {row_length} tokens and {max_pieces} pieces hold nothing; give positive numbers.")
    bad = np.flatnonzero((lengths > row_length) | (lengths < 1))
    if len(bad):
        raise DataError(
            f"Piece {bad[0]} has {lengths[bad[0]]} tokens, but a row has room for {row_length}; cut texts into pieces of 1 to "
            f"{row_length} tokens before they are packed."
        )
    if strategy == "best_fit":
        order = np.argsort(-lengths, kind="stable")
        row_of = _best_fit(lengths[order].tolist(), row_length, max_pieces)
    elif strategy == "first_fit":
        order = np.arange(len(lengths))
        row_of = _first_fit(lengths.tolist(), row_length, max_pieces)
    else:
        raise ConfigError(f"Unknown packing strategy '{strategy}'; known are best_fit and first_fit.")
    rows = np.array(row_of, np.int64)
    by_row = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=int(rows.max(initial=-1)) + 1)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Packing(order[by_row], offsets, row_length, int(lengths.sum()))


def _best_fit(lengths: Sequence[int], row_length: int, max_pieces: int) -> list[int]:
    """Returns the row of each piece: of those with room, one with the least of it."""
    with_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # open rows by the room they have left
    rooms = 0  # the bits of the rooms that some row has
    counts: list[int] = []
    row_of: list[int] = []
    for length in lengths:
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = row_length, len(counts)
            counts.append(0)
        counts[row] += 1
        row_of.append(row)
        left = room - length
        if left and counts[row] != max_pieces:
            with_room[left].append(row)
            rooms |= 1 << left
    return row_of


def _first_fit(lengths: Sequence[int], row_length: int, max_pieces: int) -> list[int]:
    """Returns the row of each piece: the first with room. A tree of the largest rooms finds it."""
    size = 1 << max(1, len(lengths)).bit_length()
    largest = [0] * (2 * size)
    counts = [0] * size
    num_rows = 0
    row_of: list[int] = []
    for length in lengths:
        if largest[1] >= length:
            node = 1
            while node < size:
                node = 2 * node if largest[2 * node] >= length else 2 * node + 1
            left = largest[node] - length
        else:
            node, left = size + num_rows, row_length - length
            num_rows += 1
        row = node - size
        counts[row] += 1
        row_of.append(row)
        largest[node] = 0 if counts[row] == max_pieces else left
        while node > 1:
            node //= 2
            largest[node] = max(largest[2 * node], largest[2 * node + 1])
    return row_of


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Rows of several pieces, as the network takes them.

    Attributes:
      input_ids: Token ids.
      segment_ids: Number of the piece in its row from 1, 0 for padding.
      position_ids: Positions from 0 in each piece.
    """

    input_ids: Int[np.ndarray, "batch length"]
    segment_ids: Int[np.ndarray, "batch length"]
    position_ids: Int[np.ndarray, "batch length"]


def lay_out(rows: Sequence[Sequence[Int[np.ndarray, "piece"]]], row_length: int, pad_token_id: int) -> PackedRows:
    """Writes pieces one after the other into rows.

    Args:
      rows: The token ids of the pieces of each row.
      row_length: Tokens of a row.
      pad_token_id: Fills the rest.

    Returns:
      The rows with segments and positions.

    Raises:
      DataError: The pieces of a row are longer than it.
    """
    shape = (len(rows), row_length)
    ids, segments, positions = (
        np.full(shape, pad_token_id, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
    )
    for number, pieces in enumerate(rows):
        start = 0
        for segment, piece in enumerate(pieces, 1):
            end = start + len(piece)
            if end > row_length:
                raise DataError(f"The pieces of row {number} have more than {row_length} tokens together.")
            ids[number, start:end] = piece
            segments[number, start:end] = segment
            positions[number, start:end] = np.arange(end - start)
            start = end
    return PackedRows(ids, segments, positions)
