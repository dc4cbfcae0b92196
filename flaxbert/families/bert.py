"""BERT (Devlin et al., 2019): also mBERT, BioBERT, Chinese BERT, MiniLM and TinyBERT, which share its layout."""

from collections.abc import Mapping
from typing import Any

from flaxbert.architecture import ModelConfig
from flaxbert.core import axes
from flaxbert.core.rules import Rule
from flaxbert.errors import ConfigError
from flaxbert.families.base import Family, TensorName, TiedTensor
from flaxbert.nn.activations import get_activation
from flaxbert.nn.network import Network

_LAYER = "encoder.layers.{layer}"
_THEIR_LAYER = "encoder.layer.{layer}"


def _dense(leaf: str, tensor: str, in_base: bool = True) -> tuple[TensorName, TensorName]:
    return (
        TensorName(f"{leaf}.kernel", f"{tensor}.weight", "transpose", in_base),
        TensorName(f"{leaf}.bias", f"{tensor}.bias", "none", in_base),
    )


def _norm(leaf: str, tensor: str, in_base: bool = True) -> tuple[TensorName, TensorName]:
    return (
        TensorName(f"{leaf}.scale", f"{tensor}.weight", "none", in_base),
        TensorName(f"{leaf}.bias", f"{tensor}.bias", "none", in_base),
    )


TENSORS: tuple[TensorName, ...] = (
    TensorName("embeddings.word.embedding", "embeddings.word_embeddings.weight"),
    TensorName("embeddings.position.embedding", "embeddings.position_embeddings.weight"),
    TensorName("embeddings.token_type.embedding", "embeddings.token_type_embeddings.weight"),
    *_norm("embeddings.norm", "embeddings.LayerNorm"),
    *_dense(f"{_LAYER}.attention.query", f"{_THEIR_LAYER}.attention.self.query"),
    *_dense(f"{_LAYER}.attention.key", f"{_THEIR_LAYER}.attention.self.key"),
    *_dense(f"{_LAYER}.attention.value", f"{_THEIR_LAYER}.attention.self.value"),
    *_dense(f"{_LAYER}.attention.output", f"{_THEIR_LAYER}.attention.output.dense"),
    *_norm(f"{_LAYER}.attention.norm", f"{_THEIR_LAYER}.attention.output.LayerNorm"),
    *_dense(f"{_LAYER}.feed_forward.up", f"{_THEIR_LAYER}.intermediate.dense"),
    *_dense(f"{_LAYER}.feed_forward.down", f"{_THEIR_LAYER}.output.dense"),
    *_norm(f"{_LAYER}.feed_forward.norm", f"{_THEIR_LAYER}.output.LayerNorm"),
    *_dense("pooler.dense", "pooler.dense"),
    *_dense("classifier", "classifier", in_base=False),
    *_dense("masked_lm.transform", "cls.predictions.transform.dense", in_base=False),
    *_norm("masked_lm.norm", "cls.predictions.transform.LayerNorm", in_base=False),
    TensorName("masked_lm.bias", "cls.predictions.bias", in_base=False),
    *_dense("next_sentence", "cls.seq_relationship", in_base=False),
)

AXIS_RULES: tuple[Rule[tuple[str, ...]], ...] = (
    Rule(r"embeddings\.word\.embedding", (axes.VOCAB, axes.EMBED)),
    Rule(r"embeddings\.position\.embedding", (axes.POSITIONS, axes.EMBED)),
    Rule(r"embeddings\.token_type\.embedding", (axes.TOKEN_TYPES, axes.EMBED), optional=True),
    Rule(r"encoder\.layers\.\d+\.attention\.(query|key|value)\.kernel", (axes.EMBED, axes.ATTENTION)),
    Rule(r"encoder\.layers\.\d+\.attention\.(query|key|value)\.bias", (axes.ATTENTION,)),
    Rule(r"encoder\.layers\.\d+\.attention\.output\.kernel", (axes.ATTENTION, axes.EMBED)),
    Rule(r"encoder\.layers\.\d+\.feed_forward\.up\.kernel", (axes.EMBED, axes.MLP)),
    Rule(r"encoder\.layers\.\d+\.feed_forward\.up\.bias", (axes.MLP,)),
    Rule(r"encoder\.layers\.\d+\.feed_forward\.down\.kernel", (axes.MLP, axes.EMBED)),
    Rule(r"pooler\.dense\.kernel", (axes.EMBED, axes.POOLED), optional=True),
    Rule(r"pooler\.dense\.bias", (axes.POOLED,), optional=True),
    Rule(r"classifier\.kernel", (axes.EMBED, axes.LABELS), optional=True),
    Rule(r"classifier\.bias", (axes.LABELS,), optional=True),
    Rule(r"next_sentence\.kernel", (axes.EMBED, axes.NEXT_SENTENCE), optional=True),
    Rule(r"next_sentence\.bias", (axes.NEXT_SENTENCE,), optional=True),
    Rule(r"masked_lm\.bias", (axes.VOCAB,), optional=True),
    Rule(r"masked_lm\.transform\.kernel", (axes.EMBED, axes.POOLED), optional=True),
    Rule(r"masked_lm\.transform\.bias", (axes.POOLED,), optional=True),
    Rule(r".*\.(bias|scale)", (axes.EMBED,)),
)

