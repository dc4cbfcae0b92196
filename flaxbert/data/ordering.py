"""Which examples form which batch, and the lengths that batches are padded to."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from flaxbert.data.shuffling import stable_permutation
from flaxbert.errors import ConfigError

WINDOW_BATCHES = 64
"""Batches whose examples are sorted by length together."""

FILLER = -1
"""Stands for an example in rows that only fill a batch."""

_ORDER_STREAM = 0
_WINDOW_STREAM = 1


def default_length_buckets(max_length: int) -> tuple[int, ...]:
    """Returns powers of two and their middles from 16 tokens, ending at ``max_length`` tokens.

    Example:
      >>> default_length_buckets(100)
      (16, 24, 32, 48, 64, 96, 100)
    """
    buckets = []
    power = 16
    while power < max_length:
        buckets.extend(length for length in (power, power + power // 2) if length < max_length)
        power *= 2
    return (*buckets, max_length)


def resolve_length_buckets(length_buckets: Sequence[int], max_length: int) -> tuple[int, ...]:
    """Returns the lengths that batches are padded to, in rising order and ending at ``max_length``.

    Args:
      length_buckets: Lengths in tokens; empty for the default ones.
      max_length: Most tokens of one input.

    Raises:
      ConfigError: A bucket is longer than ``max_length``.
    """
    if not length_buckets:
        return default_length_buckets(max_length)
    if max(length_buckets) > max_length:
        raise ConfigError(
            f"data.length_buckets holds {max(length_buckets)}, but no input has more than data.max_length {max_length} "
            "tokens; remove it or raise data.max_length."
        )
    return tuple(sorted({*length_buckets, max_length}))


def plan_epoch(
    lengths: Int[np.ndarray, "examples"],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    group_by_length: bool = True,
    window_batches: int = WINDOW_BATCHES,
) -> Int[np.ndarray, "steps batch"]:
    """Returns the example numbers of every batch of one epoch; -1 marks rows that only fill the last batch.

    Every example is in exactly one batch. With grouping, the examples of each window of ``window_batches`` batches are
    sorted by length and cut into batches, and the batches are shuffled. A batch that is not full stands at a random place
    among the lengths: else the longest examples would always have the smallest batch, and so the largest weight.

    Args:
      lengths: Tokens of each example.
      batch_size: Examples per global batch.
      seed: With ``epoch``, decides the order.
      epoch: Number of the epoch, from 0.
      shuffle: Whether to shuffle; without it examples keep their order, or are sorted by length with grouping.
      group_by_length: Whether batches hold examples of similar length.
      window_batches: Batches per window.
    """
    num_examples = len(lengths)
    order = stable_permutation(num_examples, seed, epoch, _ORDER_STREAM) if shuffle else np.arange(num_examples)
    windows = []
    window_size = window_batches * batch_size
    for number, start in enumerate(range(0, num_examples, window_size)):
        rows = order[start : start + window_size]
        if group_by_length:
            rows = rows[np.argsort(lengths[rows], kind="stable")]
        num_batches = -(-len(rows) // batch_size)
        shuffled = shuffle and group_by_length
        places = (
            stable_permutation(num_batches, seed, epoch, _WINDOW_STREAM, number) if shuffled else np.arange(num_batches)
        )
        num_missing = num_batches * batch_size - len(rows)
        if num_missing:
            end = (int(places[-1]) + 1) * batch_size - num_missing
            rows = np.concatenate([rows[:end], np.full(num_missing, FILLER), rows[end:]])
        windows.append(rows.reshape(num_batches, batch_size)[places])
    return np.concatenate(windows).astype(np.int64)
