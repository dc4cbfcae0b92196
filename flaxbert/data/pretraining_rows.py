"""Rows for pre-training: pieces of documents, packed, masked, perhaps paired. Any row of any epoch is found by its number alone."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from flaxbert.config import IGNORED_LABEL
from flaxbert.data.masking import Masker, num_prediction_slots
from flaxbert.data.packing import Packing, pack
from flaxbert.data.prepared import PreparedCorpus, TokenizedDocument
from flaxbert.data.shuffling import StableRandom, stable_permutation
from flaxbert.errors import ConfigError, DataError

PairObjective = Literal["none", "next_sentence", "sentence_order"]

_PACKING_WINDOW = 1 << 16
"""Pieces that are packed together; a window keeps the memory of packing bounded."""

_MOST_DRAWS = 8
"""Documents that are drawn to find another one."""

_LENGTH_TOLERANCE = 2
"""Tokens that a text in another one's place may be shorter than the longest that fits."""

_WINDOW_STREAM, _ROW_STREAM, _ORDER_STREAM, _HELD_OUT_STREAM, _SAMPLE_STREAM = range(5)


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Parts of documents that are short enough for a row.

    Attributes:
      documents: Number of each piece's document.
      starts: First token of each in its document.
      lengths: Its tokens, without special ones.
    """

    documents: Int[np.ndarray, "pieces"]
    starts: Int[np.ndarray, "pieces"]
    lengths: Int[np.ndarray, "pieces"]

    def __len__(self) -> int:
        return len(self.lengths)


def cut_documents(lengths: Int[np.ndarray, "documents"], room: int, min_tokens: int = 1) -> Pieces:
    """Cuts documents into pieces of ``room`` tokens and a rest.

    Args:
      lengths: Tokens of each document.
      room: Most tokens of a piece.
      min_tokens: Shorter rests and documents are left out.

    Returns:
      The pieces, document by document.

    Raises:
      DataError: Nothing is left.

    Example:
      >>> cut_documents(np.array([5, 3]), 4).lengths.tolist()
      [4, 1, 3]
    """
    counts = -(-lengths.astype(np.int64) // room)
    documents = np.repeat(np.arange(len(lengths)), counts)
    firsts = np.cumsum(counts) - counts
    starts = (np.arange(len(documents)) - firsts[documents]) * room
    sizes = np.minimum(room, lengths[documents] - starts)
    kept = sizes >= min_tokens
    if not kept.any():
        raise _nothing_to_learn(min_tokens)
    return Pieces(documents[kept], starts[kept], sizes[kept].astype(np.int64))


def cut_after_sentences(
    corpus: PreparedCorpus, lengths: Int[np.ndarray, "documents"], room: int, min_tokens: int = 1
) -> Pieces:
    """Cuts documents into pieces of as many whole sentences as there is room for; a sentence that is longer is cut where the room ends.

    Pairs of texts need this: where a text begins or ends within a sentence, that alone would tell whether it stands where it belongs.

    Args:
      corpus: The documents.
      lengths: Tokens of each document; 0 leaves it out.
      room: Most tokens of a piece.
      min_tokens: Shorter pieces are left out.

    Returns:
      The pieces, document by document.

    Raises:
      DataError: Nothing is left, or no piece has two sentences.
    """
    documents: list[int] = []
    starts: list[int] = []
    sizes: list[int] = []
    has_pairs = False
    for number in np.flatnonzero(lengths).tolist():
        ends = corpus.document(number).sentence_ends
        start, length, before = 0, int(lengths[number]), 0
        while start < length:
            last = int(np.searchsorted(ends, start + room, side="right"))
            end = int(ends[last - 1]) if last > before else min(start + room, length)
            if end - start >= min_tokens:
                documents.append(number)
                starts.append(start)
                sizes.append(end - start)
                has_pairs = has_pairs or last - before > 1
            start, before = end, last
    if not sizes:
        raise _nothing_to_learn(min_tokens)
    if not has_pairs:
        raise DataError(
            f"No two sentences of a document fit into {room} tokens, so there are no pairs to learn from; choose a larger data.row_length, "
            "or prepare the text with corpus.document file or blank_line, so that a document has several sentences."
        )
    return Pieces(np.array(documents), np.array(starts, np.int64), np.array(sizes, np.int64))


def _nothing_to_learn(min_tokens: int) -> DataError:
    return DataError(f"No document has {min_tokens} tokens or more, so there is nothing to learn from.")


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids that frame pieces.

    Attributes:
      first: Stands before a piece (``[CLS]``).
      separator: Stands after it (``[SEP]``).
      pad: Fills rows.
      mask: Stands for hidden tokens.
      doubled: Whether two separators stand between two texts, as in RoBERTa.
      typed: Whether the second text has token type 1.
    """

    first: int
    separator: int
    pad: int
    mask: int
    doubled: bool = False
    typed: bool = True


