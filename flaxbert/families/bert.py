"""BERT (Devlin et al., 2019): also mBERT, BioBERT, Chinese BERT, MiniLM and TinyBERT, which share its layout."""

from flaxbert.families.base import TensorName, TiedTensor
from flaxbert.families.config_json import ConfigMapping
from flaxbert.families.layout import (
    ENCODER_TENSORS,
    HEAD_TENSORS,
    class_names,
    dense,
    make_family,
    norm,
)
from flaxbert.nn.network import Network

TENSORS: tuple[TensorName, ...] = (
    *ENCODER_TENSORS,
    *dense("classifier", "classifier", in_base=False),
    *dense("masked_lm.transform", "cls.predictions.transform.dense", in_base=False),
    *norm("masked_lm.norm", "cls.predictions.transform.LayerNorm", in_base=False),
    TensorName("masked_lm.bias", "cls.predictions.bias", in_base=False),
    *dense("next_sentence", "cls.seq_relationship", in_base=False),
    *HEAD_TENSORS,
)

ARCHITECTURES = class_names(
    "Bert", next_sentence_prediction="BertForNextSentencePrediction", pretraining="BertForPreTraining"
)

TIED: dict[str, TiedTensor] = {
    "cls.predictions.decoder.weight": TiedTensor("embeddings.word.embedding", "masked_lm"),
    "cls.predictions.decoder.bias": TiedTensor("masked_lm.bias", "masked_lm"),
}
"""Tensors that repeat others."""

CONFIG = ConfigMapping("bert", ARCHITECTURES, extend=lambda config, task: {"position_embedding_type": "absolute"})

BERT = make_family(
    CONFIG,
    prefix="bert",
    tensors=TENSORS,
    tied=TIED,
    foreign=(r"fit_denses?\.(\d+\.)?(weight|bias)",),
    network=Network,
)
