"""Tensor names and axes that families with BERT's blocks share."""

from collections.abc import Mapping

import numpy as np

from flaxbert.architecture import ModelConfig
from flaxbert.core import axes
from flaxbert.core.rules import Rule
from flaxbert.families.base import TensorName
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


def derived_tables(config: ModelConfig, has_types: bool = True) -> dict[str, np.ndarray]:
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


def layer_tensors(ours: str = _LAYER, theirs: str = _THEIR_LAYER) -> tuple[TensorName, ...]:
    """Returns the lines of a block with BERT's names.

    Args:
      ours: Our name of the block.
      theirs: Its name in a checkpoint.
    """
    return (
        *dense(f"{ours}.attention.query", f"{theirs}.attention.self.query"),
        *dense(f"{ours}.attention.key", f"{theirs}.attention.self.key"),
        *dense(f"{ours}.attention.value", f"{theirs}.attention.self.value"),
        *output_tensors(ours, theirs),
    )


def output_tensors(ours: str = _LAYER, theirs: str = _THEIR_LAYER) -> tuple[TensorName, ...]:
    """Returns the lines of what comes after the attention of a block with BERT's names.

    Args:
      ours: Our name of the block.
      theirs: Its name in a checkpoint.
    """
    return (
        *dense(f"{ours}.attention.output", f"{theirs}.attention.output.dense"),
        *norm(f"{ours}.attention.norm", f"{theirs}.attention.output.LayerNorm"),
        *dense(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense"),
        *dense(f"{ours}.feed_forward.down", f"{theirs}.output.dense"),
        *norm(f"{ours}.feed_forward.norm", f"{theirs}.output.LayerNorm"),
    )


LAYER_TENSORS = layer_tensors()
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

AXIS_RULES: tuple[Rule[tuple[str, ...]], ...] = (
    Rule(r"embeddings\.word\.embedding", (axes.VOCAB, axes.EMBEDDING)),
    Rule(r"embeddings\.position\.embedding", (axes.POSITIONS, axes.EMBEDDING), optional=True),
    Rule(r"embeddings\.token_type\.embedding", (axes.TOKEN_TYPES, axes.EMBEDDING), optional=True),
    Rule(r"embeddings\.norm\.(scale|bias)", (axes.EMBEDDING,)),
    Rule(r"embeddings\.project\.kernel", (axes.EMBEDDING, axes.EMBED), optional=True),
    Rule(
        r"encoder\.(layers\.\d+|groups\.\d+\.blocks\.\d+)\.attention\.(query|key|value)\.kernel",
        (axes.EMBED, axes.ATTENTION),
    ),
    Rule(r"encoder\.(layers\.\d+|groups\.\d+\.blocks\.\d+)\.attention\.(query|key|value)\.bias", (axes.ATTENTION,)),
    Rule(r"encoder\.(layers\.\d+|groups\.\d+\.blocks\.\d+)\.attention\.output\.kernel", (axes.ATTENTION, axes.EMBED)),
    Rule(r"encoder\.(layers\.\d+|groups\.\d+\.blocks\.\d+)\.feed_forward\.up\.kernel", (axes.EMBED, axes.MLP)),
    Rule(r"encoder\.(layers\.\d+|groups\.\d+\.blocks\.\d+)\.feed_forward\.up\.bias", (axes.MLP,)),
    Rule(r"encoder\.(layers\.\d+|groups\.\d+\.blocks\.\d+)\.feed_forward\.down\.kernel", (axes.MLP, axes.EMBED)),
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

RENAMED: dict[str, str] = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}
"""Endings of the first releases."""

IGNORED: tuple[str, ...] = (r"embeddings\.position_ids", r"embeddings\.token_type_ids")
"""Buffers that carry no weights."""