class RowSource:
    """The rows of a corpus by number.

    The pieces are packed once, in windows of pieces drawn at random; an epoch shows every row once, in an order of its own, with masks and
    pairs of its own. Attention never crosses from one piece to another, so it does not matter which pieces share a row.

    Args:
      corpus: The documents.
      special: Ids that frame pieces.
      masker: Hides tokens.
      row_length: Tokens of a row.
      packing: best_fit, first_fit, or none for one piece a row.
      pairs: Whether pieces are split into two texts, and what is to be learned of them.
      min_tokens: Pieces with fewer tokens are left out.
      max_pieces: Most pieces of a row; 0 for any number.
      documents: Which documents are read; None reads all.
      seed: Decides all that is random.
    """

    def __init__(
        self,
        corpus: PreparedCorpus,
        special: SpecialTokens,
        masker: Masker,
        *,
        row_length: int,
        packing: str = "best_fit",
        pairs: PairObjective = "none",
        min_tokens: int = 8,
        max_pieces: int = 0,
        documents: Bool[np.ndarray, "documents"] | None = None,
        seed: int = 0,
    ) -> None:
        self.corpus, self.special, self.masker = corpus, special, masker
        self.row_length, self.pairs, self.seed = row_length, pairs, seed
        self._num_special = 2 if pairs == "none" else 4 if special.doubled else 3
        if row_length < self._num_special + min_tokens:
            raise ConfigError(
                f"Rows of {row_length} tokens have no room for {self._num_special} special tokens and {min_tokens} others."
            )
        lengths = corpus.lengths if documents is None else np.where(documents, corpus.lengths, 0)
        room = row_length - self._num_special
        if pairs == "none":
            self.pieces = cut_documents(lengths, room, min_tokens)
        else:
            self.pieces = cut_after_sentences(corpus, lengths, room, min_tokens)
        self.packing = _pack_in_windows(self.pieces.lengths + self._num_special, row_length, packing, max_pieces, seed)
        self.max_pieces = int(np.diff(self.packing.offsets).max())

        self.identity: dict[str, Any] = {
            "corpus": corpus.digest,
            "documents": int(np.count_nonzero(lengths)),
            "row_length": row_length,
            "packing": packing,
            "pairs": pairs,
            "min_tokens": min_tokens,
            "max_pieces": max_pieces,
            "masking": dataclasses.asdict(masker.config),
            "seed": seed,
        }
        if pairs != "none":
            self.identity["cut"] = "sentences of one length"

    def __len__(self) -> int:
        return len(self.packing)

    def sample(self, count: int) -> Int[np.ndarray, "count"]:
        """Returns the numbers of some rows, the same ones each time.

        Args:
          count: How many, at most all.
        """
        return np.sort(stable_permutation(len(self), self.seed, _SAMPLE_STREAM)[:count])

    def widened(self, max_pieces: int) -> "RowSource":
        """Returns the source with places for more pieces in every row, as those of another source need.

        Args:
          max_pieces: Pieces that rows have places for, at least as many as they hold.
        """
        if max_pieces == self.max_pieces:
            return self
        found = copy.copy(self)
        found.max_pieces = max_pieces
        return found

    @property
    def num_slots(self) -> int:
        """Predictions that a row has room for."""
        return num_prediction_slots(self.masker.config.rate, self.row_length)

    def order(self, epoch: int) -> Int[np.ndarray, "rows"]:
        """Returns the order of the rows of an epoch.

        Args:
          epoch: Its number.
        """
        return stable_permutation(len(self), self.seed, _ORDER_STREAM, epoch)

    def rows(self, numbers: Sequence[int], epoch: int) -> dict[str, np.ndarray]:
        """Returns rows as the network takes them.

        Args:
          numbers: Numbers of the rows.
          epoch: Decides masks and pairs; -1 is fit for evaluation.

        Returns:
          ``input_ids``, ``segment_ids`` (0 for padding), ``position_ids``, ``masked_positions`` and ``labels`` (ids before masking, -100 for empty
          slots), and with pairs ``token_type_ids``, ``first_positions`` and ``pair_labels`` (-100 for empty places).
        """
        built = [self._row(int(number), epoch) for number in numbers]
        return {name: np.stack([row[name] for row in built]) for name in built[0]}

    def _row(self, number: int, epoch: int) -> dict[str, np.ndarray]:
        random = StableRandom(self.seed, _ROW_STREAM, epoch + 1, number)
        row = _Row(self.row_length, self.max_pieces, self.special)
        for piece in self.packing.row(number).tolist():
            document = self.corpus.document(int(self.pieces.documents[piece]))
            start = int(self.pieces.starts[piece])
            end = start + int(self.pieces.lengths[piece])
            if self.pairs == "none":
                row.add([self._text(document, start, end)], IGNORED_LABEL)
            else:
                row.add(*self._pair(document, start, end, int(self.pieces.documents[piece]), random))
        masked = self.masker(row.input_ids[None], random, row.word_starts[None])
        found = {
            "input_ids": masked.input_ids[0],
            "segment_ids": row.segment_ids,
            "position_ids": row.position_ids,
            "masked_positions": masked.positions[0],
            "labels": masked.labels[0],
        }
        if self.pairs != "none":
            found |= {"first_positions": row.first_positions, "pair_labels": row.pair_labels}
            if self.special.typed:
                found["token_type_ids"] = row.token_type_ids
        return found

    def _text(self, document: TokenizedDocument, start: int, end: int) -> "_Text":
        ids = document.input_ids[start:end]
        if self.masker.config.unit == "token":
            return _Text(ids, None)
        words = document.word_starts
        return _Text(ids, self.masker.table.word_starts(ids) if words is None else words[start:end])

    def _pair(
        self, document: TokenizedDocument, start: int, end: int, number: int, random: StableRandom
    ) -> tuple[list["_Text"], int]:
        """Returns two texts and whether the second one follows (0) or not (1), or one text where there is one sentence."""
        inside = document.sentence_ends[(document.sentence_ends > start) & (document.sentence_ends < end)]
        if not len(inside):
            return [self._text(document, start, end)], IGNORED_LABEL
        border = int(inside[random.integers(len(inside), 1)[0]])
        first, second = self._text(document, start, border), self._text(document, border, end)
        follows = random.uniform(1)[0] < 0.5
        if self.pairs == "sentence_order":
            return ([first, second], 0) if follows else ([second, first], 1)
        # Drawn for texts that follow too: where no other text is as long, neither kind is shown, so that lengths do not tell.
        other = self._other_text(len(second.ids), number, random)
        if other is None:
            return [self._text(document, start, end)], IGNORED_LABEL
        return ([first, second], 0) if follows else ([first, other], 1)

    def _other_text(self, size: int, own: int, random: StableRandom) -> "_Text | None":
        """Returns whole sentences of another document (of the same where there is no other), ``size`` tokens or a few less, if one has them."""
        drawn = self.pieces.documents[random.integers(len(self.pieces), _MOST_DRAWS)]
        others = drawn[drawn != own]
        for number in dict.fromkeys((others if len(others) else drawn[:1]).tolist()):
            document = self.corpus.document(number)
            borders = np.concatenate([[0], document.sentence_ends]).astype(np.int64)
            last = borders[np.searchsorted(borders, borders + size, side="right") - 1]
            fitting = np.flatnonzero(last - borders >= max(1, size - _LENGTH_TOLERANCE))
            if len(fitting):
                chosen = int(fitting[random.integers(len(fitting), 1)[0]])
                return self._text(document, int(borders[chosen]), int(last[chosen]))
        return None


