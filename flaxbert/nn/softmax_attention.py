"""Softmax attention as plain matrix products, with a backward pass of its own."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxbert.core.reductions import row_max, row_sum
from flaxbert.core.traced_mesh import rows_before
from flaxbert.nn.dropout import MaskPart

LONG = 1024
"""Queries from which on scores are computed in blocks, where weights are not dropped, no position scores are added, and blocks fit."""

BLOCK = 256
"""Queries, or keys in the backward pass, whose scores are held together then."""


def _batched_dot(left: jax.Array, right: jax.Array, right_axis: int) -> jax.Array:
    """Contracts the left operand's last axis, the fast form on CPU, for every batch and head."""
    dimensions = (((3,), (right_axis,)), ((0, 1), (0, 1)))
    return lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _swap(values: jax.Array) -> jax.Array:
    return jnp.swapaxes(values, -1, -2)


def _swap_by_dot(key: jax.Array) -> jax.Array:
    size = key.shape[-1]
    identity = jnp.broadcast_to(jnp.eye(size, dtype=key.dtype), (*key.shape[:-2], size, size))
    return _batched_dot(identity, key, 3).astype(key.dtype)


def _key_columns(key: jax.Array) -> jax.Array:
    """Swaps the last two axes; on CPU as a dot with the identity, which is exact.

    XLA:CPU folds a plain transpose, even one behind elementwise operations, into the next dot, which then contracts the
    left operand's first axis: slow in float32 and, in bfloat16, an error at run time.
    """
    return lax.platform_dependent(key, cpu=_swap_by_dot, default=_swap)


