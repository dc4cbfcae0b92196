"""Running a network over many texts: length buckets, compiled programs, results in the order of the inputs."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.row_parts import map_row_parts, num_row_parts
from flaxbert.core.trees import computes_in_int8
from flaxbert.data.batches import collate
from flaxbert.data.ordering import default_length_buckets
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, DataError
from flaxbert.families.graph import INPUT_NAMES, forward, graph_definition
from flaxbert.nn.heads import pool
from flaxbert.nn.host_pooling import pool_tokens
from flaxbert.nn.network import ModelOutput

MOST_PENDING = 8
"""Batches that may wait for their results to be fetched."""

Postprocess = Callable[[Any, Mapping[str, Any], Mapping[str, Any]], Any]

Engine = Callable[[Mapping[str, Any]], ModelOutput]
"""Computes the forward pass of one model for integer arrays by name, of any size."""


def logits_of(output: Any, params: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """Returns the logits of a forward pass.

    Args:
      output: What the network returned.
      params: Parameter tree.
      batch: The batch.
    """
    return output.logits


def pool_side_by_side(hidden: Any, mask: Any, modes: Sequence[str]) -> Any:
    """Returns one vector for each row, those of several modes side by side.

    Args:
      hidden: Token vectors, ``[batch, length, embed]``.
      mask: 1 for the tokens that are pooled, ``[batch, length]``.
      modes: Pooling modes as ``nn.heads.pool`` names them.
    """
    if isinstance(hidden, np.ndarray):  # from an engine, of any shape: JAX would compile for each
        return pool_tokens(hidden, mask, modes)
    vectors = [pool(hidden, mask, mode) for mode in modes]
    return vectors[0] if len(vectors) == 1 else jax.numpy.concatenate(vectors, axis=-1)


@dataclasses.dataclass(frozen=True)
class PooledVectors:
    """A function that pools token vectors to sentence vectors, several modes side by side; equal ones share a program.

    Attributes:
      modes: Pooling modes as ``nn.heads.pool`` names them.
      num_skipped: First tokens that are read but not pooled, those of a prompt.
    """

    modes: tuple[str, ...]
    num_skipped: int = 0

    def __call__(self, output: Any, params: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        """Returns the vectors of a forward pass.

        Args:
          output: What the network returned.
          params: Parameter tree.
          batch: The batch.

        Raises:
          ConfigError: The model's task reads the first token alone.
        """
        del params
        if output.last_hidden_state is None:
            raise ConfigError(
                "A model of this task (or its engine) keeps no vectors of all tokens; for sentence vectors load its folder with "
                "task='sentence-similarity'."
            )
        mask = batch["attention_mask"]
        if self.num_skipped:
            mask = mask * (np.arange(mask.shape[1]) >= self.num_skipped).astype(mask.dtype)
        return pool_side_by_side(output.last_hidden_state, mask, self.modes)


def checked_batch(config: ModelConfig, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a batch as arrays for the network, without what is None; arrays of JAX pass unread.

    Args:
      config: Architecture.
      batch: Arrays or nested lists by input name.

    Raises:
      DataError: Ids lie outside the vocabulary, or the input is longer than the model's maximum.
    """
    return {name: _checked(config, name, value) for name, value in batch.items() if value is not None}


def _checked(config: ModelConfig, name: str, value: Any) -> jax.Array:
    if isinstance(value, jax.Array):
        return value
    array = np.asarray(value)
    if name in INPUT_NAMES and array.size:
        limit = {"input_ids": config.vocab_size, "position_ids": config.max_length}.get(name)
        if limit is not None and (array.min() < 0 or array.max() >= limit):
            wrong = array.min() if array.min() < 0 else array.max()
            raise DataError(f"{name} holds {int(wrong)}, but the model knows 0 to {limit - 1}.")
        array = array.astype(np.int32)
        if array.ndim == 2 and array.shape[1] > config.max_length and name == "input_ids":
            raise DataError(
                f"input_ids has {array.shape[1]} tokens a row, but the model has "
                f"{config.max_length} positions; truncate, or load a longer model."
            )
    return jax.numpy.asarray(array)


@functools.lru_cache(maxsize=64)
def compiled_forward(
    config: ModelConfig, task: str, execution: Execution, postprocess: Postprocess
) -> Callable[[Any, Any], Any]:
    """Returns the compiled program of a model; equal arguments share one, so that copies of a model do not recompile.

    Args:
      config: Architecture.
      task: Canonical task name.
      execution: How the network is run.
      postprocess: What of the output is returned.
    """
    graphdef = graph_definition(config, task, execution)

    def run(params: Any, batch: Any) -> Any:
        def part(rows: Mapping[str, Any]) -> Any:
            return postprocess(forward(graphdef, params, rows), params, rows)

        return map_row_parts(part, batch, _num_parts(execution, params, batch))

    return jax.jit(run)


@dataclasses.dataclass(frozen=True)
class EngineForward:
    """The program of a model that another engine computes, with the arguments of a compiled one; it takes batches of any shape.

    Attributes:
      engine: What computes.
      postprocess: What of the output is returned; its second argument is an empty tree.
    """

    engine: Engine
    postprocess: Postprocess

    def __call__(self, params: Any, batch: Mapping[str, Any]) -> np.ndarray:
        """Returns what is made of a batch.

        Args:
          params: Are not looked at; the engine has its own.
          batch: Integer arrays by name.
        """
        del params
        return np.asarray(self.postprocess(self.engine(batch), {}, batch), np.float32)


