"""Pooling of token vectors in numpy, for engines that return tokens; the same as ``nn.heads.pool``."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def pool_tokens(
    hidden: Float[np.ndarray, "rows length embed"], mask: Int[np.ndarray, "rows length"], modes: Sequence[str]
) -> Float[np.ndarray, "rows pooled"]:
    """Returns one vector a row, those of several modes side by side.

    Args:
      hidden: Vectors of tokens.
      mask: 1 for the tokens that are pooled.
      modes: Names of modes, as ``nn.heads.pool`` has them.
    """
    return np.concatenate([_pool(hidden, mask, mode) for mode in modes], axis=-1)


def _pool(hidden: np.ndarray, mask: np.ndarray, mode: str) -> np.ndarray:
    if mode == "cls":
        return hidden[:, 0]
    weights = mask.astype(np.float32)[:, :, None]
    if mode == "max":
        return np.where(weights > 0, hidden, np.float32(-1e9)).max(axis=1)
    places = np.arange(hidden.shape[1])
    if mode == "lasttoken":
        return hidden[np.arange(len(hidden)), (places * (mask > 0)).max(axis=1)]
    if mode == "weightedmean":
        weights = weights * (places + 1).astype(np.float32)[None, :, None]
    total = np.maximum(weights.sum(axis=1), np.float32(1e-9))
    divisor = np.sqrt(total) if mode == "mean_sqrt_len_tokens" else total
    return (hidden * weights).sum(axis=1) / divisor
