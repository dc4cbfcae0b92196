"""Tensor names and axes that families with BERT's blocks share."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxbert.architecture import ModelConfig
from flaxbert.core import axes
from flaxbert.core.rules import Rule
from flaxbert.families.base import Family, TensorName, TiedTensor
from flaxbert.families.config_json import ConfigMapping
from flaxbert.nn.embeddings import sinusoids

_LAYER = "encoder.layers.{layer}"
_THEIR_LAYER = "encoder.layer.{layer}"


def dense(
    leaf: str, tensor: str, in_base: bool = True, by_task: Mapping[str, str] | None = None
) -> tuple[TensorName, TensorName]:
    """Returns the lines of a dense layer: kernel and bias.

    Args:
      leaf: Our name of the layer.
      tensor: Its name in a checkpoint.
      in_base: As for ``TensorName``.
      by_task: Its name in checkpoints of some tasks.
    """
    kernels, biases = (
        {task: f"{name}.{part}" for task, name in (by_task or {}).items()} for part in ("weight", "bias")
    )
    return (
        TensorName(f"{leaf}.kernel", f"{tensor}.weight", "transpose", in_base, kernels),
        TensorName(f"{leaf}.bias", f"{tensor}.bias", "none", in_base, biases),
    )


def norm(leaf: str, tensor: str, in_base: bool = True) -> tuple[TensorName, TensorName]:
    """Returns the lines of a layer norm: scale and bias.

    Args:
      leaf: Our name of the norm.
      tensor: Its name in a checkpoint.
      in_base: As for ``TensorName``.
    """
    return (
        TensorName(f"{leaf}.scale", f"{tensor}.weight", "none", in_base),
        TensorName(f"{leaf}.bias", f"{tensor}.bias", "none", in_base),
    )


def class_names(prefix: str, **others: str) -> dict[str, str]:
    """Returns the class names of the tasks that every family has.

    Relation classification and late interaction have no stock class; they are named as the published models of the kind are.

    Args:
      prefix: What the names of the family's classes begin with.
      **others: Class names of further tasks, with underscores for hyphens.
    """
    return {
        "sequence-classification": f"{prefix}ForSequenceClassification",
        "token-classification": f"{prefix}ForTokenClassification",
        "question-answering": f"{prefix}ForQuestionAnswering",
        "multiple-choice": f"{prefix}ForMultipleChoice",
        "relation-classification": "RBERT",
        "fill-mask": f"{prefix}ForMaskedLM",
        "late-interaction": "HF_ColBERT",
        **{task.replace("_", "-"): name for task, name in others.items()},
        "sentence-similarity": f"{prefix}Model",
        "feature-extraction": f"{prefix}Model",
    }


def derived_tables(config: ModelConfig, has_types: bool) -> dict[str, np.ndarray]:
    """Returns tables that stock classes have although the config gives them: the one zero row of a model without token types,
    and the sinusoids of one without learned positions.

    Args:
      config: Architecture.
      has_types: Whether stock classes always have token types.
    """
    tables: dict[str, np.ndarray] = {}
    if has_types and config.type_vocab_size == 0:
        tables["embeddings.token_type_embeddings.weight"] = np.zeros((1, config.embedding_width), np.float32)
    if config.position_embedding == "sinusoidal":
        rows = config.max_position_embeddings
        tables["embeddings.position_embeddings.weight"] = sinusoids(rows, config.embedding_width)
    return tables


TABLE_TENSORS: tuple[TensorName, ...] = (
    TensorName("embeddings.word.embedding", "embeddings.word_embeddings.weight"),
    TensorName("embeddings.position.embedding", "embeddings.position_embeddings.weight"),
    TensorName("embeddings.token_type.embedding", "embeddings.token_type_embeddings.weight"),
    *norm("embeddings.norm", "embeddings.LayerNorm"),
)
"""Embeddings."""


OUTPUT_TENSORS: tuple[TensorName, ...] = (
    *dense(f"{_LAYER}.attention.output", f"{_THEIR_LAYER}.attention.output.dense"),
    *norm(f"{_LAYER}.attention.norm", f"{_THEIR_LAYER}.attention.output.LayerNorm"),
    *dense(f"{_LAYER}.feed_forward.up", f"{_THEIR_LAYER}.intermediate.dense"),
    *dense(f"{_LAYER}.feed_forward.down", f"{_THEIR_LAYER}.output.dense"),
    *norm(f"{_LAYER}.feed_forward.norm", f"{_THEIR_LAYER}.output.LayerNorm"),
)
"""What comes after queries, keys and values in a layer."""

LAYER_TENSORS: tuple[TensorName, ...] = (
    *dense(f"{_LAYER}.attention.query", f"{_THEIR_LAYER}.attention.self.query"),
    *dense(f"{_LAYER}.attention.key", f"{_THEIR_LAYER}.attention.self.key"),
    *dense(f"{_LAYER}.attention.value", f"{_THEIR_LAYER}.attention.self.value"),
    *OUTPUT_TENSORS,
)
"""Layers."""

ENCODER_TENSORS: tuple[TensorName, ...] = (*TABLE_TENSORS, *LAYER_TENSORS, *dense("pooler.dense", "pooler.dense"))
"""Embeddings, layers and pooler."""

HEAD_TENSORS: tuple[TensorName, ...] = (
    *dense("span", "qa_outputs", in_base=False),
    *dense("relation.first", "cls_fc_layer.linear", in_base=False),
    *dense("relation.entity", "entity_fc_layer.linear", in_base=False),
    *dense("relation.classifier", "label_classifier.linear", in_base=False),
    TensorName("projection.dense.kernel", "linear.weight", "transpose", in_base=False),
)
"""Heads that have the same names in every family."""

_BLOCK = r"encoder\.(layers\.\d+|groups\.\d+\.blocks\.\d+)\."

AXIS_RULES: tuple[Rule[tuple[str, ...]], ...] = (
    Rule(r"embeddings\.word\.embedding", (axes.VOCAB, axes.EMBEDDING)),
    Rule(r"embeddings\.position\.embedding", (axes.POSITIONS, axes.EMBEDDING), optional=True),
    Rule(r"embeddings\.token_type\.embedding", (axes.TOKEN_TYPES, axes.EMBEDDING), optional=True),
    Rule(r"embeddings\.norm\.(scale|bias)", (axes.EMBEDDING,)),
    Rule(r"embeddings\.project\.kernel", (axes.EMBEDDING, axes.EMBED), optional=True),
    Rule(
        _BLOCK + r"attention\.(query|key|value)\.kernel",
        (axes.EMBED, axes.ATTENTION),
    ),
    Rule(_BLOCK + r"attention\.(query|key|value)\.bias", (axes.ATTENTION,)),
    Rule(_BLOCK + r"attention\.output\.kernel", (axes.ATTENTION, axes.EMBED)),
    Rule(_BLOCK + r"feed_forward\.up\.kernel", (axes.EMBED, axes.MLP)),
    Rule(_BLOCK + r"feed_forward\.up\.bias", (axes.MLP,)),
    Rule(_BLOCK + r"feed_forward\.down\.kernel", (axes.MLP, axes.EMBED)),
    Rule(r"pooler\.dense\.kernel", (axes.EMBED, axes.POOLED), optional=True),
    Rule(r"pooler\.dense\.bias", (axes.POOLED,), optional=True),
    Rule(r"classifier_dense\.kernel", (axes.EMBED, axes.POOLED), optional=True),
    Rule(r"classifier_dense\.bias", (axes.POOLED,), optional=True),
    Rule(r"classifier\.kernel", (axes.EMBED, axes.LABELS), optional=True),
    Rule(r"classifier\.bias", (axes.LABELS,), optional=True),
    Rule(r"(next_sentence|sentence_order)\.kernel", (axes.EMBED, axes.NEXT_SENTENCE), optional=True),
    Rule(r"(next_sentence|sentence_order)\.bias", (axes.NEXT_SENTENCE,), optional=True),
    Rule(r"span\.kernel", (axes.EMBED, axes.SPAN_ENDS), optional=True),
    Rule(r"span\.bias", (axes.SPAN_ENDS,), optional=True),
    Rule(r"(relation\.(first|entity)|replaced_token\.dense)\.kernel", (axes.EMBED, axes.POOLED), optional=True),
    Rule(r"(relation\.(first|entity)|replaced_token\.dense)\.bias", (axes.POOLED,), optional=True),
    Rule(r"relation\.classifier\.kernel", (axes.RELATION, axes.LABELS), optional=True),
    Rule(r"relation\.classifier\.bias", (axes.LABELS,), optional=True),
    Rule(r"replaced_token\.score\.kernel", (axes.EMBED, axes.SCORES), optional=True),
    Rule(r"replaced_token\.score\.bias", (axes.SCORES,), optional=True),
    Rule(r"projection\.dense\.kernel", (axes.EMBED, axes.PROJECTED), optional=True),
    Rule(r"masked_lm\.bias", (axes.VOCAB,), optional=True),
    Rule(r"masked_lm\.transform\.kernel", (axes.EMBED, axes.PREDICTED), optional=True),
    Rule(r"masked_lm\.(transform\.bias|norm\.(scale|bias))", (axes.PREDICTED,), optional=True),
    Rule(r".*\.(bias|scale)", (axes.EMBED,)),
)
"""Axis names of all leaves that these families have."""


def axis_rules_without(*parts: str) -> tuple[Rule[tuple[str, ...]], ...]:
    """Returns the axis rules for a family that has other leaves in the place of some.

    Args:
      *parts: Rules whose pattern has one of these in it are left out.

    Raises:
      ValueError: A part is in no pattern.
    """
    unmatched = [part for part in parts if not any(part in rule.pattern for rule in AXIS_RULES)]
    if unmatched:
        raise ValueError(f"No axis rule has {unmatched[0]} in its pattern.")
    return tuple(rule for rule in AXIS_RULES if not any(part in rule.pattern for part in parts))


RENAMED: dict[str, str] = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}
"""Endings of the first releases."""

IGNORED: tuple[str, ...] = (r"embeddings\.position_ids", r"embeddings\.token_type_ids")
"""Buffers that carry no weights."""


def make_family(
    config: ConfigMapping,
    prefix: str,
    tensors: tuple[TensorName, ...],
    tied: Mapping[str, TiedTensor],
    kind: type[Family] = Family,
    **others: Any,
) -> Family:
    """Returns a family with what most have alike.

    Args:
      config: How its ``config.json`` is read and written; also gives model type and class names.
      prefix: As for ``Family``.
      tensors: As for ``Family``.
      tied: As for ``Family``.
      kind: Class of the family.
      **others: Further attributes of ``Family``; those that are left out are BERT's.
    """
    usual: dict[str, Any] = {
        "ignored": IGNORED,
        "foreign": (),
        "renamed": RENAMED,
        "axis_rules": AXIS_RULES,
        "config_from_json": config.read,
        "config_to_json": config.write,
        "derived": functools.partial(derived_tables, has_types=config.type_row_needed),
    }
    return kind(
        model_type=config.model_type,
        prefix=prefix,
        tensors=tensors,
        tied=tied,
        architectures=config.architectures,
        **{**usual, **others},
    )
