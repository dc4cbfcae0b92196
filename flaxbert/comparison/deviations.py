"""How far a model has moved from the reference: hidden states after every block, outputs, and weights leaf by leaf."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.core.arrays import materialize
from flaxbert.core.trees import flatten_names
from flaxbert.errors import ConfigError
from flaxbert.inference import PooledVectors
from flaxbert.model import Model
from flaxbert.transforms.report import LeafReport, compare_leaf
from flaxbert.weights.sentence_transformers import SentencePooling

EMBEDDINGS = 0
"""Number of the hidden states before the first block."""

MOST_SCORED = 4
"""Tokens of a text whose words a masked language model scores."""

_SCORES_WORDS = ("fill-mask", "pretraining")
_SCORES_TOKENS = ("token-classification", "question-answering", "replaced-token-detection", "late-interaction")


@dataclasses.dataclass(frozen=True)
class LayerError:
    """How far the hidden states after one block are from the reference's.

    Attributes:
      layer: Number of the block from 1; 0 for the embeddings.
      reference_layer: Block of the reference that it is compared with.
      relative_error: Norm of the difference over the norm of the reference's states, over all real tokens.
    """

    layer: int
    reference_layer: int
    relative_error: float


@dataclasses.dataclass(frozen=True)
class WeightErrors:
    """How far the weights of a model are from the reference's.

    Attributes:
      leaves: One report per leaf that both have in one shape; bytes before are the reference's.
      left_out: Reason per leaf that has no counterpart.
    """

    leaves: tuple[LeafReport, ...]
    left_out: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """What a model makes of the probe texts.

    Attributes:
      states: Token vectors ``[tokens, embed]`` after the embeddings and every block, real tokens only.
      outputs: Scores of the head, of real tokens only, or pooled sentence vectors where the task has no head.
    """

    states: tuple[np.ndarray, ...]
    outputs: np.ndarray


def matching_layers(num_layers: int, num_reference_layers: int) -> tuple[int, ...]:
    """Returns the block of the reference that each block stands for, from 0, the embeddings, on.

    Where the model has fewer blocks, they are spread evenly: block ``i`` of ``n`` stands for block ``i * N / n``, as in students that are
    trained to copy every second or third block (Jiao et al., 2020, section 3.1).

    Args:
      num_layers: Blocks of the model.
      num_reference_layers: Blocks of the reference.

    Raises:
      ConfigError: The model has more blocks than the reference.
    """
    if num_layers > num_reference_layers:
        raise ConfigError(f"it has {num_layers} blocks and the reference {num_reference_layers}.")
    return tuple(
        round(index * num_reference_layers / num_layers) if num_layers else 0 for index in range(num_layers + 1)
    )


def relative_error(array: np.ndarray, reference: np.ndarray) -> float:
    """Returns ``|array - reference| / |reference|`` in Euclidean norms; 0 where both are 0.

    Args:
      array: The array.
      reference: What it should be, of the same shape.
    """
    difference = float(np.linalg.norm(np.subtract(array, reference, dtype=np.float64)))
    norm = float(np.linalg.norm(np.asarray(reference, np.float64)))
    return difference / norm if norm else (0.0 if difference == 0.0 else float("inf"))


def hidden_states(model: Model, batch: Mapping[str, Any]) -> HiddenStates:
    """Runs a model on a batch and keeps what every block gives.

    Args:
      model: The model.
      batch: From ``texts.padded_batch``.

    Returns:
      Hidden states and scores of the real tokens.
    """
    mask = np.asarray(batch["attention_mask"]).reshape(-1, batch["attention_mask"].shape[-1]) == 1
    if model.task in _SCORES_WORDS:  # the scores of all words at all tokens would be larger than the model
        places = np.arange(min(MOST_SCORED, int(mask.sum(axis=1).min())), dtype=np.int32)
        batch = {**batch, "masked_positions": np.tile(places, (len(mask), 1))}
    output = model.apply(model.params, batch, keep_hidden=True)
    states = tuple(np.asarray(state, np.float32)[mask] for state in output.hidden_states)
    if output.logits is None:
        pooling = model.pooling if model.pooling is not None else SentencePooling()
        vectors = PooledVectors(tuple(pooling.modes))(output, model.params, jax.tree.map(jnp.asarray, dict(batch)))
        return HiddenStates(states, np.asarray(vectors, np.float32))
    scores = np.asarray(output.logits, np.float32)
    return HiddenStates(states, scores[mask] if model.task in _SCORES_TOKENS else scores)


def layer_errors(found: HiddenStates, reference: HiddenStates) -> tuple[LayerError, ...]:
    """Returns the error after the embeddings and every block.

    Args:
      found: What the model makes of a batch.
      reference: What the reference makes of the same batch.

    Raises:
      ConfigError: The hidden states have other widths, or there are more blocks than in the reference.
    """
    widths = found.states[EMBEDDINGS].shape[-1], reference.states[EMBEDDINGS].shape[-1]
    if widths[0] != widths[1]:
        raise ConfigError(f"its hidden states have width {widths[0]}, the reference's {widths[1]}.")
    places = matching_layers(len(found.states) - 1, len(reference.states) - 1)
    return tuple(
        LayerError(layer, place, relative_error(found.states[layer], reference.states[place]))
        for layer, place in enumerate(places)
    )


def output_error(found: HiddenStates, reference: HiddenStates) -> float | None:
    """Returns the relative error of the head's scores, or None where they can not be compared.

    Args:
      found: As for ``layer_errors``.
      reference: The same.
    """
    if found.outputs.shape != reference.outputs.shape:
        return None
    return relative_error(found.outputs, reference.outputs)


def weight_errors(params: Mapping[str, Any], reference: Mapping[str, Any], same_layers: bool = True) -> WeightErrors:
    """Compares the dense weights of leaves that two trees have in common, one leaf at a time.

    Args:
      params: Tree of the model, typed leaves included.
      reference: Tree of the reference.
      same_layers: Whether blocks of one number are the same block; otherwise leaves of blocks are left out.

    Returns:
      The errors, and the reason for each leaf that has none.
    """
    mine, theirs = flatten_names(params), flatten_names(reference)
    leaves, left_out = [], {name: "the reference alone has it." for name in theirs if name not in mine}
    for name, leaf in mine.items():
        if name not in theirs:
            left_out[name] = "the reference does not have it."
        elif tuple(leaf.shape) != tuple(theirs[name].shape):
            left_out[name] = f"its shape is {tuple(leaf.shape)}, the reference's {tuple(theirs[name].shape)}."
        elif not same_layers and ".layers." in name:
            left_out[name] = "the blocks of the two models are not the same."
        else:
            leaves.append(_leaf_error(name, leaf, theirs[name]))
    return WeightErrors(tuple(leaves), left_out)


def _leaf_error(name: str, leaf: Any, reference: Any) -> LeafReport:
    weights, stored = (np.asarray(materialize(entry), np.float32) for entry in (reference, leaf))
    mask = getattr(leaf, "mask", None)
    share = 1.0 if mask is None else float(np.mean(mask))
    return compare_leaf(name, getattr(leaf, "kind", "dense"), reference, leaf, weights, stored, share)


def worst_leaves(leaves: Sequence[LeafReport], most: int) -> tuple[LeafReport, ...]:
    """Returns the leaves that moved most, the worst first, without those that did not move.

    Args:
      leaves: All leaves.
      most: Most leaves to return.
    """
    moved = [leaf for leaf in leaves if leaf.max_relative_error > 0]
    return tuple(sorted(moved, key=lambda leaf: -leaf.rms_relative_error)[:most])