@dataclasses.dataclass(frozen=True)
class _Text:
    ids: Int[np.ndarray, "tokens"]
    word_starts: Bool[np.ndarray, "tokens"] | None
    """None where single tokens are drawn."""


class _Row:
    """A row that is filled piece by piece."""

    def __init__(self, length: int, max_pieces: int, special: SpecialTokens) -> None:
        self._special = special
        self._used, self._pieces = 0, 0
        self.input_ids = np.full(length, special.pad, np.int32)
        self.segment_ids, self.position_ids, self.token_type_ids = (np.zeros(length, np.int32) for _ in range(3))
        self.word_starts = np.ones(length, np.bool_)
        self.first_positions = np.zeros(max_pieces, np.int32)
        self.pair_labels = np.full(max_pieces, IGNORED_LABEL, np.int32)

    def add(self, texts: Sequence[_Text], label: int) -> None:
        """Writes one piece, which is a text or a pair, with its special tokens."""
        special = self._special
        start = self._used
        self._write(np.array([special.first]), None, 0)
        for number, text in enumerate(texts):
            if number and special.doubled:
                self._write(np.array([special.separator]), None, number)
            self._write(text.ids, text.word_starts, number)
            self._write(np.array([special.separator]), None, number)
        self.first_positions[self._pieces], self.pair_labels[self._pieces] = start, label
        self._pieces += 1
        self.segment_ids[start : self._used] = self._pieces
        self.position_ids[start : self._used] = np.arange(self._used - start)

    def _write(self, ids: Int[np.ndarray, "tokens"], starts: Bool[np.ndarray, "tokens"] | None, number: int) -> None:
        place = slice(self._used, self._used + len(ids))
        self.input_ids[place] = ids
        self.token_type_ids[place] = number
        if starts is not None:
            self.word_starts[place] = starts
        self._used += len(ids)


