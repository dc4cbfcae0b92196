"""``config.json`` of families that use BERT's keys, read and written."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flaxbert.architecture import ModelConfig
from flaxbert.errors import ConfigError
from flaxbert.nn.activations import get_activation

FIELDS: dict[str, tuple[str, type]] = {
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
"""Our field and its type by the key of the file."""

LABELLED_TASKS = ("sequence-classification", "token-classification", "relation-classification")
"""Tasks whose files name the labels."""

_KINDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a word",
    bool: "true or false",
    tuple: "a list",
}
_REQUIRED = frozenset({"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"})
POSITIONS_KEY = "flaxbert_position_embedding"
"""Our own key of a file whose positions are not learned."""

HEAD_SIZE_KEY = "flaxbert_head_size"
"""Our own key of a file whose heads do not fill the hidden size."""

LAYER_KEYS: dict[str, str] = {
    "flaxbert_layer_heads": "layer_heads",
    "flaxbert_layer_intermediate": "layer_intermediate",
}
"""Our own keys of a file whose layers have different sizes, with our fields."""

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
    POSITIONS_KEY,
    HEAD_SIZE_KEY,
    *LAYER_KEYS,
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
    wanted = {float: (int, float), tuple: (list, tuple)}.get(kind, kind)
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{key} of config.json is {value!r}, but must be {_KINDS[kind]}.")
    return kind(value)


def _read_sizes(json: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of heads and layers that stock files can not describe."""
    sizes: dict[str, Any] = {}
    if json.get(HEAD_SIZE_KEY) is not None:
        sizes["head_size"] = _value(json, HEAD_SIZE_KEY, int)
    return sizes | {field: _value(json, key, tuple) for key, field in LAYER_KEYS.items() if json.get(key) is not None}


def _write_sizes(config: ModelConfig) -> dict[str, Any]:
    sizes = {HEAD_SIZE_KEY: config.head_size} if config.head_size else {}
    if not config.has_equal_layers and not config.head_size:
        sizes = {HEAD_SIZE_KEY: config.head_dim}
    return sizes | {key: list(getattr(config, field)) for key, field in LAYER_KEYS.items() if getattr(config, field)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_encoder(json: Mapping[str, Any], model_type: str, fields: Mapping[str, tuple[str, type]]) -> None:
    missing = [theirs for theirs, (ours, _) in fields.items() if ours in _REQUIRED and theirs not in json]
    if missing:
        raise ConfigError(f"config.json lacks {', '.join(missing)}; without them a {model_type} can not be built.")
    kind = json.get("position_embedding_type", "absolute")
    if kind not in ("absolute", None):
        raise ConfigError(f"position_embedding_type '{kind}' is not supported; only 'absolute' is.")
    if json.get("is_decoder") or json.get("add_cross_attention"):
        raise ConfigError(
            "config.json describes a decoder (is_decoder or add_cross_attention); flaxbert reads encoders."
        )


@dataclasses.dataclass(frozen=True)
class ConfigMapping:
    """How a family's ``config.json`` and ``ModelConfig`` become each other.

    Attributes:
      model_type: Name of the family in the file.
      architectures: Class name in the file by task.
      defaults: Our fields that differ from ``ModelConfig``'s where the file is silent.
      type_row_needed: Whether stock classes always look up a token type, so that a model without is written with one zero row.
      starts_after_padding: Whether the first token takes the position after that of padding.
      fields: Our field and its type by the key of the file.
      options: Class of the family's own settings.
      option_fields: Field of ``options`` and its type by the key of the file.
      normalize: Brings the keys of older releases into today's form before anything is read.
      extend: Adds what older releases or stock classes need beside the fields, from config and task.
    """

    model_type: str
    architectures: Mapping[str, str]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    type_row_needed: bool = True
    starts_after_padding: bool = False
    fields: Mapping[str, tuple[str, type]] = dataclasses.field(default_factory=lambda: FIELDS)
    options: type | None = None
    option_fields: Mapping[str, tuple[str, type]] = dataclasses.field(default_factory=dict)
    normalize: Callable[[dict[str, Any]], dict[str, Any]] = lambda json: json
    extend: Callable[[ModelConfig, str], dict[str, Any]] = lambda config, task: {}

    def read(self, json: Mapping[str, Any]) -> ModelConfig:
        """Reads a ``config.json`` of transformers 4 or 5, or of the original release.

        Args:
          json: The parsed file.

        Returns:
          The architecture; keys that flaxbert does not use are kept in ``extra``.

        Raises:
          ConfigError: A required key is missing, a value is unusable, or the position embedding is not absolute.
        """
        json = self.normalize(dict(json))
        _check_encoder(json, self.model_type, self.fields)
        stored = {
            ours: _value(json, theirs, kind)
            for theirs, (ours, kind) in self.fields.items()
            if json.get(theirs) is not None
        }
        values = {**self.defaults, **stored}
        get_activation(values.get("hidden_act", "gelu"))
        if json.get(_WITHOUT_TYPES):
            values["type_vocab_size"] = 0
        if json.get(POSITIONS_KEY):
            values["position_embedding"] = _value(json, POSITIONS_KEY, str)
        values |= _read_sizes(json)
        if self.starts_after_padding:
            values["position_offset"] = values.get("pad_token_id", ModelConfig.pad_token_id) + 1
        if self.options is not None:
            own = {
                ours: _value(json, theirs, kind)
                for theirs, (ours, kind) in self.option_fields.items()
                if json.get(theirs) is not None
            }
            values["options"] = self.options(**own)
        labels = _labels(json)
        known = {*self.fields, *self.option_fields, *_DERIVED}
        return ModelConfig(
            family=self.model_type,
            labels=labels,
            num_labels=len(labels) or (_value(json, "num_labels", int) if "num_labels" in json else 2),
            extra={key: value for key, value in json.items() if key not in known},
            **values,
        )

    def write(self, config: ModelConfig, task: str) -> dict[str, Any]:
        """Writes a ``config.json`` that stock transformers reads.

        A model without token types is written with one type, whose row the exporter sets to zero, since transformers always
        looks one up; a key of our own restores it on reading.

        Args:
          config: Architecture.
          task: Task whose class the file names.

        Returns:
          The file's contents, ready for JSON.
        """
        json: dict[str, Any] = {
            **config.extra, "model_type": self.model_type, "architectures": [self.architectures[task]]
        }  # fmt: skip
        for theirs, (ours, _) in self.fields.items():
            value = config.embedding_width if ours == "embedding_size" else getattr(config, ours)
            if theirs == "problem_type" and not value:
                continue
            json[theirs] = value
        for theirs, (ours, _) in self.option_fields.items():
            json[theirs] = _plain(getattr(config.own(self.options or object), ours))
        json |= _write_sizes(config)
        if config.position_embedding != self.defaults.get("position_embedding", "learned"):
            json[POSITIONS_KEY] = config.position_embedding
        if config.type_vocab_size == 0 and self.type_row_needed and "type_vocab_size" in self.fields:
            json |= {"type_vocab_size": 1, _WITHOUT_TYPES: True}
        if config.labels or task in LABELLED_TASKS:
            json["id2label"] = {str(number): name for number, name in enumerate(config.label_names)}
            json["label2id"] = {name: number for number, name in enumerate(config.label_names)}
        json["dtype"] = json["torch_dtype"] = "float32"
        json["tie_word_embeddings"] = True
        return json | self.extend(config, task)
