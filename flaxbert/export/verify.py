"""Comparison of an exported file with the model that it was made from."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from flaxbert.data.batches import collate
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import WeightsError
from flaxbert.export.engines import Engine
from flaxbert.export.signature import Signature, named_outputs

FLOAT_TOLERANCE = 1e-3
"""Largest difference of float32 exports, relative to the largest output: sums of thousands in another order differ by far less."""

INT8_TOLERANCE = 0.2
"""Largest root mean square of the differences of int8 exports, relative to that of the outputs: activations are rounded otherwise than
flaxbert rounds them, which moves outputs by a few percent. Where sums of products overflow, they move by half and more."""

SHAPES = ((1, 4), (2, 17), (3, 48))
"""Batch and length of the inputs that are compared; beside them one as long as allowed, up to ``LONGEST``."""

LONGEST = 512

_SAMPLE_ROWS = 4


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far one output is from flaxbert's.

    Attributes:
      shape: Shape of ``input_ids``.
      output: Name of the output.
      largest: Largest magnitude that flaxbert gives.
      difference: Largest absolute difference.
      deviation: Root mean square of the differences relative to that of what flaxbert gives.
    """

    shape: tuple[int, ...]
    output: str
    largest: float
    difference: float
    deviation: float

    @property
    def relative(self) -> float:
        """The largest difference relative to the largest magnitude."""
        return self.difference / max(self.largest, 1e-12)


def random_batches(signature: Signature, seed: int = 0) -> list[dict[str, Int[np.ndarray, "..."]]]:
    """Returns inputs of several shapes with random words, the last rows padded.

    Args:
      signature: The model as a function.
      seed: Seed of the words.
    """
    config, generator = signature.model.config, np.random.default_rng(seed)
    longest = min(config.max_length, LONGEST)
    shapes = dict.fromkeys([*((rows, min(length, longest)) for rows, length in SHAPES), (1, longest)])
    return [random_batch(signature, rows, length, generator) for rows, length in shapes]


def random_batch(
    signature: Signature, rows: int, length: int, generator: np.random.Generator
) -> dict[str, Int[np.ndarray, "..."]]:
    """Returns inputs with random words, the last of several rows half padded.

    Args:
      signature: The model as a function.
      rows: Number of rows.
      length: Tokens of each.
      generator: Where the words come from.
    """
    config = signature.model.config
    shape = (rows, 2, length) if signature.model.task == "multiple-choice" else (rows, length)
    ids = generator.integers(0, config.vocab_size, shape)
    real = np.ones(shape, np.int64)
    if rows > 1:
        real[-1, ..., max(1, length // 2) :] = 0
    ids = np.where(
        real == 1, np.where(ids == config.pad_token_id, (ids + 1) % config.vocab_size, ids), config.pad_token_id
    )
    types = (np.arange(length) >= length // 2).astype(np.int64) * real
    entities = np.zeros(shape, np.int64)
    entities[..., 0], entities[..., min(1, length - 1)] = 1, 2
    made = {"input_ids": ids, "attention_mask": real, "token_type_ids": types, "entity_mask": entities}
    return {name: made[name] for name in signature.inputs}


def sample_batches(examples: TokenizedExamples, signature: Signature) -> list[dict[str, Int[np.ndarray, "..."]]]:
    """Returns batches of sample texts, padded to the longest of each.

    Args:
      examples: Tokenized examples.
      signature: The model as a function.
    """
    batches = []
    for first in range(0, min(len(examples), 3 * _SAMPLE_ROWS), _SAMPLE_ROWS):
        rows = np.arange(first, min(first + _SAMPLE_ROWS, len(examples)))
        batch = collate(examples, rows, int(examples.lengths[rows].max()))
        zeros = np.zeros_like(batch["input_ids"])
        batches.append({name: np.asarray(batch.get(name, zeros), np.int64) for name in signature.inputs})
    return batches


def compare(engine: Engine, signature: Signature, batches: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Runs an engine and ``Model.apply`` on the same inputs.

    Args:
      engine: The engine with the exported file.
      signature: The model as a function.
      batches: Inputs by name.

    Returns:
      One entry for each batch and output; scores of padding are left out.

    Raises:
      WeightsError: An output has another shape.
    """
    model, found = signature.model, []
    for batch in batches:
        output = model.apply(model.params, batch)
        expected = named_outputs(model, output, {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()})
        exported, real = engine(batch), np.asarray(batch["attention_mask"]) == 1
        for name in signature.outputs:
            ours, theirs = np.asarray(expected[name], np.float32), np.asarray(exported[name], np.float32)
            if ours.shape != theirs.shape:
                raise WeightsError(
                    f"The exported output '{name}' has shape {theirs.shape}, but the model's is {ours.shape}."
                )
            if ours.shape[: real.ndim] == real.shape:
                ours, theirs = ours[real], theirs[real]
            found.append(_comparison(real.shape, name, ours, theirs))
    return found


def _comparison(shape: tuple[int, ...], name: str, ours: np.ndarray, theirs: np.ndarray) -> Comparison:
    largest = float(np.max(np.abs(ours), initial=0.0))
    if not np.isfinite(theirs).all():
        return Comparison(shape, name, largest, float("inf"), float("inf"))
    difference = float(np.max(np.abs(ours - theirs), initial=0.0))
    return Comparison(shape, name, largest, difference, float(_size(ours - theirs) / max(_size(ours), 1e-12)))


def _size(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64)))))


def to_table(comparisons: Sequence[Comparison]) -> str:
    """Returns the comparisons as a table of text.

    Args:
      comparisons: The comparisons.
    """
    width = max(len(entry.output) for entry in comparisons)
    lines = [
        f"{'inputs':>10}  {'output':<{width}}  {'largest':>8}  {'difference':>10}  {'relative':>8}  {'deviation':>9}"
    ]
    for entry in comparisons:
        shape = "x".join(map(str, entry.shape))
        lines.append(
            f"{shape:>10}  {entry.output:<{width}}  {entry.largest:8.4g}  {entry.difference:10.2g}  {entry.relative:8.2g}  {entry.deviation:9.2g}"
        )
    return "\n".join(lines)


def refuse_above(comparisons: Sequence[Comparison], tolerance: float, *, is_int8: bool, hint: str = "") -> None:
    """Checks that no output is further off than allowed.

    Args:
      comparisons: The comparisons.
      tolerance: Largest difference relative to the largest output; for int8 the largest deviation.
      is_int8: Whether it is int8.
      hint: What else the message says.

    Raises:
      WeightsError: An output is; the message has all figures.
    """
    word = "deviation" if is_int8 else "relative"
    worst = max(comparisons, key=lambda entry: getattr(entry, word))
    found = getattr(worst, word)
    if not found <= tolerance:
        raise WeightsError(
            f"The exported model differs from flaxbert's: the {word} difference of '{worst.output}' is {found:.2g}, above the tolerance "
            f"{tolerance:g}. Nothing was kept.{hint}\n{to_table(comparisons)}"
        )
