"""Multi-head self-attention and its implementations, chosen by one argument.

``xla`` runs everywhere; ``cudnn`` is NVIDIA's fused kernel; ``splash`` is the Pallas kernel of TPUs. All three see the
same mask: key positions that are padding are hidden, and in packed batches a token sees its own segment only.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.axes import Size
from flaxbert.core.precision import Precision
from flaxbert.core.runtime import num_threads
from flaxbert.errors import ConfigError
from flaxbert.nn.attention_capture import keep
from flaxbert.nn.dropout import MaskPart, dropout, fold, key_words
from flaxbert.nn.layers import Dense, LayerNorm
from flaxbert.nn.softmax_attention import softmax_attention
from flaxbert.nn.split_length import first_token, is_on_mesh, mix_over_devices, sequence_ways
from flaxbert.nn.tokens import Tokens

HIDDEN_BIAS = -1e30
"""Added to scores of hidden keys; finite, so that a row without any visible key gives no NaN."""

SPLASH_BLOCK = 128
"""Lengths that the splash kernel takes are multiples of this number of TPU lanes."""

MOST_ATTENTION_PARTS = 8
"""Each part is compiled for itself; more of them would cost more time to compile than they save."""

SPLASH_LENGTH = 1024
"""From this length on auto prefers the splash kernel on TPU; below, XLA's own attention is as fast."""


def attention_bias(
    segment_ids: Int[Array, "batch length"], packed: bool, query_ids: Int[Array, "batch queries"] | None = None
) -> Float[Array, "batch 1 masked_queries length"]:
    """Turns segment ids into a bias that is added to attention scores.

    Args:
      segment_ids: 0 for padding, else the number of the token's segment; an attention mask is the case of one segment.
      packed: Whether there can be several segments, so that queries differ in what they see.
      query_ids: Segment ids of the queries, where they are not those of all keys.

    Returns:
      0 where a key is visible, ``HIDDEN_BIAS`` where it is hidden; ``masked_queries`` is 1 unless packed.
    """
    keys, queries = segment_ids[:, None, None, :], segment_ids if query_ids is None else query_ids
    visible = (keys != 0) & (keys == queries[:, None, :, None]) if packed else keys != 0
    return jnp.where(visible, jnp.float32(0.0), jnp.float32(HIDDEN_BIAS))


def cudnn_attention(
    query: Float[Array, "batch heads queries head_dim"],
    key: Float[Array, "batch heads length head_dim"],
    value: Float[Array, "batch heads length head_dim"],
    segment_ids: Int[Array, "batch length"],
    packed: bool,
    position_scores: Float[Array, "scored heads queries length"] | None = None,
    scale: float | None = None,
    query_ids: Int[Array, "batch queries"] | None = None,
) -> Float[Array, "batch heads queries head_dim"]:
    """Fused attention by cuDNN on NVIDIA GPUs; half precision only, without dropout of attention weights.

    Args:
      query: Queries.
      key: Keys.
      value: Values.
      segment_ids: As for ``attention_bias``.
      packed: As for ``attention_bias``.
      position_scores: As for ``softmax_attention``.
      scale: As for ``softmax_attention``.
      query_ids: As for ``attention_bias``.

    Returns:
      The mixed values.
    """
    smallest = float(jnp.finfo(query.dtype).min) / 2  # float16 has no -1e30; infinities would turn padded rows into NaN
    bias = jnp.maximum(attention_bias(segment_ids, packed, query_ids), jnp.float32(smallest))
    if position_scores is not None:
        bias = jnp.maximum(bias + position_scores.astype(jnp.float32), jnp.float32(smallest))
    bias = bias.astype(query.dtype)
    bias = jnp.broadcast_to(bias, (*bias.shape[:2], query.shape[2], key.shape[2]))
    query, key, value = (jnp.swapaxes(array, 1, 2) for array in (query, key, value))
    mixed = jax.nn.dot_product_attention(query, key, value, bias=bias, scale=scale, implementation="cudnn")
    return jnp.swapaxes(mixed, 1, 2)