def softmax_attention(
    query: Float[Array, "batch heads queries head_dim"],
    key: Float[Array, "batch heads length head_dim"],
    value: Float[Array, "batch heads length head_dim"],
    bias: Float[Array, "batch 1 masked_queries length"],
    words: Any,
    rate: float,
    num_parts: int = 1,
    *,
    position_scores: Float[Array, "scored heads queries length"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch heads queries head_dim"]:
    """Returns ``dropout(softmax(scale * query @ key^T + position_scores + bias)) @ value`` (Vaswani et al., 2017, section 3.2.1).

    The backward pass computes the scores again, keys by queries, from the saved row maxima and sums, as in FlashAttention
    (Dao et al., 2022, appendix B): every product contracts the left operand's last axis, no large array is transposed unless
    there are position scores, and no weights are kept from the forward pass.

    Args:
      query: Queries in the compute type.
      key: Keys.
      value: Values.
      bias: float32, 0 where a key is visible and a large negative number where not; gets no gradient.
      words: Two random words for dropout of the weights, or which part of a mask is drawn from them (``MaskPart``), or None.
      rate: Share of dropped weights.
      num_parts: Parts that the batch is computed in, with the same result; XLA:CPU runs a batched product on one thread, but
        several of them side by side.
      position_scores: Added to the scores, for the whole batch or alike for all of it; gets a gradient.
      scale: Factor of the products; None: ``1 / sqrt(head_dim)``.

    Returns:
      The mixed values in the compute type.
    """
    batch, heads, length, width = query.shape
    factor = width**-0.5 if scale is None else scale
    whole = words
    if words is not None and not isinstance(words, MaskPart):
        whole = MaskPart(words, rows_before(batch * heads * length))
    bounds = [batch * part // num_parts for part in range(num_parts + 1)]
    parts = []
    for first, last in itertools.pairwise(bounds):
        arrays = [array[first:last] for array in (query, key, value, bias)]
        scores = position_scores
        if scores is not None and scores.shape[0] != 1:
            scores = scores[first:last]
        drawn = whole
        if whole is not None and first:
            before = first * (whole.num_heads or heads) * (whole.num_queries or length)
            drawn = dataclasses.replace(whole, first_row=whole.first_row + before)
        parts.append(_attend(*arrays, scores, drawn, rate, factor))
    return parts[0] if num_parts == 1 else jnp.concatenate(parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    position_scores: jax.Array | None,
    part: MaskPart | None,
    rate: float,
    scale: float,
) -> jax.Array:
    return _forward(query, key, value, bias, position_scores, part, rate, scale)[0]


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    position_scores: jax.Array | None,
    part: MaskPart | None,
    rate: float,
    scale: float,
) -> tuple[jax.Array, Any]:
    if _is_long(query, key, position_scores, part):
        return _forward_in_blocks(query, key, value, bias, scale)
    return _forward_at_once(query, key, value, bias, position_scores, part, rate, scale)


def _forward_at_once(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    position_scores: jax.Array | None,
    part: MaskPart | None,
    rate: float,
    scale: float,
) -> tuple[jax.Array, Any]:
    dtype = query.dtype
    scores = _batched_dot(query * jnp.asarray(scale, dtype), key, 3) + bias
    if position_scores is not None:
        scores = scores + position_scores.astype(jnp.float32)
    maximum = row_max(scores)
    weights = jnp.exp(scores - maximum).astype(dtype)
    inverse = 1.0 / row_sum(weights)
    if part is not None:
        inverse = inverse * (1.0 / (1.0 - rate))
        weights = jnp.where(part.keep(rate, weights.shape), weights, jnp.zeros((), dtype))
    mixed = (_batched_dot(weights, value, 2) * inverse).astype(dtype)
    return mixed, (query, key, value, bias, position_scores, part, maximum, inverse, mixed)


def _backward(
    rate: float, scale: float, residuals: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, jax.Array | None, None]:
    query, key, value, bias, position_scores, part, maximum, inverse, mixed = residuals
    if _is_long(query, key, position_scores, part):
        return _backward_in_blocks(residuals, scale, cotangent)
    dtype = query.dtype
    query = query * jnp.asarray(scale, dtype)
    cotangent = inverse * cotangent.astype(jnp.float32)
    delta = row_sum(cotangent * mixed.astype(jnp.float32)) * (1.0 if part is None else 1.0 - rate)
    cotangent = cotangent.astype(dtype)
    scores = _batched_dot(key, query, 3) + _swap(bias)
    if position_scores is not None:
        scores = scores + _swap(position_scores).astype(jnp.float32)
    weights = jnp.exp(scores - _swap(maximum))
    weights_gradient = _batched_dot(value, cotangent, 3)
    dropped = weights
    if part is not None:
        mask = part.keep(rate, weights.shape, transposed=True)
        dropped = jnp.where(mask, weights, jnp.float32(0.0))
        weights_gradient = jnp.where(mask, weights_gradient, jnp.float32(0.0))
    scores_gradient = (weights * (weights_gradient - _swap(delta))).astype(dtype)
    value_gradient = _batched_dot(dropped.astype(dtype), cotangent, 2).astype(dtype)
    key_gradient = _batched_dot(scores_gradient, query, 2).astype(dtype)
    query_gradient = _swap((_batched_dot(_key_columns(key), scores_gradient, 2) * jnp.float32(scale)).astype(dtype))
    position_gradient = None
    if position_scores is not None:
        summed = scores_gradient.astype(jnp.float32)
        if position_scores.shape[0] == 1:
            summed = jnp.sum(summed, axis=0, keepdims=True)
        position_gradient = _swap(summed).astype(position_scores.dtype)
    return query_gradient, key_gradient, value_gradient, None, position_gradient, None


def _is_long(query: jax.Array, key: jax.Array, position_scores: jax.Array | None, part: MaskPart | None) -> bool:
    if not isinstance(query.shape[2], int):  # symbolic, as exports are traced
        return False
    fits = query.shape[2] % BLOCK == 0 and key.shape[2] % BLOCK == 0
    return fits and query.shape[2] >= LONG and position_scores is None and part is None


def _to_blocks(array: jax.Array, axis: int) -> jax.Array:
    """Cuts an axis into blocks; their number becomes the first axis."""
    shape = (*array.shape[:axis], array.shape[axis] // BLOCK, BLOCK, *array.shape[axis + 1 :])
    return jnp.moveaxis(array.reshape(shape), axis, 0)


def _from_blocks(blocks: jax.Array, axis: int) -> jax.Array:
    joined = jnp.moveaxis(blocks, 0, axis)
    return joined.reshape(*joined.shape[:axis], -1, *joined.shape[axis + 2 :])


def _forward_in_blocks(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, scale: float
) -> tuple[jax.Array, Any]:
    """Does the same, one block of queries after the other."""
    by_query = bias.shape[2] > 1

    def run(block: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        visible = block[1] if by_query else bias
        mixed, (*_, maximum, inverse, _) = _forward_at_once(block[0], key, value, visible, None, None, 0.0, scale)
        return mixed, maximum, inverse

    blocks = (_to_blocks(query, 2), *((_to_blocks(bias, 2),) if by_query else ()))
    mixed, maximum, inverse = (_from_blocks(blocks, 2) for blocks in lax.map(run, blocks))
    return mixed, (query, key, value, bias, None, None, maximum, inverse, mixed)


def _backward_in_blocks(
    residuals: Any, scale: float, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, None, None]:
    """Does what ``_backward`` does, one block of keys after the other."""
    query, key, value, bias, _, _, maximum, inverse, mixed = residuals
    dtype = query.dtype
    query = query * jnp.asarray(scale, dtype)
    cotangent = inverse * cotangent.astype(jnp.float32)
    delta = _swap(row_sum(cotangent * mixed.astype(jnp.float32)))
    cotangent, maximum = cotangent.astype(dtype), _swap(maximum)

    def run(total: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        key, value, visible = block
        weights = jnp.exp(_batched_dot(key, query, 3) + visible - maximum)
        scores_gradient = (weights * (_batched_dot(value, cotangent, 3) - delta)).astype(dtype)
        value_gradient = _batched_dot(weights.astype(dtype), cotangent, 2).astype(dtype)
        key_gradient = _batched_dot(scores_gradient, query, 2).astype(dtype)
        return total + _batched_dot(_key_columns(key), scores_gradient, 2), (key_gradient, value_gradient)

    blocks = (_to_blocks(key, 2), _to_blocks(value, 2), _to_blocks(_swap(bias), 2))
    total, (key_gradient, value_gradient) = lax.scan(run, jnp.zeros(_swap(query).shape, jnp.float32), blocks)
    query_gradient = _swap((total * jnp.float32(scale)).astype(dtype))
    return query_gradient, _from_blocks(key_gradient, 2), _from_blocks(value_gradient, 2), None, None, None


_attend.defvjp(_forward, _backward)
