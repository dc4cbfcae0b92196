"""Batches of one static shape per length, in an order that is a pure function of seed, epoch and step.

A step's batch is looked up by its number, so a position is one integer and continuing reads nothing of what went before.
The global batch is formed first, then every process takes its slice of rows: all see the same length at a step, and a
position can be restored on another number of processes.
"""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from flaxbert.config import IGNORED_LABEL
from flaxbert.data.ordering import WINDOW_BATCHES, default_length_buckets, plan_epoch
from flaxbert.data.pipeline import PREFETCHED_BATCHES, Batch, StepPipeline
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, DataError, MeshError


def collate(
    examples: TokenizedExamples, rows: Int[np.ndarray, "batch"], length: int, filler: int | None = None
) -> Batch:
    """Returns the batch of the given examples, padded on the right.

    Rows of -1 repeat a real example with ``example_weight`` 0 and ``example_index`` -1, so that no row is without tokens.

    Args:
      examples: The examples.
      rows: Their numbers.
      length: Length in tokens to pad to.
      filler: Example that rows of -1 repeat; by default the first of the rows that is real.
    """
    real = rows >= 0
    if filler is None:
        filler = int(rows[real][0]) if real.any() else 0
    chosen = np.where(real, rows, filler)
    several = examples.rows_per_example
    inputs = chosen if several == 1 else chosen[:, None] * several + np.arange(several)
    starts, ends = examples.offsets[inputs], examples.offsets[inputs + 1]
    mask = np.arange(length) < (ends - starts)[..., None]
    flat = (starts[..., None] + np.arange(length))[mask]
    batch = {
        "input_ids": _padded(examples.input_ids, flat, mask, examples.pad_token_id),
        "attention_mask": mask.astype(np.int32),
        "token_type_ids": _padded(examples.token_type_ids, flat, mask, 0),
        "example_weight": real.astype(np.float32),
        "example_index": rows.astype(np.int32),
    }
    if examples.labels is not None:
        batch["labels"] = examples.labels[chosen]
    for name, values in examples.token_values.items():
        batch[name] = _padded(values, flat, mask, IGNORED_LABEL if name == "labels" else 0)
    return batch


def _padded(
    values: Int[np.ndarray, "tokens"] | None, flat: Int[np.ndarray, "kept"], mask: Bool[np.ndarray, "..."], filler: int
) -> Int[np.ndarray, "..."]:
    """Returns the values of the tokens of a batch, the filler where there is padding."""
    padded = np.full(mask.shape, filler, np.int32)
    if values is not None:
        padded[mask] = values[flat]
    return padded


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """Random access to the batches of one process by the number of the step: what grain iterates over.

    Attributes:
      examples: The examples.
      batch_size: Examples per global batch.
      seed: Decides the order.
      shuffle: Whether to shuffle anew each epoch.
      length_buckets: Lengths in tokens, rising.
      group_by_length: Whether batches hold examples of similar length.
      process_index: Number of this process.
      process_count: Number of processes.
      num_steps: Number of steps over all epochs.
      window_batches: Batches per window of grouping.
    """

    examples: TokenizedExamples
    batch_size: int
    seed: int
    shuffle: bool
    length_buckets: tuple[int, ...]
    group_by_length: bool
    process_index: int
    process_count: int
    num_steps: int
    window_batches: int

    def __len__(self) -> int:
        return self.num_steps

    @property
    def steps_per_epoch(self) -> int:
        """Steps that show every example once."""
        return -(-len(self.examples) // self.batch_size)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What the order and content of the batches depend on."""
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "group_by_length": self.group_by_length,
            "window_batches": self.window_batches,
            "num_examples": len(self.examples),
            "digest": digest_examples(self.examples),
        }

    @functools.cached_property
    def _plan(self) -> Any:
        """The plan of an epoch; two are kept, because reading ahead crosses their border."""
        return functools.lru_cache(maxsize=2)(self._plan_epoch)

    def _plan_epoch(self, epoch: int) -> Int[np.ndarray, "steps batch"]:
        return plan_epoch(
            self.examples.lengths,
            self.batch_size,
            seed=self.seed,
            epoch=epoch,
            shuffle=self.shuffle,
            group_by_length=self.group_by_length,
            window_batches=self.window_batches,
        )

    def __getitem__(self, index: int) -> Batch:
        """Returns this process's rows of the batch of step ``index``."""
        epoch, step_in_epoch = divmod(int(index), self.steps_per_epoch)
        rows = self._plan(epoch)[step_in_epoch]
        real = rows[rows >= 0]
        longest = int(self.examples.lengths[real].max())
        length = self.length_buckets[int(np.searchsorted(self.length_buckets, longest))]
        share = self.batch_size // self.process_count
        own = rows[self.process_index * share : (self.process_index + 1) * share]
        return collate(self.examples, own, length, filler=int(real[0]))


