"""DeBERTa (He et al., 2020): attention over contents and distances; what its two versions share, and version 1."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
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
from flaxbert.families.base import TensorName, TiedTensor
from flaxbert.families.config_json import FIELDS, POSITIONS_KEY, ConfigMapping
from flaxbert.families.layout import (
    HEAD_TENSORS,
    OUTPUT_TENSORS,
    TABLE_TENSORS,
    axis_rules_without,
    class_names,
    dense,
    make_family,
    norm,
)
from flaxbert.families.work import LayerWork, standard_layer
from flaxbert.nn.attention_capture import collecting
from flaxbert.nn.disentangled_attention import DisentangledOptions
from flaxbert.nn.disentangled_encoder import DisentangledEncoder, JointBlock
from flaxbert.nn.disentangled_heads import ContextPooler, NormedReplacedTokenHead
from flaxbert.nn.dropout import dropout, fold
from flaxbert.nn.embeddings import Embeddings
from flaxbert.nn.heads import HeadStyle
from flaxbert.nn.layers import Dense, Embed, LayerNorm
from flaxbert.nn.network import ModelOutput, Network
from flaxbert.nn.tokens import Tokens

DECODER_KEY = "flaxbert_enhanced_mask_decoder"
"""Our own key of a file whose masked language head reads what the last block makes of positions."""


class DebertaEmbeddings(Embeddings):
    """The normalised sum of word rows and, where there are such, those of positions and token types; zero at padding.

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        super().__init__(config, execution, rngs)
        dtype, deviation = Precision(execution.precision).compute_dtype, config.initializer_range
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon, dtype)
        if hasattr(self, "project"):
            self.project = Dense(config.embedding_width, config.hidden_size, deviation, dtype, rngs, use_bias=False)

    def __call__(self, tokens: Tokens, key: Any) -> Float[Array, "batch length embed"]:
        """Returns the embedded tokens; narrow rows are projected before the norm.

        Raises:
          ShapeError: There are more tokens than positions.
        """
        summed = self.sum_rows(tokens)
        embedded = self.norm(self.project(summed) if hasattr(self, "project") else summed)
        embedded = jnp.where((tokens.segment_ids != 0)[..., None], embedded, jnp.zeros((), embedded.dtype))
        return dropout(embedded, key, self.config.hidden_dropout_rate)