def splash_attention(
    query: Float[Array, "batch heads queries head_dim"],
    key: Float[Array, "batch heads length head_dim"],
    value: Float[Array, "batch heads length head_dim"],
    segment_ids: Int[Array, "batch length"],
    interpret: bool = False,
    query_ids: Int[Array, "batch queries"] | None = None,
) -> Float[Array, "batch heads queries head_dim"]:
    """Blockwise attention by the Pallas splash kernel on TPUs, without dropout of attention weights.

    Args:
      query: Queries; their number and that of the keys must be multiples of ``SPLASH_BLOCK``.
      key: Keys.
      value: Values.
      segment_ids: As for ``attention_bias``.
      interpret: Run the kernel in Python, for tests without a TPU.
      query_ids: As for ``attention_bias``.

    Returns:
      The mixed values.

    Raises:
      ConfigError: A number of tokens is no multiple of ``SPLASH_BLOCK``.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    heads, queries, length = query.shape[1], query.shape[2], key.shape[2]
    if length % SPLASH_BLOCK or queries % SPLASH_BLOCK:
        raise ConfigError(
            f"Splash attention takes lengths that are multiples of {SPLASH_BLOCK}, not {queries}, on every device; "
            "choose such length buckets, a smaller mesh.sequence or attention 'xla'."
        )
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((queries, length))] * heads)
    kernel = splash_attention_kernel.make_splash_mha(mask=mask, head_shards=1, q_seq_shards=1, interpret=interpret)
    scale = jnp.asarray(query.shape[-1] ** -0.5, query.dtype)

    def one(query: Any, key: Any, value: Any, query_ids: Any, ids: Any) -> Any:
        segments = splash_attention_kernel.SegmentIds(q=query_ids, kv=ids)
        return kernel(query, key, value, segment_ids=segments)

    query_ids = segment_ids if query_ids is None else query_ids
    return jax.vmap(one)(query * scale, key, value, query_ids, segment_ids).astype(query.dtype)


def choose_attention(
    name: str, compute_dtype: Any, length: Size, drops_weights: bool, platform: str, scores_positions: bool = False
) -> str:
    """Resolves ``auto`` and checks an explicit choice.

    Args:
      name: auto, xla, cudnn or splash.
      compute_dtype: Type of queries, keys and values.
      length: Tokens per row.
      drops_weights: Whether attention weights are dropped out in this call.
      platform: Platform of the default device: cpu, gpu or tpu.
      scores_positions: Whether scores of positions are added, which splash does not take.

    Returns:
      xla, cudnn or splash.

    Raises:
      ConfigError: The explicit choice can not run here.
    """
    half = compute_dtype in (jnp.bfloat16, jnp.float16)
    if name == "auto":
        if drops_weights:
            return "xla"
        if platform in ("gpu", "cuda") and half:
            return "cudnn"
        fits = length >= SPLASH_LENGTH and length % (SPLASH_BLOCK * sequence_ways()) == 0 and not scores_positions
        return "splash" if platform == "tpu" and fits else "xla"
    if name != "xla" and drops_weights:
        raise ConfigError(
            f"Attention '{name}' can not drop attention weights; set model.attention_dropout_rate 0 or use 'xla'."
        )
    if name == "cudnn" and (platform not in ("gpu", "cuda") or not half):
        raise ConfigError(
            f"Attention 'cudnn' needs an NVIDIA GPU and half precision, not {platform} in {compute_dtype}."
        )
    if name == "splash" and platform != "tpu":
        raise ConfigError(f"Attention 'splash' needs a TPU, not {platform}; use 'auto' or 'xla'.")
    if name == "splash" and scores_positions:
        raise ConfigError("Attention 'splash' can not add scores of positions, which this family has; use 'auto'.")
    return name


def _platform() -> str:
    """Returns the platform that is compiled for: that of the mesh, which may not be there, else of the default device."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return jax.default_backend() if device is None else device.platform


def num_attention_parts(batch: Size, platform: str, trains: bool) -> int:
    """Returns in how many parts softmax attention computes a batch: on one CPU device, one for each thread.

    Over a mesh the batch is split already, and cutting it once more would move it between devices. A training step takes a
    fifth longer to compile in two parts and gains next to nothing from the second thread, so it is cut for more threads only.

    Args:
      batch: Rows of the batch.
      platform: Platform of the default device.
      trains: Whether the call belongs to a training step.
    """
    threads = num_threads()
    if not isinstance(batch, int):  # symbolic, as exports are traced
        return 1
    if platform != "cpu" or jax.sharding.get_abstract_mesh().size > 1 or (trains and threads <= 2):
        return 1
    return min(batch, threads, MOST_ATTENTION_PARTS)


