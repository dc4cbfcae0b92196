"""DeBERTa v2 and v3 (He et al., 2021): distances in logarithmic buckets, and a convolution after the first block of v2."""

import functools

from flaxbert.core import axes
from flaxbert.core.rules import Rule
from flaxbert.families.base import TensorName
from flaxbert.families.deberta import (
    DISCRIMINATOR,
    SHARED_RULES,
    SHARED_TENSORS,
    TIED,
    DebertaNetwork,
    adapt_config,
    layer_work,
    make_mapping,
    write_json,
)
from flaxbert.families.layout import AXIS_RULES, class_names, dense, make_family, norm
from flaxbert.nn.disentangled_attention import DisentangledOptions
from flaxbert.nn.disentangled_encoder import DisentangledEncoder

_OURS, _THEIRS = "encoder.layers.{layer}.attention", "encoder.layer.{layer}.attention.self"

TENSORS: tuple[TensorName, ...] = (
    *SHARED_TENSORS,
    *norm("encoder.distance_norm", "encoder.LayerNorm"),
    TensorName("encoder.convolution.kernel", "encoder.conv.conv.weight", "transpose"),
    TensorName("encoder.convolution.bias", "encoder.conv.conv.bias"),
    *norm("encoder.convolution.norm", "encoder.conv.LayerNorm"),
    *dense(f"{_OURS}.query", f"{_THEIRS}.query_proj"),
    *dense(f"{_OURS}.key", f"{_THEIRS}.key_proj"),
    *dense(f"{_OURS}.value", f"{_THEIRS}.value_proj"),
    *dense(f"{_OURS}.position_key", f"{_THEIRS}.pos_key_proj"),
    *dense(f"{_OURS}.position_query", f"{_THEIRS}.pos_query_proj"),
)

ARCHITECTURES = class_names("DebertaV2", **DISCRIMINATOR)

CONFIG = make_mapping(
    "deberta-v2",
    ARCHITECTURES,
    {
        "position_buckets": ("position_buckets", int),
        "norm_rel_ebd": ("norm_rel_ebd", str),
        "share_att_key": ("share_att_key", bool),
        "conv_kernel_size": ("conv_kernel_size", int),
        "conv_act": ("conv_act", str),
        "conv_groups": ("conv_groups", int),
    },
)

DEBERTA_V2 = make_family(
    CONFIG,
    prefix="deberta",
    tensors=TENSORS,
    tied=TIED,
    axis_rules=(
        *SHARED_RULES,
        Rule(r"encoder\.convolution\.kernel", ("taps", "conv_inputs", axes.EMBED), optional=True),
        *AXIS_RULES,
    ),
    config_to_json=functools.partial(write_json, CONFIG),
    network=functools.partial(DebertaNetwork, encoder=DisentangledEncoder),
    own_axes={
        "distances": lambda config: config.own(DisentangledOptions).num_rows(config),
        "taps": lambda config: config.own(DisentangledOptions).conv_kernel_size,
        "conv_inputs": lambda config: config.hidden_size // config.own(DisentangledOptions).conv_groups,
    },
    adapt_config=adapt_config,
    layer_work=layer_work,
)