class DebertaNetwork(Network):
    """BERT's network with DeBERTa's pooler and, where the config asks for it, the enhanced mask decoder.

    Args:
      config: Architecture.
      task: A key of ``TASK_HEADS``.
      execution: How it is run.
      rngs: Source of keys for new weights.
      encoder: Builds the encoder.
    """

    def __init__(
        self, config: ModelConfig, task: str, execution: Execution, rngs: nnx.Rngs, *, encoder: Callable[..., Any]
    ) -> None:
        style = HeadStyle(tokens_drop_as_blocks=True, has_pooler=False)
        super().__init__(config, task, execution, rngs, style=style, embeddings=DebertaEmbeddings, encoder=encoder)
        self.decodes_positions = task == "fill-mask" and config.own(DisentangledOptions).enhanced_mask_decoder
        if self.decodes_positions and not hasattr(self.embeddings, "position"):
            rows, width = config.max_position_embeddings, config.embedding_width
            self.embeddings.position = Embed(rows, width, config.initializer_range, rngs)

    def make_heads(self, heads: tuple[str, ...], rngs: nnx.Rngs) -> None:
        """Builds the heads of the task.

        Args:
          heads: Their names.
          rngs: Source of keys for new weights.

        Raises:
          ConfigError: A head does not go with the width of the embeddings.
        """
        config, options = self.config, self.config.own(DisentangledOptions)
        if "masked_lm" in heads and config.embedding_width != config.hidden_size:
            if not options.legacy:
                raise ConfigError(
                    f"A masked language head with legacy false takes embeddings of hidden_size {config.hidden_size}, but "
                    f"embedding_size is {config.embedding_size}."
                )
            if options.enhanced_mask_decoder:
                raise ConfigError(
                    f"{DECODER_KEY} adds positions to hidden states of {config.hidden_size}, but embedding_size is "
                    f"{config.embedding_size}."
                )
        super().make_heads(tuple(head for head in heads if head not in ("pooler", "replaced_token")), rngs)
        if "pooler" in heads:
            self.pooler = ContextPooler(config, self.execution, rngs)
        if "replaced_token" in heads:
            self.replaced_token = NormedReplacedTokenHead(config, self.execution, rngs)

    def encode(self, tokens: Tokens, key: Any, keep_hidden: bool, first_only: bool) -> tuple[Any, Any]:
        """Returns the last hidden states, or what the enhanced mask decoder makes of those before the last block."""
        if not self.decodes_positions:
            return super().encode(tokens, key, keep_hidden, first_only)
        _, kept = super().encode(tokens, key, True, False)
        positions = self.embeddings.position(tokens.positions()).astype(kept[-2].dtype)
        with collecting(False):  # the last block once more: no layer of its own
            decoded = self.encoder.decode(kept[-2], positions, tokens, fold(key, len(kept)))
        return decoded, kept if keep_hidden else None

    def apply_heads(self, hidden: jax.Array, tokens: Tokens, entity_mask: Any, key: Any) -> ModelOutput:
        """Returns what the heads make of the last hidden states."""
        if hasattr(self, "replaced_token"):
            hidden = tokens.first_of_own_segment(hidden) + hidden
        if not hasattr(self, "pooler"):
            return super().apply_heads(hidden, tokens, entity_mask, key)
        pooled = self.pooler(hidden, fold(key, 0))
        scores = self.classifier(dropout(pooled, fold(key, 1), self._classifier_rate()))
        return ModelOutput(logits=scores.astype(jnp.float32), pooled=pooled)


def _normalize(json: dict[str, Any]) -> dict[str, Any]:
    kinds = json.get("pos_att_type")
    if isinstance(kinds, str):
        json["pos_att_type"] = [kind.strip() for kind in kinds.lower().split("|")]
    if isinstance(json.get("norm_rel_ebd"), str):
        words = {word.strip() for word in json["norm_rel_ebd"].lower().split("|")} - {"none", ""}
        json["norm_rel_ebd"] = "|".join(sorted(words)) or "none"
    if json.get("talking_head"):
        raise ConfigError("talking_head of config.json is true, which flaxbert's DeBERTa does not have.")
    width = json.get("hidden_size")
    if json.pop("pooler_hidden_size", width) not in (width, None):
        raise ConfigError("pooler_hidden_size of config.json differs from hidden_size, which the pooler reads.")
    heads, head_size = json.get("num_attention_heads"), json.pop("attention_head_size", None)
    if head_size is not None and width != head_size * heads:
        raise ConfigError(f"attention_head_size {head_size} of config.json does not make {heads} heads fill {width}.")
    if not json.pop("position_biased_input", True):
        json[POSITIONS_KEY] = "none"
    return json


def make_mapping(
    model_type: str, architectures: Mapping[str, str], option_fields: Mapping[str, tuple[str, type]]
) -> ConfigMapping:
    """Returns how a version's ``config.json`` and our config become each other.

    Args:
      model_type: Name of the family.
      architectures: Class name by task.
      option_fields: Options that only this version has, as for ``ConfigMapping``.
    """
    return ConfigMapping(
        model_type,
        architectures,
        {"type_vocab_size": 0, "layer_norm_epsilon": 1e-7},
        type_row_needed=False,
        fields={
            **{key: field for key, field in FIELDS.items() if key != "classifier_dropout"},
            "cls_dropout": ("classifier_dropout_rate", float),
            "embedding_size": ("embedding_size", int),
        },
        options=DisentangledOptions,
        option_fields={
            "relative_attention": ("relative_attention", bool),
            "max_relative_positions": ("max_relative_positions", int),
            "pos_att_type": ("score_types", tuple),
            "pooler_dropout": ("pooler_dropout", float),
            "pooler_hidden_act": ("pooler_hidden_act", str),
            "legacy": ("legacy", bool),
            DECODER_KEY: ("enhanced_mask_decoder", bool),
            **option_fields,
        },
        normalize=_normalize,
    )