def _pack_in_windows(
    lengths: Int[np.ndarray, "pieces"], row_length: int, strategy: str, max_pieces: int, seed: int
) -> Packing:
    if strategy == "none":
        offsets = np.arange(len(lengths) + 1)
        return Packing(np.arange(len(lengths)), offsets, row_length, int(lengths.sum()))
    order = stable_permutation(len(lengths), seed, _WINDOW_STREAM)
    pieces, counts = [], []
    for start in range(0, len(order), _PACKING_WINDOW):
        window = order[start : start + _PACKING_WINDOW]
        packed = pack(lengths[window], row_length, strategy=strategy, max_pieces=max_pieces)
        pieces.append(window[packed.pieces])
        counts.append(np.diff(packed.offsets))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])
    return Packing(np.concatenate(pieces), offsets, row_length, int(lengths.sum()))


def hold_out_documents(num_documents: int, rate: float, seed: int) -> Bool[np.ndarray, "documents"]:
    """Returns which documents are held out: the same share of any corpus, at least one where there are two.

    Args:
      num_documents: Number of documents.
      rate: Share in [0, 1).
      seed: Decides which.
    """
    held = np.zeros(num_documents, np.bool_)
    if rate > 0 and num_documents > 1:
        count = min(num_documents - 1, max(1, round(rate * num_documents)))
        held[stable_permutation(num_documents, seed, _HELD_OUT_STREAM)[:count]] = True
    return held
