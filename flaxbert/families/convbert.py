"""ConvBERT (Jiang et al., 2020): half of the heads attend, half are convolutions whose kernels depend on the tokens.

Stock transformers convolves over padding too, so that its results for a text depend on how far it is padded; here padding
counts as zeros, which gives every text what stock transformers gives it alone.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core import axes
from flaxbert.core.precision import Precision
from flaxbert.core.rules import Rule
from flaxbert.errors import ConfigError
from flaxbert.families.base import TensorName
from flaxbert.families.config_json import FIELDS, ConfigMapping
from flaxbert.families.electra import ELECTRA
from flaxbert.families.electra import TENSORS as ELECTRA_TENSORS
from flaxbert.families.layout import (
    axis_rules_without,
    class_names,
    dense,
    make_family,
)
from flaxbert.families.work import LayerWork
from flaxbert.nn.attention import SelfAttention, attend
from flaxbert.nn.convolution import shifted
from flaxbert.nn.encoder import Block, Encoder
from flaxbert.nn.feed_forward import FeedForward
from flaxbert.nn.heads import HeadStyle
from flaxbert.nn.layers import Dense, multiply_groups, truncated_normal
from flaxbert.nn.network import Network
from flaxbert.nn.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class ConvBertOptions:
    """What ConvBERT alone has.

    Attributes:
      head_ratio: One of so many heads attends.
      kernel_size: Tokens under a convolution, an odd number.
      num_groups: Groups that the feed-forward layer is split into; 1 for none.
    """

    head_ratio: int = 2
    kernel_size: int = 9
    num_groups: int = 1

    def __post_init__(self) -> None:
        if self.head_ratio < 1 or self.num_groups < 1:
            raise ConfigError(f"head_ratio {self.head_ratio} and num_groups {self.num_groups} must be at least 1.")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(f"conv_kernel_size is {self.kernel_size}, but must be an odd number.")


def num_heads_of(config: ModelConfig) -> int:
    """Returns the number of heads that attend, which is also that of convolutions.

    Args:
      config: Architecture.

    Raises:
      ConfigError: The heads and convolutions do not fill the hidden size.
    """
    heads = max(1, config.num_attention_heads // config.own(ConvBertOptions).head_ratio)
    if config.hidden_size % (2 * heads):
        raise ConfigError(
            f"hidden_size {config.hidden_size} is not divisible by {heads} attention heads and as many convolutions."
        )
    return heads


class GroupedDense(nnx.Module):
    """A dense layer for each group of the last axis (Jiang et al., 2020, section 3.3).

    Args:
      in_size: Entries of the contracted axis.
      out_size: Entries of the new axis.
      num_groups: Groups of both.
      config: For the deviation of new weights.
      compute_dtype: Type of operands and result.
      rngs: Source of keys for new weights.
    """

    def __init__(
        self, in_size: int, out_size: int, num_groups: int, config: ModelConfig, compute_dtype: Any, rngs: nnx.Rngs
    ) -> None:
        if in_size % num_groups or out_size % num_groups:
            raise ConfigError(f"Widths {in_size} and {out_size} are not divisible by num_groups {num_groups}.")
        self.compute_dtype = compute_dtype
        shape = (num_groups, in_size // num_groups, out_size // num_groups)
        self.grouped = nnx.Param(truncated_normal(rngs.params(), shape, config.initializer_range))
        self.bias = nnx.Param(jnp.zeros((out_size,), jnp.float32))

    def __call__(self, inputs: Float[Array, "*batch in_axis"]) -> Float[Array, "*batch out_axis"]:
        """Returns the products plus bias in the compute type."""
        kernel = self.grouped.get_value().astype(self.compute_dtype)
        products = multiply_groups(inputs.astype(self.compute_dtype), kernel) + self.bias.get_value()
        return products.astype(self.compute_dtype)


class ConvBertFeedForward(FeedForward):
    """BERT's feed-forward layer, grouped where the config says so.

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        super().__init__(config, execution, rngs)
        groups, dtype = config.own(ConvBertOptions).num_groups, Precision(execution.precision).compute_dtype
        if groups > 1:
            self.up: Any = GroupedDense(config.hidden_size, config.intermediate_size, groups, config, dtype, rngs)
            self.down: Any = GroupedDense(config.intermediate_size, config.hidden_size, groups, config, dtype, rngs)