def write_json(mapping: ConfigMapping, config: ModelConfig, task: str) -> dict[str, Any]:
    """Returns a ``config.json`` without keys of ours where they say what stock transformers takes for granted.

    Args:
      mapping: The version's mapping.
      config: Architecture.
      task: Task whose class the file names.
    """
    json = mapping.write(config, task)
    json["position_biased_input"] = json.pop(POSITIONS_KEY, "learned") != "none"
    if not config.embedding_size:
        json.pop("embedding_size")
    if not json[DECODER_KEY]:
        json.pop(DECODER_KEY)
    return json


def adapt_config(config: ModelConfig, names: Collection[str]) -> ModelConfig:
    """Returns the config with the masked language head that the tensors' names are of, whatever the file says.

    Args:
      config: Architecture as the file has it.
      names: Names of tensors.
    """
    has_old, has_new = (any(f"{head}." in name for name in names) for head in (_OLD_HEAD, _NEW_HEAD))
    options = config.own(DisentangledOptions)
    if has_old == has_new or has_old == options.legacy:
        return config
    return config.replace(options=dataclasses.replace(options, legacy=has_old))


_OLD_HEAD, _NEW_HEAD = "cls.predictions", "lm_predictions.lm_head"
_OURS, _THEIRS = "encoder.layers.{layer}.attention", "encoder.layer.{layer}.attention.self"


def is_legacy(config: ModelConfig) -> bool:
    """Returns whether the masked language head has its old names.

    Args:
      config: Architecture.
    """
    return config.own(DisentangledOptions).legacy


def _masked_lm() -> tuple[TensorName, ...]:
    old = (
        *dense("masked_lm.transform", f"{_OLD_HEAD}.transform.dense", in_base=False),
        *norm("masked_lm.norm", f"{_OLD_HEAD}.transform.LayerNorm", in_base=False),
        TensorName("masked_lm.bias", f"{_OLD_HEAD}.bias", in_base=False),
    )
    new = (
        *dense("masked_lm.transform", f"{_NEW_HEAD}.dense", in_base=False),
        *norm("masked_lm.norm", f"{_NEW_HEAD}.LayerNorm", in_base=False),
        TensorName("masked_lm.bias", f"{_NEW_HEAD}.bias", in_base=False),
    )
    return (
        *(dataclasses.replace(entry, applies=is_legacy) for entry in old),
        *(dataclasses.replace(entry, applies=lambda config: not is_legacy(config)) for entry in new),
    )


SHARED_TENSORS: tuple[TensorName, ...] = (
    *TABLE_TENSORS,
    TensorName("embeddings.project.kernel", "embeddings.embed_proj.weight", "transpose"),
    TensorName("encoder.distance.embedding", "encoder.rel_embeddings.weight"),
    *OUTPUT_TENSORS,
    *dense("pooler.dense", "pooler.dense", in_base=False),
    *dense("classifier", "classifier", in_base=False),
    *_masked_lm(),
    *dense("replaced_token.dense", "mask_predictions.dense", in_base=False),
    *norm("replaced_token.norm", "mask_predictions.LayerNorm", in_base=False),
    *dense("replaced_token.score", "mask_predictions.classifier", in_base=False),
    *HEAD_TENSORS,
)
"""Names that both versions have."""

TIED: dict[str, TiedTensor] = {
    f"{_OLD_HEAD}.decoder.weight": TiedTensor("embeddings.word.embedding", "masked_lm"),
    f"{_OLD_HEAD}.decoder.bias": TiedTensor("masked_lm.bias", "masked_lm"),
}
"""Tensors that repeat others."""

