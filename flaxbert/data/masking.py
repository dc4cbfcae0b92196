"""Masking for masked language models: which tokens are hidden, and what stands in their place."""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int

from flaxbert.config import IGNORED_LABEL, MaskingConfig
from flaxbert.data.shuffling import StableRandom
from flaxbert.data.words import WordTable
from flaxbert.errors import ConfigError

_SLOT_MULTIPLE = 8


def num_prediction_slots(rate: float, length: int) -> int:
    """Returns how many predictions a row has room for: a multiple of 8, at most the length.

    Args:
      rate: Share of the tokens that are predicted.
      length: Tokens of a row.

    Example:
      >>> num_prediction_slots(0.15, 128)
      24
    """
    return min(length, _SLOT_MULTIPLE * math.ceil(max(1.0, rate * length) / _SLOT_MULTIPLE))


@dataclasses.dataclass(frozen=True)
class MaskedRows:
    """Rows with hidden tokens, and what is to be predicted.

    Attributes:
      input_ids: Token ids, drawn ones replaced.
      positions: Places of the tokens to be predicted, rising; 0 where a row has fewer.
      labels: Their ids before; -100 where a row has fewer.
    """

    input_ids: Int[np.ndarray, "batch length"]
    positions: Int[np.ndarray, "batch slots"]
    labels: Int[np.ndarray, "batch slots"]


class Masker:
    """Masks rows of tokens; the same rows and random numbers give the same masks.

    Args:
      config: How.
      table: Borders of words, and which tokens are special.
      mask_token_id: Id of the mask token.
      pad_token_id: Id of padding.

    Raises:
      ConfigError: The vocabulary has special tokens only.
    """

    def __init__(self, config: MaskingConfig, table: WordTable, mask_token_id: int, pad_token_id: int) -> None:
        self.config = config
        self.table = table
        self.mask_token_id = mask_token_id
        self.pad_token_id = pad_token_id
        self._random_ids = np.flatnonzero(~table.special).astype(np.int32)
        if not len(self._random_ids):
            raise ConfigError("The vocabulary has special tokens only, so there is nothing to mask.")

    def __call__(
        self,
        input_ids: Int[np.ndarray, "batch length"],
        random: StableRandom,
        word_starts: Bool[np.ndarray, "batch length"] | None = None,
    ) -> MaskedRows:
        """Masks a batch. Of every row the share ``rate`` of its tokens is drawn, but at least one where it has any.

        Args:
          input_ids: Rows, packed or not; special tokens are never masked.
          random: Source of all that is random.
          word_starts: Which tokens begin a word; None takes what the vocabulary says.
        """
        maskable = ~self.table.special[input_ids] & (input_ids != self.pad_token_id)
        counts = maskable.sum(axis=1)
        budgets = np.where(counts > 0, np.maximum(1, np.round(self.config.rate * counts)), 0).astype(np.int64)
        slots = num_prediction_slots(self.config.rate, input_ids.shape[1])
        budgets = np.minimum(budgets, slots)
        draws = random.uniform(*input_ids.shape)
        if self.config.unit == "token":
            groups = _draw_tokens(maskable, budgets, draws)
        else:
            starts = self.table.word_starts(input_ids) if word_starts is None else word_starts
            groups = np.stack(
                [
                    self._draw_words(can, start, int(budget), random)
                    for can, start, budget in zip(maskable, starts, budgets, strict=True)
                ]
            )
        return self._replace(input_ids, groups, slots, random)

    def _draw_words(
        self,
        maskable: Bool[np.ndarray, "length"],
        starts: Bool[np.ndarray, "length"],
        budget: int,
        random: StableRandom,
    ) -> Int[np.ndarray, "length"]:
        """Returns the number of the drawn group of each token, -1 for tokens that are not drawn."""
        groups = np.full(len(maskable), -1, np.int32)
        firsts = np.flatnonzero(maskable & (starts | ~np.concatenate([[False], maskable[:-1]])))
        if not len(firsts):
            return groups
        word_of = np.cumsum(np.isin(np.arange(len(maskable)), firsts)) - 1
        lengths = np.bincount(word_of[maskable], minlength=len(firsts))
        # Words one after the other form a group; a special token between two ends the run.
        ends = firsts + lengths
        follows = np.concatenate([firsts[1:] == ends[:-1], [False]])
        widths = self._widths(len(firsts), random)
        left = budget
        order = random.permutation(len(firsts)).tolist()
        for word in order:
            if left <= 0:
                break
            end, size = word, 0
            while end < len(firsts) and end - word < widths[word] and groups[firsts[end]] < 0:
                if size + lengths[end] > left:
                    break
                size += int(lengths[end])
                end += 1
                if not follows[end - 1]:
                    break
            if size:
                groups[firsts[word] : ends[end - 1]] = word
                left -= size
        if left == budget > 0:  # no word is short enough: the beginning of one
            groups[firsts[order[0]] : firsts[order[0]] + budget] = order[0]
        return groups

    def _widths(self, num_words: int, random: StableRandom) -> Int[np.ndarray, "words"]:
        config = self.config
        if config.unit == "word":
            return np.ones(num_words, np.int64)
        if config.unit == "span":
            goes_on = math.log1p(-config.span_end_rate) if config.span_end_rate < 1 else -math.inf
            lengths = 1 + np.floor(np.log1p(-random.uniform(num_words)) / goes_on)
            return np.minimum(lengths, config.max_span).astype(np.int64)
        weights = np.cumsum(1.0 / np.arange(1, config.max_ngram + 1))
        return 1 + np.searchsorted(weights, random.uniform(num_words) * weights[-1], side="right").astype(np.int64)

    def _replace(
        self,
        input_ids: Int[np.ndarray, "batch length"],
        groups: Int[np.ndarray, "batch length"],
        slots: int,
        random: StableRandom,
    ) -> MaskedRows:
        drawn = groups >= 0
        fates = self._fates(groups, random)
        masked = input_ids.astype(np.int32, copy=True)
        masked[drawn & (fates < self.config.hidden_rate)] = self.mask_token_id
        randomly = drawn & (fates >= self.config.hidden_rate)
        randomly &= fates < self.config.hidden_rate + self.config.random_rate
        masked[randomly] = self._random_ids[random.integers(len(self._random_ids), int(randomly.sum()))]
        order = np.argsort(~drawn, axis=1, kind="stable")[:, :slots]
        real = np.take_along_axis(drawn, order, axis=1)
        labels = np.where(real, np.take_along_axis(input_ids, order, axis=1), IGNORED_LABEL)
        return MaskedRows(masked, np.where(real, order, 0).astype(np.int32), labels.astype(np.int32))

    def _fates(
        self, groups: Int[np.ndarray, "batch length"], random: StableRandom
    ) -> Float[np.ndarray, "batch length"]:
        """Returns a number in [0, 1) that decides what becomes of a token; all tokens of a span share theirs."""
        fates = random.uniform(*groups.shape)
        if self.config.unit == "span":
            return np.take_along_axis(fates, np.maximum(groups, 0).astype(np.int64), axis=1)
        return fates


def _draw_tokens(
    maskable: Bool[np.ndarray, "batch length"],
    budgets: Int[np.ndarray, "batch"],
    draws: Float[np.ndarray, "batch length"],
) -> Int[np.ndarray, "batch length"]:
    ranks = np.argsort(np.argsort(np.where(maskable, draws, 2.0), axis=1), axis=1)
    places = np.arange(maskable.shape[1], dtype=np.int32)
    return np.where(maskable & (ranks < budgets[:, None]), places, np.int32(-1))
