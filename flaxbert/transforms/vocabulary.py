"""Growing and shrinking the vocabulary of a parameter tree."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxbert.core.arrays import Params, is_typed
from flaxbert.core.trees import flatten_names, unflatten_names
from flaxbert.errors import ConfigError

VOCABULARY_LEAVES = ("embeddings.word.embedding", "masked_lm.bias")
"""Leaves with one entry for each token along their first axis."""


def resize_vocabulary(params: Mapping[str, Any], size: int) -> Params:
    """Gives a model room for more tokens, or takes the last ones away.

    New rows are the mean of the old ones, so that new tokens start with the score of an average token instead of one that
    towers over all others (Hewitt, 2021).

    Args:
      params: Parameter tree.
      size: Number of tokens afterwards.

    Returns:
      The tree under the same names; the config needs ``vocab_size`` replaced too.

    Raises:
      ConfigError: The size is less than 1, or the embedding is stored in a compressed form.
    """
    if size < 1:
        raise ConfigError(f"A vocabulary of {size} tokens is too small; name a size of at least 1.")
    leaves = flatten_names(params)
    for name in VOCABULARY_LEAVES:
        if name not in leaves:
            continue
        table = leaves[name]
        if is_typed(table):
            raise ConfigError(
                f"'{name}' is stored as {table.kind}; resize the vocabulary before compressing the model."
            )
        library = np if isinstance(table, np.ndarray) else jnp
        missing = size - table.shape[0]
        if missing > 0:
            mean = library.mean(table, axis=0, keepdims=True).astype(table.dtype)
            table = library.concatenate([table, library.repeat(mean, missing, axis=0)])
        leaves[name] = table[:size]
    return unflatten_names(leaves)