class Convolution(nnx.Module):
    """Span-based dynamic convolution: each head's kernel is made of the tokens under it (Jiang et al., 2020, section 3.2).

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        dtype, deviation = Precision(execution.precision).compute_dtype, config.initializer_range
        width, heads, size = config.hidden_size, num_heads_of(config), config.own(ConvBertOptions).kernel_size
        self.num_heads, self.size, self.compute_dtype = heads, size, dtype
        self.depthwise = nnx.Param(truncated_normal(rngs.params(), (size, 1, width), deviation))
        self.pointwise = nnx.Param(truncated_normal(rngs.params(), (1, width, width // 2), deviation))
        self.bias = nnx.Param(jnp.zeros((1, width // 2), jnp.float32))
        self.weights = Dense(width // 2, heads * size, deviation, dtype, rngs)
        self.value = Dense(width, width // 2, deviation, dtype, rngs)

    def __call__(
        self, hidden: Float[Array, "batch length embed"], query: Float[Array, "batch length half"], tokens: Tokens
    ) -> Float[Array, "batch length half"]:
        """Returns the convolved vectors, all heads side by side.

        Args:
          hidden: Hidden states.
          query: Queries of the attention, which the kernels are made of too.
          tokens: For what a token sees.
        """
        dtype, segments = self.compute_dtype, tokens.segment_ids
        taps = self.depthwise.get_value().astype(jnp.float32)
        span = sum(
            values.astype(jnp.float32) * taps[tap, 0] for tap, values in enumerate(shifted(hidden, segments, self.size))
        )
        point = self.pointwise.get_value()[0].astype(dtype)
        keys = jnp.dot(jnp.asarray(span).astype(dtype), point, preferred_element_type=jnp.float32)
        keys = (keys + self.bias.get_value()[0]).astype(dtype)
        scores = self.weights(keys * query).astype(jnp.float32)
        weights = jax.nn.softmax(scores.reshape(*scores.shape[:2], self.num_heads, self.size), axis=-1)
        values = self.value(hidden)
        values = values.reshape(*values.shape[:2], self.num_heads, -1)
        mixed = sum(
            rows.astype(jnp.float32) * weights[..., tap : tap + 1]
            for tap, rows in enumerate(shifted(values, segments, self.size))
        )
        return jnp.asarray(mixed).astype(dtype).reshape(query.shape)


class MixedAttention(SelfAttention):
    """Attention of half width beside convolutions, with output projection, residual and norm.

    Args:
      config: Architecture.
      execution: Precision and attention implementation.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        super().__init__(config, execution, rngs)
        dtype, width = Precision(execution.precision).compute_dtype, config.hidden_size
        self.num_heads = num_heads_of(config)
        for name in ("query", "key", "value"):
            setattr(self, name, Dense(width, width // 2, config.initializer_range, dtype, rngs))
        self.output = Dense(width, width, config.initializer_range, dtype, rngs)
        self.convolution = Convolution(config, execution, rngs)

    def mix(
        self, hidden: Float[Array, "batch length embed"], tokens: Tokens, shared: Any, key: Any
    ) -> Float[Array, "batch length embed"]:
        """Returns what attention and convolutions gather, side by side."""
        flat = self.query(hidden)
        query, keys, values = (
            jnp.swapaxes(array.reshape(*array.shape[:2], self.num_heads, -1), 1, 2)
            for array in (flat, self.key(hidden), self.value(hidden))
        )
        rate = self.config.attention_dropout_rate
        mixed = jnp.swapaxes(attend(query, keys, values, tokens, self.execution, rate, key), 1, 2)
        return jnp.concatenate([mixed.reshape(flat.shape), self.convolution(hidden, flat, tokens)], axis=-1)


class ConvBertBlock(Block):
    """A block with ConvBERT's halves."""

    attention_type = MixedAttention
    feed_forward_type = ConvBertFeedForward


_OURS, _THEIRS = "encoder.layers.{layer}", "encoder.layer.{layer}"
_CONVOLUTION, _SELF = f"{_OURS}.attention.convolution", f"{_THEIRS}.attention.self"


def _is_grouped(config: ModelConfig) -> bool:
    return config.own(ConvBertOptions).num_groups > 1


def _feed_forward() -> tuple[TensorName, ...]:
    names = {f"{_OURS}.feed_forward.up": f"{_THEIRS}.intermediate.dense.weight"}
    names[f"{_OURS}.feed_forward.down"] = f"{_THEIRS}.output.dense.weight"
    entries = []
    for leaf, tensor in names.items():
        entries.append(
            TensorName(f"{leaf}.kernel", tensor, "transpose", applies=lambda config: not _is_grouped(config))
        )
        entries.append(TensorName(f"{leaf}.grouped", tensor, applies=_is_grouped))
    return tuple(entries)


TENSORS: tuple[TensorName, ...] = (
    *(
        entry
        for entry in ELECTRA_TENSORS
        if not entry.leaf.endswith(("feed_forward.up.kernel", "feed_forward.down.kernel"))
    ),
    *_feed_forward(),
    TensorName(f"{_CONVOLUTION}.depthwise", f"{_SELF}.key_conv_attn_layer.depthwise.weight", "transpose"),
    TensorName(f"{_CONVOLUTION}.pointwise", f"{_SELF}.key_conv_attn_layer.pointwise.weight", "transpose"),
    TensorName(f"{_CONVOLUTION}.bias", f"{_SELF}.key_conv_attn_layer.bias", "transpose"),
    *dense(f"{_CONVOLUTION}.weights", f"{_SELF}.conv_kernel_layer"),
    *dense(f"{_CONVOLUTION}.value", f"{_SELF}.conv_out_layer"),
)

_ATTENTION = r"encoder\.layers\.\d+\.attention\."
_RULES: tuple[Rule[tuple[str, ...]], ...] = (
    Rule(_ATTENTION + r"convolution\.depthwise", ("taps", "single", axes.EMBED)),
    Rule(_ATTENTION + r"convolution\.pointwise", ("single", axes.EMBED, "half")),
    Rule(_ATTENTION + r"convolution\.bias", ("single", "half")),
    Rule(_ATTENTION + r"convolution\.weights\.kernel", ("half", "all_taps")),
    Rule(_ATTENTION + r"convolution\.weights\.bias", ("all_taps",)),
    Rule(_ATTENTION + r"(convolution\.value|query|key|value)\.kernel", (axes.EMBED, "half")),
    Rule(_ATTENTION + r"(convolution\.value|query|key|value)\.bias", ("half",)),
    Rule(r"encoder\.layers\.\d+\.feed_forward\.up\.grouped", ("groups", "group_embed", "group_mlp"), optional=True),
    Rule(r"encoder\.layers\.\d+\.feed_forward\.down\.grouped", ("groups", "group_mlp", "group_embed"), optional=True),
    *(
        dataclasses.replace(rule, optional=True) if "feed_forward" in rule.pattern else rule
        for rule in axis_rules_without("query|key|value")
    ),
)


def _summarised_first(config: ModelConfig, task: str) -> dict[str, Any]:
    if task != "multiple-choice":
        return {}
    return {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"}


CONFIG = ConfigMapping(
    "convbert",
    class_names("ConvBert"),
    {"pad_token_id": 1},
    fields={**FIELDS, "embedding_size": ("embedding_size", int)},
    options=ConvBertOptions,
    option_fields={
        "head_ratio": ("head_ratio", int),
        "conv_kernel_size": ("kernel_size", int),
        "num_groups": ("num_groups", int),
    },
    extend=_summarised_first,
)


def layer_work(config: ModelConfig, task: str) -> tuple[LayerWork, ...]:
    """Returns the work of every layer: half of the width attends, half is convolved.

    Args:
      config: Architecture.
      task: Not used.
    """
    del task
    options, width = config.own(ConvBertOptions), config.hidden_size
    half, taps = width // 2, options.kernel_size
    attention = 3.0 * width * half
    # Depthwise and pointwise keys, kernels of every head, values, and their weighted sum.
    convolution = taps * width + width * half + half * num_heads_of(config) * taps + width * half + taps * half
    inner = [2 * width * layer.intermediate_size / options.num_groups for layer in config.layer_sizes]
    return tuple(LayerWork(attention + convolution, width * width + size, 2.0 * half) for size in inner)


def unprunable(config: ModelConfig) -> dict[str, str]:
    """Returns what can not be removed from a model, with the reason.

    Args:
      config: Architecture.
    """
    reasons = {"heads": "the convolutions beside its heads are made of the queries of all heads"}
    if _is_grouped(config):
        reasons["neurons"] = "its feed-forward layers are grouped, and all groups must stay equally wide"
    return reasons


CONVBERT = make_family(
    CONFIG,
    prefix="convbert",
    tensors=TENSORS,
    tied=ELECTRA.tied,
    axis_rules=_RULES,
    layer_work=layer_work,
    network=functools.partial(
        Network,
        style=HeadStyle(
            classifier_activation="hidden_act",
            choice_activation="gelu",
            drops_classifier_input=True,
            masked_lm_activation="gelu",
            has_pooler=False,
        ),
        encoder=functools.partial(Encoder, block=ConvBertBlock),
    ),
    own_axes={
        "single": lambda config: 1,
        "taps": lambda config: config.own(ConvBertOptions).kernel_size,
        "half": lambda config: config.hidden_size // 2,
        "all_taps": lambda config: num_heads_of(config) * config.own(ConvBertOptions).kernel_size,
        "groups": lambda config: config.own(ConvBertOptions).num_groups,
        "group_embed": lambda config: config.hidden_size // config.own(ConvBertOptions).num_groups,
        "group_mlp": lambda config: config.intermediate_size // config.own(ConvBertOptions).num_groups,
    },
    stock_reads_padding=True,
    unprunable=unprunable,
)