def attend(
    query: Float[Array, "batch heads length head_dim"],
    key: Float[Array, "batch heads length head_dim"],
    value: Float[Array, "batch heads length head_dim"],
    tokens: Tokens,
    execution: Execution,
    rate: float,
    dropout_key: Any,
    *,
    position_scores: Float[Array, "scored heads length length"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch heads length head_dim"]:
    """Mixes values by the implementation that fits.

    Args:
      query: Queries in the compute type.
      key: Keys.
      value: Values.
      tokens: Which tokens see each other.
      execution: The implementation asked for.
      rate: Share of dropped weights where there is a dropout key.
      dropout_key: Dropout key, or None.
      position_scores: As for ``softmax_attention``.
      scale: As for ``softmax_attention``.

    Returns:
      The mixed values.
    """
    keep(query, key, value)
    rate = rate if dropout_key is not None else 0.0
    scored = position_scores is not None
    name = choose_attention(execution.attention, query.dtype, query.shape[2], rate > 0.0, _platform(), scored)
    mix = functools.partial(_mix, name, tokens.packed, rate, scale)
    # The splash kernel can not be split by the compiler; where tokens of a row lie on several devices, no kernel can.
    if sequence_ways() > 1 or (name == "splash" and is_on_mesh()):
        words = key_words(dropout_key) if rate > 0.0 else None
        return mix_over_devices(mix, query, key, value, tokens.segment_ids, position_scores, words)
    if name == "xla":
        bias = attention_bias(tokens.segment_ids, tokens.packed)
        return attend_with_bias(
            query, key, value, bias, rate, dropout_key, position_scores=position_scores, scale=scale
        )
    return mix(query, key, value, tokens.segment_ids, tokens.segment_ids, position_scores, None)


def _mix(
    name: str,
    packed: bool,
    rate: float,
    scale: float | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_ids: jax.Array,
    key_ids: jax.Array,
    position_scores: jax.Array | None,
    part: MaskPart | None,
) -> jax.Array:
    """Mixes the values of whole rows for the queries of one device."""
    if name == "cudnn":
        return cudnn_attention(query, key, value, key_ids, packed, position_scores, scale, query_ids)
    if name == "splash":
        if scale is not None:
            query = query * jnp.asarray(scale * query.shape[-1] ** 0.5, query.dtype)
        return splash_attention(query, key, value, key_ids, query_ids=query_ids)
    bias = attention_bias(key_ids, packed, query_ids)
    return softmax_attention(query, key, value, bias, part, rate, position_scores=position_scores, scale=scale)


def attend_with_bias(
    query: Float[Array, "batch heads queries head_dim"],
    key: Float[Array, "batch heads length head_dim"],
    value: Float[Array, "batch heads length head_dim"],
    bias: Float[Array, "batch 1 masked_queries length"],
    rate: float,
    dropout_key: Any,
    *,
    position_scores: Float[Array, "scored heads queries length"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch heads queries head_dim"]:
    """Mixes values by softmax attention whose visible keys a bias gives, in as many parts as fit the machine.

    Args:
      query: Queries in the compute type.
      key: Keys.
      value: Values.
      bias: As for ``softmax_attention``.
      rate: Share of dropped weights where there is a dropout key.
      dropout_key: Dropout key, or None.
      position_scores: As for ``softmax_attention``.
      scale: As for ``softmax_attention``.

    Returns:
      The mixed values.
    """
    rate = rate if dropout_key is not None else 0.0
    words = key_words(dropout_key) if rate > 0.0 else None
    parts = num_attention_parts(query.shape[0], _platform(), dropout_key is not None)
    return softmax_attention(query, key, value, bias, words, rate, parts, position_scores=position_scores, scale=scale)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with output projection, residual and norm.

    Args:
      config: Architecture.
      execution: Precision and attention implementation.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        dtype = Precision(execution.precision).compute_dtype
        width, deviation = config.attention_size, config.initializer_range
        self.config = config
        self.execution = execution
        self.query = Dense(config.hidden_size, width, deviation, dtype, rngs)
        self.key = Dense(config.hidden_size, width, deviation, dtype, rngs)
        self.value = Dense(config.hidden_size, width, deviation, dtype, rngs)
        self.output = Dense(width, config.hidden_size, deviation, dtype, rngs)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon, dtype)

    def mix(
        self, hidden: Float[Array, "batch length embed"], tokens: Tokens, shared: Any, key: Any
    ) -> Float[Array, "batch length attention"]:
        """Returns what each token gathers from the tokens that it sees, all heads side by side.

        Args:
          hidden: Hidden states.
          tokens: Which tokens see each other.
          shared: What the encoder computed once for all blocks; here scores of positions, or None.
          key: Dropout key, or None.
        """
        batch, length, _ = hidden.shape
        config = self.config
        query, keys, value = (
            layer.by_heads(hidden, config.num_attention_heads) for layer in (self.query, self.key, self.value)
        )
        rate = config.attention_dropout_rate
        mixed = attend(query, keys, value, tokens, self.execution, rate, key, position_scores=shared)
        return jnp.swapaxes(jnp.asarray(mixed), 1, 2).reshape(batch, length, config.attention_size)

    def __call__(
        self,
        hidden: Float[Array, "batch length embed"],
        tokens: Tokens,
        shared: Any,
        key: Any,
        first_only: bool = False,
    ) -> Float[Array, "batch tokens embed"]:
        """Returns ``norm(hidden + dropout(output(mix(hidden))))``, of the first token only where asked for."""
        mixed, length = self.mix(hidden, tokens, shared, fold(key, 0)), hidden.shape[1]
        if first_only:
            mixed, hidden = first_token(mixed), first_token(hidden)
        dropped = dropout(self.output(mixed), fold(key, 1), self.config.hidden_dropout_rate, length)
        return self.norm(hidden + dropped)
