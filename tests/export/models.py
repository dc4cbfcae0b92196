"""Small models for the tests of exports, with more positions than any folding or vector width."""

import functools

import numpy as np

from flaxbert.core.trees import map_leaves
from flaxbert.model import Model
from flaxbert.transforms import quantize
from flaxbert.weights.sentence_transformers import SentencePooling
from tests.nn.models import small_batch, small_config, small_params

POSITIONS = 48
LENGTHS = ((17, 33, 5), (1,))
"""Real tokens of the rows of each batch that exports are run on."""


@functools.lru_cache(maxsize=16)
def small_model(family="bert", task="token-classification", **changes):
    """A float32 model of a family."""
    config = small_config(family, task, **{"max_position_embeddings": POSITIONS, **changes})
    pooling = SentencePooling(("mean", "cls"), normalize=True) if task == "sentence-similarity" else None
    return Model(config, small_params(config, task), task, pooling=pooling)


@functools.lru_cache(maxsize=4)
def wide_model():
    """A BERT whose matrices are wide enough for int8 to be near float32."""
    return small_model("bert", "sequence-classification", hidden_size=64, intermediate_size=128, num_attention_heads=2)


def quantized(model, small_codes=False):
    """The model with int8 leaves, with codes of at most 63 where sums of byte products must not overflow on any processor."""
    from flaxbert.export.export import reduce_range

    params = quantize(model.params)[0]
    return model.replace(params=map_leaves(lambda _, leaf: reduce_range(leaf), params) if small_codes else params)


def batches(model, lengths=LENGTHS):
    """Padded batches of several shapes, with the inputs that the exported task has."""
    task = model.task
    if task in ("multiple-choice", "relation-classification"):
        lengths = tuple((*rows, *rows)[: max(2, 2 * (len(rows) // 2))] for rows in lengths)
        lengths = tuple(rows if min(rows) > 3 else tuple(max(size, 4) for size in rows) for rows in lengths)
    return [small_batch(model.config, rows, task=task) for rows in lengths]


def inputs_of(batch, signature):
    """The inputs of a signature, as engines take them."""
    return {name: np.asarray(batch[name], np.int64) for name in signature.inputs}
