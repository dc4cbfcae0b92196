"""Tensor names and axes that families with BERT's blocks share."""

from collections.abc import Mapping

from flaxbert.core import axes
from flaxbert.core.rules import Rule
from flaxbert.families.base import TensorName

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


TABLE_TENSORS: tuple[TensorName, ...] = (
    TensorName("embeddings.word.embedding", "embeddings.word_embeddings.weight"),
    TensorName("embeddings.position.embedding", "embeddings.position_embeddings.weight"),
    TensorName("embeddings.token_type.embedding", "embeddings.token_type_embeddings.weight"),
    *norm("embeddings.norm", "embeddings.LayerNorm"),
)
"""Embeddings."""

LAYER_TENSORS: tuple[TensorName, ...] = (
    *dense(f"{_LAYER}.attention.query", f"{_THEIR_LAYER}.attention.self.query"),
    *dense(f"{_LAYER}.attention.key", f"{_THEIR_LAYER}.attention.self.key"),
    *dense(f"{_LAYER}.attention.value", f"{_THEIR_LAYER}.attention.self.value"),
    *dense(f"{_LAYER}.attention.output", f"{_THEIR_LAYER}.attention.output.dense"),
    *norm(f"{_LAYER}.attention.norm", f"{_THEIR_LAYER}.attention.output.LayerNorm"),
    *dense(f"{_LAYER}.feed_forward.up", f"{_THEIR_LAYER}.intermediate.dense"),
    *dense(f"{_LAYER}.feed_forward.down", f"{_THEIR_LAYER}.output.dense"),
    *norm(f"{_LAYER}.feed_forward.norm", f"{_THEIR_LAYER}.output.LayerNorm"),
)
"""Layers."""

ENCODER_TENSORS: tuple[TensorName, ...] = (*TABLE_TENSORS, *LAYER_TENSORS, *dense("pooler.dense", "pooler.dense"))
"""Embeddings, layers and pooler."""

AXIS_RULES: tuple[Rule[tuple[str, ...]], ...] = (
    Rule(r"embeddings\.word\.embedding", (axes.VOCAB, axes.EMBEDDING)),
    Rule(r"embeddings\.position\.embedding", (axes.POSITIONS, axes.EMBEDDING)),
    Rule(r"embeddings\.token_type\.embedding", (axes.TOKEN_TYPES, axes.EMBEDDING), optional=True),
    Rule(r"embeddings\.norm\.(scale|bias)", (axes.EMBEDDING,)),
    Rule(r"embeddings\.project\.kernel", (axes.EMBEDDING, axes.EMBED), optional=True),
    Rule(r"encoder\.layers\.\d+\.attention\.(query|key|value)\.kernel", (axes.EMBED, axes.ATTENTION)),
    Rule(r"encoder\.layers\.\d+\.attention\.(query|key|value)\.bias", (axes.ATTENTION,)),
    Rule(r"encoder\.layers\.\d+\.attention\.output\.kernel", (axes.ATTENTION, axes.EMBED)),
    Rule(r"encoder\.layers\.\d+\.feed_forward\.up\.kernel", (axes.EMBED, axes.MLP)),
    Rule(r"encoder\.layers\.\d+\.feed_forward\.up\.bias", (axes.MLP,)),
    Rule(r"encoder\.layers\.\d+\.feed_forward\.down\.kernel", (axes.MLP, axes.EMBED)),
    Rule(r"pooler\.dense\.kernel", (axes.EMBED, axes.POOLED), optional=True),
    Rule(r"pooler\.dense\.bias", (axes.POOLED,), optional=True),
    Rule(r"classifier_dense\.kernel", (axes.EMBED, axes.POOLED), optional=True),
    Rule(r"classifier_dense\.bias", (axes.POOLED,), optional=True),
    Rule(r"classifier\.kernel", (axes.EMBED, axes.LABELS), optional=True),
    Rule(r"classifier\.bias", (axes.LABELS,), optional=True),
    Rule(r"next_sentence\.kernel", (axes.EMBED, axes.NEXT_SENTENCE), optional=True),
    Rule(r"next_sentence\.bias", (axes.NEXT_SENTENCE,), optional=True),
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