_FIELDS: dict[str, tuple[str, type]] = {
    "vocab_size": ("vocab_size", int),
    "hidden_size": ("hidden_size", int),
    "num_hidden_layers": ("num_hidden_layers", int),
    "num_attention_heads": ("num_attention_heads", int),
    "intermediate_size": ("intermediate_size", int),
    "hidden_act": ("hidden_act", str),
    "hidden_dropout_prob": ("hidden_dropout_rate", float),
    "attention_probs_dropout_prob": ("attention_dropout_rate", float),
    "classifier_dropout": ("classifier_dropout_rate", float),
    "max_position_embeddings": ("max_position_embeddings", int),
    "type_vocab_size": ("type_vocab_size", int),
    "layer_norm_eps": ("layer_norm_epsilon", float),
    "initializer_range": ("initializer_range", float),
    "pad_token_id": ("pad_token_id", int),
    "problem_type": ("problem_type", str),
}
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_WITHOUT_TYPES = "flaxbert_no_token_types"
_DERIVED = (
    "id2label",
    "label2id",
    "num_labels",
    "model_type",
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "quantization_config",
    _WITHOUT_TYPES,
)


def _labels(json: Mapping[str, Any]) -> tuple[str, ...]:
    names = json.get("id2label")
    if not names:
        return ()
    try:
        by_number = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"id2label of config.json is {names!r}, but must map numbers to names.") from error
    if sorted(by_number) != list(range(len(by_number))):
        raise ConfigError(f"id2label of config.json numbers its labels {sorted(by_number)}, not 0 to n-1.")
    return tuple(by_number[number] for number in range(len(by_number)))


def _value(json: Mapping[str, Any], key: str, kind: type) -> Any:
    value = json[key]
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not fits:
        expected = {int: "a whole number", float: "a number", str: "a word"}[kind]
        raise ConfigError(f"{key} of config.json is {value!r}, but must be {expected}.")
    return kind(value)


def config_from_json(json: Mapping[str, Any]) -> ModelConfig:
    """Reads BERT's ``config.json``, of transformers 4 and 5 and of Google's original release.

    Args:
      json: The parsed file.

    Returns:
      The architecture; keys that flaxbert does not use are kept in ``extra``.

    Raises:
      ConfigError: A required key is missing, a value is unusable, or the position embedding is not absolute.
    """
    missing = [key for key in _REQUIRED if key not in json]
    if missing:
        raise ConfigError(f"config.json lacks {', '.join(missing)}; without them a BERT can not be built.")
    kind = json.get("position_embedding_type", "absolute")
    if kind not in ("absolute", None):
        raise ConfigError(f"position_embedding_type '{kind}' is not supported; only 'absolute' is.")
    if json.get("is_decoder") or json.get("add_cross_attention"):
        raise ConfigError(
            "config.json describes a decoder (is_decoder or add_cross_attention); flaxbert reads encoders."
        )
    values = {
        ours: _value(json, theirs, kind) for theirs, (ours, kind) in _FIELDS.items() if json.get(theirs) is not None
    }
    get_activation(values.get("hidden_act", "gelu"))
    if json.get(_WITHOUT_TYPES):
        values["type_vocab_size"] = 0
    labels = _labels(json)
    known = {*_FIELDS, *_DERIVED}
    return ModelConfig(
        family="bert",
        labels=labels,
        num_labels=len(labels) or (_value(json, "num_labels", int) if "num_labels" in json else 2),
        extra={key: value for key, value in json.items() if key not in known},
        **values,
    )


def config_to_json(config: ModelConfig, task: str) -> dict[str, Any]:
    """Writes a ``config.json`` that stock transformers reads.

    A model without token types is written with one type, whose row the exporter sets to zero, since transformers always
    looks one up; a key of our own restores it on reading.

    Args:
      config: Architecture.
      task: Task whose class the file names.

    Returns:
      The file's contents, ready for JSON.
    """
    json: dict[str, Any] = {**config.extra, "model_type": "bert", "architectures": [ARCHITECTURES[task]]}
    for theirs, (ours, _) in _FIELDS.items():
        value = getattr(config, ours)
        if theirs == "problem_type" and not value:
            continue
        json[theirs] = value
    if config.type_vocab_size == 0:
        json |= {"type_vocab_size": 1, _WITHOUT_TYPES: True}
    if config.labels or task in ("sequence-classification", "token-classification"):
        json["id2label"] = {str(number): name for number, name in enumerate(config.label_names)}
        json["label2id"] = {name: number for number, name in enumerate(config.label_names)}
    json["dtype"] = json["torch_dtype"] = "float32"
    json["tie_word_embeddings"] = True
    json.setdefault("position_embedding_type", "absolute")
    return json


ARCHITECTURES: dict[str, str] = {
    "sequence-classification": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
    "fill-mask": "BertForMaskedLM",
    "next-sentence-prediction": "BertForNextSentencePrediction",
    "pretraining": "BertForPreTraining",
    "sentence-similarity": "BertModel",
    "feature-extraction": "BertModel",
}

BERT = Family(
    model_type="bert",
    prefix="bert",
    tensors=TENSORS,
    tied={
        "cls.predictions.decoder.weight": TiedTensor("embeddings.word.embedding", "masked_lm"),
        "cls.predictions.decoder.bias": TiedTensor("masked_lm.bias", "masked_lm"),
    },
    ignored=(r"embeddings\.position_ids", r"embeddings\.token_type_ids"),
    foreign=(r"qa_outputs\.(weight|bias)", r"fit_denses?\.(\d+\.)?(weight|bias)"),
    renamed={".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"},
    axis_rules=AXIS_RULES,
    architectures=ARCHITECTURES,
    config_from_json=config_from_json,
    config_to_json=config_to_json,
    network=Network,
)
