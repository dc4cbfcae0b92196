"""How fast models are beside each other: in turn, in one process, so that what slows one down slows all."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from flaxbert import inference
from flaxbert.architecture import TASK_HEADS
from flaxbert.comparison.products import count_products
from flaxbert.comparison.texts import full_batch
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.model import Model
from flaxbert.weights.sentence_transformers import SentencePooling


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long one model takes for batches of one shape.

    Attributes:
      batch_size: Rows.
      length: Tokens of a row.
      median_seconds: Half of the rounds were faster.
      p90_seconds: Nine tenths of the rounds were faster.
      rows_per_second: Rows over the median.
      speedup: Median over the rounds of the reference's time over this model's in the same round.
      rounds: Number of rounds.
    """

    batch_size: int
    length: int
    median_seconds: float
    p90_seconds: float
    rows_per_second: float
    speedup: float
    rounds: int


def forward_program(model: Model) -> Callable[[Any, Any], Any]:
    """Returns the compiled program that a model's users run: scores of its task, or sentence vectors.

    Args:
      model: The model.
    """
    pooling = model.pooling if model.pooling is not None else SentencePooling()
    task_has_head = bool(TASK_HEADS[model.task])
    result = inference.logits_of if task_has_head else inference.PooledVectors(tuple(pooling.modes))
    return inference.compiled_forward(model.config, model.task, model.execution, result)


def interleave(
    calls: Sequence[Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> Float[np.ndarray, "calls rounds"]:
    """Times functions in turn; each round begins with another one, so that none always follows the same.

    Args:
      calls: The functions, each of which returns when its work is done.
      rounds: Times that each is timed.
      clock: Returns seconds.

    Returns:
      Seconds of every call.
    """
    seconds = np.zeros((len(calls), rounds))
    for number in range(rounds):
        for offset in range(len(calls)):
            index = (number + offset) % len(calls)
            started = clock()
            calls[index]()
            seconds[index, number] = clock() - started
    return seconds


def summarize(seconds: Float[np.ndarray, "models rounds"], batch_size: int, length: int) -> list[Latency]:
    """Returns the figures of each model for one shape.

    Args:
      seconds: Times, the reference first.
      batch_size: Rows of the batch.
      length: Tokens of a row.
    """
    found = []
    for row in seconds:
        median = statistics.median(row.tolist())
        found.append(
            Latency(
                batch_size=batch_size,
                length=length,
                median_seconds=median,
                p90_seconds=float(np.quantile(row, 0.9)),
                rows_per_second=batch_size / median,
                speedup=float(np.median(seconds[0] / row)),
                rounds=seconds.shape[1],
            )
        )
    return found


def measure_speed(
    models: Sequence[Model],
    examples: Sequence[TokenizedExamples],
    batch_sizes: Sequence[int],
    lengths: Sequence[int],
    rounds: int,
) -> list[list[Latency]]:
    """Times forward passes of loaded models, from token ids on the host to results on the host.

    Every program is compiled and run once before the clock starts. A model that can not take a length is left out of its rounds.

    Args:
      models: The models, the reference first.
      examples: Texts as each model's tokens.
      batch_sizes: Rows of the batches.
      lengths: Tokens of a row; the reference takes all of them.
      rounds: Times that each model is timed with each shape.

    Returns:
      The figures of each model, by length and batch size.
    """
    found: list[list[Latency]] = [[] for _ in models]
    for length in lengths:
        fitting = [index for index, model in enumerate(models) if length <= model.config.max_length]
        for batch_size in batch_sizes:
            calls = [_call(models[index], examples[index], batch_size, length) for index in fitting]
            for call in calls:
                call()
            figures = summarize(interleave(calls, rounds), batch_size, length)
            for index, latency in zip(fitting, figures, strict=True):
                found[index].append(latency)
    return found


def _call(model: Model, examples: TokenizedExamples, batch_size: int, length: int) -> Callable[[], Any]:
    program, batch = forward_program(model), full_batch(model, examples, batch_size, length)
    return lambda: np.asarray(program(model.params, batch))


def model_products(model: Model, examples: TokenizedExamples, batch_size: int, length: int) -> dict[str, float]:
    """Returns the multiplications of one forward pass by type, as ``count_products`` counts them.

    Args:
      model: The model.
      examples: Texts as its tokens.
      batch_size: Rows of the batch.
      length: Tokens of a row.
    """
    batch = full_batch(model, examples, batch_size, length)
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), (model.params, batch))
    return count_products(forward_program(model), *shapes)