class BatchPipeline(StepPipeline):
    """Iterates over batches with a position that can be saved and restored.

    All batches have ``batch_size`` rows. The last batch of an epoch is filled up with rows of ``example_weight`` 0 rather
    than dropped: shapes stay static, and every example is seen exactly once per epoch, in training too, where a small
    data set would otherwise lose a part of itself.

    Args:
      examples: The examples.
      batch_size: Examples per global batch, over all processes.
      seed: Decides the order.
      shuffle: Whether to shuffle anew each epoch.
      length_buckets: Lengths in tokens that batches are padded to; empty: the default ones up to the longest example.
      group_by_length: Whether batches hold examples of similar length, within windows of 64 batches.
      process_index: Number of this process; it gets rows ``[index * n, (index + 1) * n)`` of each global batch.
      process_count: Number of processes.
      num_epochs: Passes over the examples; None never ends.
      window_batches: Batches per window of grouping.
      prefetch: Batches that a thread prepares ahead.

    Raises:
      DataError: There are no examples, or one is longer than the last bucket.
      MeshError: The batch can not be split evenly over the processes.

    Example:
      >>> pipeline = BatchPipeline(examples, batch_size=32, seed=0)  # doctest: +SKIP
      >>> state = pipeline.get_state()  # doctest: +SKIP
    """

    def __init__(
        self,
        examples: TokenizedExamples,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        length_buckets: Sequence[int] = (),
        group_by_length: bool = True,
        process_index: int = 0,
        process_count: int = 1,
        num_epochs: int | None = None,
        window_batches: int = WINDOW_BATCHES,
        prefetch: int = PREFETCHED_BATCHES,
    ) -> None:
        _check_shape(examples, batch_size, process_index, process_count)
        longest = int(examples.lengths.max())
        buckets = tuple(sorted(length_buckets)) or default_length_buckets(longest)
        if longest > buckets[-1]:
            row = int(examples.lengths.argmax())
            raise DataError(
                f"Example {row} has {longest} tokens, but the longest of the length buckets is {buckets[-1]}; add a longer "
                "bucket to data.length_buckets or lower data.max_length."
            )
        steps_per_epoch = -(-len(examples) // batch_size)
        num_steps = sys.maxsize if num_epochs is None else num_epochs * steps_per_epoch
        source = BatchSource(
            examples=examples,
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            length_buckets=buckets,
            group_by_length=group_by_length,
            process_index=process_index,
            process_count=process_count,
            num_steps=num_steps,
            window_batches=window_batches,
        )
        super().__init__(source, prefetch)

    @property
    def length_buckets(self) -> tuple[int, ...]:
        """Lengths in tokens that batches are padded to."""
        return self._source.length_buckets


def evaluation_batches(
    examples: TokenizedExamples,
    batch_size: int,
    length_buckets: Sequence[int] = (),
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchPipeline:
    """Returns the batches of one pass, sorted by length; ``example_index`` tells which example each row is.

    Args:
      examples: The examples.
      batch_size: Examples per global batch.
      length_buckets: Lengths in tokens that batches are padded to; empty for the default ones.
      process_index: Number of this process.
      process_count: Number of processes.

    Returns:
      A pipeline that ends after each example was seen exactly once; call again for another pass.
    """
    return BatchPipeline(
        examples,
        batch_size=batch_size,
        shuffle=False,
        length_buckets=length_buckets,
        group_by_length=True,
        process_index=process_index,
        process_count=process_count,
        num_epochs=1,
        window_batches=max(1, -(-len(examples) // batch_size)),
    )


def _check_shape(examples: TokenizedExamples, batch_size: int, process_index: int, process_count: int) -> None:
    if not len(examples):
        raise DataError("There are no examples to make batches of; check the data files and data.max_train_examples.")
    if batch_size < 1:
        raise ConfigError(f"The batch size is {batch_size}, but must be at least 1.")
    if not 0 <= process_index < process_count:
        raise MeshError(
            f"This is process {process_index} of {process_count}; numbers run from 0 to {process_count - 1}."
        )
    if batch_size % process_count:
        lower = batch_size - batch_size % process_count
        raise MeshError(
            f"The batch of {batch_size} examples can not be split evenly over {process_count} processes; choose a multiple, "
            f"for example {lower or process_count} or {lower + process_count}."
        )


def digest_examples(examples: TokenizedExamples) -> str:
    """Returns a digest of tokenized examples and their labels, in hexadecimal.

    Args:
      examples: The examples.
    """
    digest = hashlib.blake2b(digest_size=8)
    arrays = (examples.input_ids, examples.token_type_ids, examples.offsets, examples.labels)
    for array in (*arrays, *(examples.token_values[name] for name in sorted(examples.token_values))):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
