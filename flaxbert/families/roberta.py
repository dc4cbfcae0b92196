"""RoBERTa (Liu et al., 2019) and the families of its layout: XLM-R, CamemBERT, and BERTweet, which calls itself RoBERTa."""

import functools

from flaxbert.families.base import Family, TensorName, TiedTensor
from flaxbert.families.config_json import ConfigMapping
from flaxbert.families.layout import (
    ENCODER_TENSORS,
    HEAD_TENSORS,
    class_names,
    dense,
    make_family,
    norm,
)
from flaxbert.nn.heads import HeadStyle
from flaxbert.nn.network import Network

ROBERTA_HEADS: tuple[TensorName, ...] = (
    *dense("classifier_dense", "classifier.dense", in_base=False),
    *dense("classifier", "classifier", in_base=False, by_task={"sequence-classification": "classifier.out_proj"}),
    *dense("masked_lm.transform", "lm_head.dense", in_base=False),
    *norm("masked_lm.norm", "lm_head.layer_norm", in_base=False),
    TensorName("masked_lm.bias", "lm_head.bias", in_base=False),
    *HEAD_TENSORS,
)
"""Heads with RoBERTa's names."""

TENSORS: tuple[TensorName, ...] = (*ENCODER_TENSORS, *ROBERTA_HEADS)

TIED: dict[str, TiedTensor] = {
    "lm_head.decoder.weight": TiedTensor("embeddings.word.embedding", "masked_lm"),
    "lm_head.decoder.bias": TiedTensor("masked_lm.bias", "masked_lm"),
}
"""Tensors that repeat others."""

STYLE = HeadStyle(classifier_activation="tanh", drops_classifier_input=True, masked_lm_activation="gelu")


def roberta_family(model_type: str, class_prefix: str) -> Family:
    """Returns a family of RoBERTa's layout.

    Args:
      model_type: Its name in ``config.json``.
      class_prefix: What the names of its classes begin with.
    """
    config = ConfigMapping(model_type, class_names(class_prefix), {"pad_token_id": 1}, starts_after_padding=True)
    return make_family(config, "roberta", TENSORS, TIED, network=functools.partial(Network, style=STYLE))


ROBERTA = roberta_family("roberta", "Roberta")
XLM_ROBERTA = roberta_family("xlm-roberta", "XLMRoberta")
CAMEMBERT = roberta_family("camembert", "Camembert")
