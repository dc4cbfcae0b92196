"""DistilBERT (Sanh et al., 2019): BERT's blocks without token types and pooler, under names of its own."""

import functools
from typing import Any

from flaxbert.families.base import TensorName, TiedTensor
from flaxbert.families.config_json import POSITIONS_KEY, ConfigMapping
from flaxbert.families.layout import (
    HEAD_TENSORS,
    class_names,
    dense,
    make_family,
    norm,
)
from flaxbert.nn.heads import HeadStyle
from flaxbert.nn.network import Network

_LAYER = "encoder.layers.{layer}"
_THEIR_LAYER = "transformer.layer.{layer}"

TENSORS: tuple[TensorName, ...] = (
    TensorName("embeddings.word.embedding", "embeddings.word_embeddings.weight"),
    TensorName("embeddings.position.embedding", "embeddings.position_embeddings.weight"),
    *norm("embeddings.norm", "embeddings.LayerNorm"),
    *dense(f"{_LAYER}.attention.query", f"{_THEIR_LAYER}.attention.q_lin"),
    *dense(f"{_LAYER}.attention.key", f"{_THEIR_LAYER}.attention.k_lin"),
    *dense(f"{_LAYER}.attention.value", f"{_THEIR_LAYER}.attention.v_lin"),
    *dense(f"{_LAYER}.attention.output", f"{_THEIR_LAYER}.attention.out_lin"),
    *norm(f"{_LAYER}.attention.norm", f"{_THEIR_LAYER}.sa_layer_norm"),
    *dense(f"{_LAYER}.feed_forward.up", f"{_THEIR_LAYER}.ffn.lin1"),
    *dense(f"{_LAYER}.feed_forward.down", f"{_THEIR_LAYER}.ffn.lin2"),
    *norm(f"{_LAYER}.feed_forward.norm", f"{_THEIR_LAYER}.output_layer_norm"),
    *dense("classifier_dense", "pre_classifier", in_base=False),
    *dense("classifier", "classifier", in_base=False),
    *dense("masked_lm.transform", "vocab_transform", in_base=False),
    *norm("masked_lm.norm", "vocab_layer_norm", in_base=False),
    TensorName("masked_lm.bias", "vocab_projector.bias", in_base=False),
    *HEAD_TENSORS,
)

ARCHITECTURES = class_names("DistilBert")

FIELDS: dict[str, tuple[str, type]] = {
    "vocab_size": ("vocab_size", int),
    "dim": ("hidden_size", int),
    "n_layers": ("num_hidden_layers", int),
    "n_heads": ("num_attention_heads", int),
    "hidden_dim": ("intermediate_size", int),
    "activation": ("hidden_act", str),
    "dropout": ("hidden_dropout_rate", float),
    "attention_dropout": ("attention_dropout_rate", float),
    "seq_classif_dropout": ("classifier_dropout_rate", float),
    "max_position_embeddings": ("max_position_embeddings", int),
    "initializer_range": ("initializer_range", float),
    "pad_token_id": ("pad_token_id", int),
    "problem_type": ("problem_type", str),
}


OTHER_NAMES: dict[str, str] = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
"""What other families call these keys; stock transformers takes them too, and before DistilBERT's own."""

SIZE_NAMES: dict[str, str] = {**OTHER_NAMES, "intermediate_size": "hidden_dim"}
"""What DistilBERT calls the sizes of a model."""


def _take_names(json: dict[str, Any]) -> dict[str, Any]:
    for other, own in OTHER_NAMES.items():
        if other in json:
            json[own] = json.pop(other)
    if "hidden_dim" not in json and "intermediate_size" in json:  # as new models are described
        json["hidden_dim"] = json.pop("intermediate_size")
    if json.pop("sinusoidal_pos_embds", False):
        json[POSITIONS_KEY] = "sinusoidal"
    return json


CONFIG = ConfigMapping(
    "distilbert",
    ARCHITECTURES,
    {"type_vocab_size": 0, "classifier_dropout_rate": 0.2},
    type_row_needed=False,
    fields=FIELDS,
    normalize=_take_names,
    extend=lambda config, task: {"sinusoidal_pos_embds": config.position_embedding == "sinusoidal"},
)

STYLE = HeadStyle(
    classifier_activation="relu",
    choice_activation="relu",
    tokens_drop_as_blocks=True,
    drops_span_input=True,
    has_pooler=False,
)


DISTILBERT = make_family(
    CONFIG,
    prefix="distilbert",
    tensors=TENSORS,
    tied={"vocab_projector.weight": TiedTensor("embeddings.word.embedding", "masked_lm")},
    network=functools.partial(Network, style=STYLE),
)