SHARED_RULES: tuple[Rule[tuple[str, ...]], ...] = (
    Rule(r"embeddings\.norm\.(scale|bias)", (axes.EMBED,)),
    Rule(r"replaced_token\.norm\.(scale|bias)", (axes.EMBED,), optional=True),
    Rule(r"encoder\.distance\.embedding", ("distances", axes.EMBED), optional=True),
    Rule(r"encoder\.layers\.\d+\.attention\.position_(key|query)\.kernel", (axes.EMBED, axes.ATTENTION), optional=True),
    Rule(r"encoder\.layers\.\d+\.attention\.position_(key|query)\.bias", (axes.ATTENTION,), optional=True),
)
"""Axes of leaves that both versions have and other families have not."""

TENSORS: tuple[TensorName, ...] = (
    *SHARED_TENSORS,
    TensorName(f"{_OURS}.joint.kernel", f"{_THEIRS}.in_proj.weight", "transpose"),
    TensorName(f"{_OURS}.query_bias", f"{_THEIRS}.q_bias"),
    TensorName(f"{_OURS}.value_bias", f"{_THEIRS}.v_bias"),
    TensorName(f"{_OURS}.position_key.kernel", f"{_THEIRS}.pos_proj.weight", "transpose"),
    *dense(f"{_OURS}.position_query", f"{_THEIRS}.pos_q_proj"),
)


def layer_work(config: ModelConfig, task: str) -> tuple[LayerWork, ...]:
    """Returns the work of every layer, whose scores of distances come on top, and that of what stands between or after them.

    Args:
      config: Architecture.
      task: Canonical task name; filling masks may run the last block once more.
    """
    options = config.own(DisentangledOptions)
    num_scored, rows = options.scores_contents + options.scores_positions, options.num_rows(config)
    layers = [
        dataclasses.replace(
            standard_layer(layer),
            per_distance=float(num_scored * layer.attention_size),
            num_distances=rows,
            per_row=float(num_scored * layer.hidden_size * layer.attention_size),
        )
        for layer in config.layer_sizes
    ]
    if options.conv_kernel_size:
        convolution = options.conv_kernel_size * config.hidden_size**2 / options.conv_groups
        layers[0] = dataclasses.replace(layers[0], after_attention=layers[0].after_attention + convolution)
    if task == "fill-mask" and options.enhanced_mask_decoder:
        layers.append(layers[-1])
    return tuple(layers)


DISCRIMINATOR = {"replaced_token_detection": "ReplacedTokenDetectionModel"}
"""Class of the discriminator in the code of the paper; transformers has none."""

ARCHITECTURES = {
    task: name for task, name in class_names("Deberta", **DISCRIMINATOR).items() if task != "multiple-choice"
}

CONFIG = make_mapping("deberta", ARCHITECTURES, {})

DEBERTA = make_family(
    CONFIG,
    prefix="deberta",
    tensors=TENSORS,
    tied=TIED,
    axis_rules=(
        *SHARED_RULES,
        Rule(r"encoder\.layers\.\d+\.attention\.joint\.kernel", (axes.EMBED, "joint")),
        Rule(r"encoder\.layers\.\d+\.attention\.(query|value)_bias", (axes.ATTENTION,)),
        *axis_rules_without("query|key|value"),
    ),
    config_to_json=functools.partial(write_json, CONFIG),
    network=functools.partial(DebertaNetwork, encoder=functools.partial(DisentangledEncoder, block=JointBlock)),
    own_axes={
        "distances": lambda config: config.own(DisentangledOptions).num_rows(config),
        "joint": lambda config: 3 * config.attention_size,
    },
    adapt_config=adapt_config,
    layer_work=layer_work,
    head_axes={axes.ATTENTION: 1, "joint": 1},
)
