"""Growing and shrinking the vocabulary of a parameter tree."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from flaxbert.architecture import ModelConfig
from flaxbert.core.arrays import Params, SparseArray, is_quantized, is_typed
from flaxbert.core.axes import VOCAB
from flaxbert.core.trees import flatten_names, unflatten_names
from flaxbert.errors import ConfigError, RuleError
from flaxbert.transforms.leaves import place_like
from flaxbert.transforms.report import CompressionReport, compare_trees

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
        leaves[name] = place_like(table[:size], leaves[name])
    return unflatten_names(leaves)


def _take(leaf: Any, axis: int, kept: np.ndarray) -> Any:
    def cut(array: Any) -> Any:
        return place_like(np.take(np.asarray(array), kept, axis=axis), array)

    if isinstance(leaf, SparseArray):
        return SparseArray(values=cut(leaf.values), mask=cut(leaf.mask))
    return cut(leaf)


def keep_tokens(
    config: ModelConfig,
    params: Mapping[str, Any],
    leaf_axes: Mapping[str, Sequence[str]],
    kept: Int[np.ndarray, "kept"],
) -> tuple[ModelConfig, Params, CompressionReport]:
    """Drops the rows of all tokens but some, which are numbered anew in their order.

    Args:
      config: Architecture.
      params: Tree of named leaves.
      leaf_axes: Axis names by leaf name, from the family.
      kept: Ids of the tokens, rising.

    Returns:
      The config, with the numbers of its special tokens, the tree under the same names, and a report per leaf.

    Raises:
      ConfigError: The ids are not rising numbers of the vocabulary, padding is not among them, or its number would change where positions are
        counted from it.
      RuleError: A table is quantized.
    """
    kept = np.asarray(kept, np.int64)
    if not kept.size or (np.diff(kept) <= 0).any() or kept[0] < 0 or kept[-1] >= config.vocab_size:
        raise ConfigError(f"Kept tokens must be rising ids from 0 to {config.vocab_size - 1}, and at least one.")
    places = {int(old): new for new, old in enumerate(kept)}
    if config.pad_token_id not in places:
        raise ConfigError(f"Padding has id {config.pad_token_id}, which is not among the {len(kept)} kept tokens.")
    if config.position_offset and places[config.pad_token_id] != config.pad_token_id:
        raise ConfigError(
            f"Positions are counted from the id of padding, {config.pad_token_id}; keep all tokens before it."
        )
    leaves = flatten_names(params)
    for name, leaf in leaves.items():
        if VOCAB not in leaf_axes[name]:
            continue
        if is_quantized(leaf):
            raise RuleError(f"'{name}' is {leaf.kind}: prune before you quantize, from the model as it was trained.")
        leaves[name] = _take(leaf, leaf_axes[name].index(VOCAB), kept)
    extra = {
        key: places.get(value, value) if key.endswith("_token_id") and isinstance(value, int) else value
        for key, value in config.extra.items()
    }
    smaller = config.replace(vocab_size=len(kept), pad_token_id=places[config.pad_token_id], extra=extra)
    small = unflatten_names(leaves)
    notes = (f"{len(kept)} of {config.vocab_size} tokens are left.",)
    return smaller, small, compare_trees("vocabulary", params, small, notes=notes)
