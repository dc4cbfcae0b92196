"""ELECTRA (Clark et al., 2020), generator and discriminator: narrow embeddings projected to the width of the blocks."""

import functools

from flaxbert.families.base import TensorName, TiedTensor
from flaxbert.families.config_json import FIELDS, ConfigMapping
from flaxbert.families.layout import (
    HEAD_TENSORS,
    LAYER_TENSORS,
    TABLE_TENSORS,
    class_names,
    dense,
    make_family,
    norm,
)
from flaxbert.nn.heads import HeadStyle
from flaxbert.nn.network import Network

TENSORS: tuple[TensorName, ...] = (
    *TABLE_TENSORS,
    *dense("embeddings.project", "embeddings_project"),
    *LAYER_TENSORS,
    *dense(
        "classifier_dense",
        "classifier.dense",
        in_base=False,
        by_task={"multiple-choice": "sequence_summary.summary"},
    ),
    *dense("classifier", "classifier", in_base=False, by_task={"sequence-classification": "classifier.out_proj"}),
    *dense("masked_lm.transform", "generator_predictions.dense", in_base=False),
    *norm("masked_lm.norm", "generator_predictions.LayerNorm", in_base=False),
    TensorName("masked_lm.bias", "generator_lm_head.bias", in_base=False),
    *dense("replaced_token.dense", "discriminator_predictions.dense", in_base=False),
    *dense("replaced_token.score", "discriminator_predictions.dense_prediction", in_base=False),
    *HEAD_TENSORS,
)

ARCHITECTURES = class_names("Electra", replaced_token_detection="ElectraForPreTraining")

CONFIG = ConfigMapping(
    "electra",
    ARCHITECTURES,
    {"embedding_size": 128},
    fields={**FIELDS, "embedding_size": ("embedding_size", int)},
)

STYLE = HeadStyle(
    classifier_activation="gelu",
    choice_activation="gelu",
    drops_classifier_input=True,
    masked_lm_activation="gelu",
    has_pooler=False,
)

ELECTRA = make_family(
    CONFIG,
    prefix="electra",
    tensors=TENSORS,
    tied={"generator_lm_head.weight": TiedTensor("embeddings.word.embedding", "masked_lm")},
    network=functools.partial(Network, style=STYLE),
)