def program_of(
    config: ModelConfig, task: str, execution: Execution, postprocess: Postprocess, engine: Engine | None
) -> Callable[[Any, Any], Any]:
    """Returns the program of a model, compiled or of its engine.

    Args:
      config: As for ``compiled_forward``.
      task: As for ``compiled_forward``.
      execution: As for ``compiled_forward``.
      postprocess: What of the output is returned.
      engine: What computes instead of JAX, or None.
    """
    if engine is None:
        return compiled_forward(config, task, execution, postprocess)
    return EngineForward(engine, postprocess)


def _num_parts(execution: Execution, params: Any, batch: Mapping[str, Any]) -> int:
    if execution.precision == "float32" and not computes_in_int8(params):
        return 1
    return num_row_parts(batch["input_ids"].shape[0], math.prod(batch["input_ids"].shape[1:]))


@functools.lru_cache(maxsize=64)
def compiled_apply(
    config: ModelConfig, task: str, execution: Execution, keep_hidden: bool
) -> Callable[[Any, Any, Any], ModelOutput]:
    """Returns the compiled forward pass ``(params, batch, dropout_key) -> ModelOutput`` of a model.

    Args:
      config: Architecture.
      task: Canonical task name.
      execution: How the network is run.
      keep_hidden: Whether the hidden states after every block are returned.
    """
    graphdef = graph_definition(config, task, execution)

    def run(params: Any, batch: Any, dropout_key: Any) -> ModelOutput:
        def part(rows: Mapping[str, Any]) -> ModelOutput:
            return forward(graphdef, params, rows, dropout_key=dropout_key, keep_hidden=keep_hidden)

        return map_row_parts(part, batch, _num_parts(execution, params, batch) if dropout_key is None else 1)

    return jax.jit(run)


def _groups(lengths: Int[np.ndarray, "examples"], buckets: Sequence[int], batch_size: int) -> Iterator[tuple[int, Any]]:
    order = np.argsort(-lengths, kind="stable")
    ceilings = np.asarray(buckets)[np.searchsorted(buckets, lengths)]
    for bucket in sorted(set(ceilings.tolist()), reverse=True):
        members = order[ceilings[order] == bucket]
        for start in range(0, len(members), batch_size):
            yield bucket, members[start : start + batch_size]


def _row_bucket(num_rows: int, batch_size: int) -> int:
    return min(batch_size, 1 << math.ceil(math.log2(num_rows)))


def run_examples(
    program: Callable[[Any, Any], Any],
    params: Any,
    examples: TokenizedExamples,
    *,
    batch_size: int,
    max_length: int,
    keep_length: bool = False,
) -> list[np.ndarray]:
    """Runs a compiled program over examples of mixed lengths.

    Examples of similar length share a batch; a batch is padded to a length bucket and to a power of two of rows, so
    that any input compiles only a small, fixed set of shapes. While one batch is computed, the next is put together.

    Args:
      program: From ``compiled_forward``, or an ``EngineForward``.
      params: Parameter tree.
      examples: Tokenized examples.
      batch_size: Most examples per batch.
      max_length: Longest row in tokens.
      keep_length: Whether results have a length axis, which is cut to each example's own length.

    Returns:
      One result per example, in the order of the inputs.

    Raises:
      ConfigError: The batch size is less than 1.
    """
    lengths = examples.lengths
    results: list[Any] = [None] * len(lengths)
    pending: list[tuple[Any, Any]] = []
    any_shape = isinstance(program, EngineForward)
    batches = input_batches(examples, batch_size=batch_size, max_length=max_length, any_shape=any_shape)
    for members, batch in batches:
        pending.append((members, program(params, batch)))
        if len(pending) > MOST_PENDING:
            put_back(results, *pending.pop(0), lengths, keep_length)
    for members, output in pending:
        put_back(results, members, output, lengths, keep_length)
    return results


def input_batches(
    examples: TokenizedExamples, *, batch_size: int, max_length: int, any_shape: bool = False
) -> Iterator[tuple[Int[np.ndarray, "members"], dict[str, np.ndarray]]]:
    """Yields the batches that a network is run on, each with the numbers of its examples.

    Args:
      examples: Tokenized examples.
      batch_size: Most examples per batch.
      max_length: Longest row in tokens.
      any_shape: Whether batches are padded to their longest row alone, for programs that take any shape.

    Raises:
      ConfigError: The batch size is less than 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, but a batch holds at least one text.")
    for bucket, members in _groups(examples.lengths, default_length_buckets(max_length), batch_size):
        num_rows, length = _row_bucket(len(members), batch_size), bucket
        if any_shape:
            num_rows, length = len(members), int(examples.lengths[members].max())
        rows = np.full(num_rows, -1, np.int64)
        rows[: len(members)] = members
        batch = {name: array for name, array in collate(examples, rows, length).items() if name in INPUT_NAMES}
        yield members, batch


def put_back(
    results: list[Any],
    members: Int[np.ndarray, "members"],
    output: Any,
    lengths: Int[np.ndarray, "examples"],
    keep_length: bool,
) -> None:
    """Puts the results of one batch to the places of its examples.

    Args:
      results: One place per example.
      members: From ``input_batches``.
      output: What the network made of the batch, one row per example and then rows that only filled it.
      lengths: Tokens of each example.
      keep_length: Whether results have a length axis, which is cut to each example's own length.
    """
    values = np.asarray(output)
    for row, member in enumerate(members):
        results[member] = values[row, : lengths[member]] if keep_length else values[row]
