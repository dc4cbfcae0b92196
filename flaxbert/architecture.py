"""The shape of an encoder and how it is executed: two frozen, hashable descriptions that modules are built from."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

from flaxbert.config import AttentionName, PrecisionName, RematPolicy
from flaxbert.errors import ConfigError

TASK_HEADS: dict[str, tuple[str, ...]] = {
    "sequence-classification": ("pooler", "classifier"),
    "token-classification": ("classifier",),
    "question-answering": ("span",),
    "multiple-choice": ("pooler", "classifier"),
    "relation-classification": ("relation",),
    "fill-mask": ("masked_lm",),
    "next-sentence-prediction": ("pooler", "next_sentence"),
    "pretraining": ("pooler", "masked_lm", "next_sentence"),
    "replaced-token-detection": ("replaced_token",),
    "late-interaction": ("projection",),
    "sentence-similarity": (),
    "feature-extraction": (),
}
"""The heads that each task puts on the encoder, unless a family says otherwise."""

FIRST_TOKEN_TASKS = frozenset({"sequence-classification", "next-sentence-prediction", "multiple-choice"})
"""Tasks whose heads read the vector of the first token only; the last block need not finish the others."""

TOKEN_SCORES = frozenset({"fill-mask", "pretraining", "replaced-token-detection", "late-interaction"})
"""Tasks that make no predictions of texts, whose heads say something of every token."""

PIPELINE_TAGS: dict[str, str] = {
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "multiple-choice": "multiple-choice",
    "fill-mask": "fill-mask",
    "pretraining": "fill-mask",
    "sentence-similarity": "sentence-similarity",
    "feature-extraction": "feature-extraction",
}
"""The hub's pipeline of each task; next sentence prediction and relations have none."""

Options = TypeVar("Options")

PositionEmbedding = Literal["learned", "sinusoidal", "none"]

TASK_ALIASES: dict[str, str] = {
    "text-classification": "sequence-classification",
    "masked-language-modeling": "fill-mask",
    "sentence-embedding": "sentence-similarity",
    "ner": "token-classification",
    "extractive-question-answering": "question-answering",
    "relation-extraction": "relation-classification",
}
"""Other names of the tasks."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of one model, with the names of Hugging Face's ``config.json`` where those are clear.

    Attributes:
      family: Name of the family, the ``model_type`` of the checkpoint.
      vocab_size: Rows of the word embedding.
      hidden_size: Width of the residual stream.
      embedding_size: Width of the embedding tables, projected to hidden_size; 0 takes hidden_size, without projection.
      num_hidden_layers: Number of blocks.
      num_attention_heads: Heads per block; the most of any block where they differ.
      intermediate_size: Width of the feed-forward layer; the widest where they differ.
      hidden_act: Activation of the feed-forward layer: gelu (erf), gelu_new (tanh), relu, silu…
      hidden_dropout_rate: Dropout of embeddings and block outputs, in [0, 1).
      attention_dropout_rate: Dropout of attention weights, in [0, 1).
      classifier_dropout_rate: Dropout before the classifier; None takes hidden_dropout_rate.
      max_position_embeddings: Rows of the position embedding, the most tokens of one input.
      position_offset: Rows of the position embedding before that of an input's first token. Where it is not 0, padding takes
        the row before (RoBERTa: padding 1, tokens 2, 3, 4…).
      position_embedding: learned; sinusoidal, which is computed and has no parameters (Vaswani et al., 2017, section 3.5); or none.
      type_vocab_size: Rows of the token type embedding; 0 for none.
      layer_norm_epsilon: Added to the variance in every layer norm.
      initializer_range: Standard deviation of new weights.
      pad_token_id: Id of the padding token.
      has_pooler: Whether a model without task head still carries the pooler.
      num_labels: Outputs of the classifier.
      labels: Names of the labels in order; empty where the checkpoint has none.
      projection_size: Width of the token vectors of late interaction.
      head_size: Width of one head where the heads do not fill hidden_size, as after some were removed; 0 takes hidden_size over
        num_attention_heads.
      layer_heads: Heads of each block; empty where all have num_attention_heads.
      layer_intermediate: Width of each block's feed-forward layer; empty where all have intermediate_size.
      problem_type: single_label_classification, multi_label_classification or regression; empty where not known.
      options: What the family alone needs, a frozen dataclass of its own; None where it needs nothing.
      extra: Further keys of the checkpoint's config.json, written back on export.
    """

    family: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    embedding_size: int = 0
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    classifier_dropout_rate: float | None = None
    max_position_embeddings: int = 512
    position_offset: int = 0
    position_embedding: PositionEmbedding = "learned"
    type_vocab_size: int = 2
    layer_norm_epsilon: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    has_pooler: bool = True
    num_labels: int = 2
    labels: tuple[str, ...] = ()
    projection_size: int = 128
    head_size: int = 0
    layer_heads: tuple[int, ...] = ()
    layer_intermediate: tuple[int, ...] = ()
    problem_type: str = ""
    options: Any = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False, compare=False)

    def __post_init__(self) -> None:
        positive = (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "num_labels",
            "projection_size",
        )
        for field in positive:
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{field} of the model is {value!r}, but must be a whole number of at least 1.")
        if self.embedding_size == self.hidden_size:
            object.__setattr__(self, "embedding_size", 0)
        if self.embedding_size < 0:
            raise ConfigError(f"embedding_size of the model is {self.embedding_size}, but must be at least 0.")
        if self.position_embedding not in get_args(PositionEmbedding):
            raise ConfigError(
                f"position_embedding of the model is {self.position_embedding!r}; choose learned, sinusoidal or none."
            )
        if not 0 <= self.position_offset < self.max_position_embeddings:
            raise ConfigError(
                f"position_offset {self.position_offset} leaves none of the {self.max_position_embeddings} positions."
            )
        self._settle_layers("layer_heads", "num_attention_heads")
        self._settle_layers("layer_intermediate", "intermediate_size")
        if self.head_size < 0:
            raise ConfigError(f"head_size of the model is {self.head_size}, but must be at least 0.")
        if self.head_size * self.num_attention_heads == self.hidden_size:
            object.__setattr__(self, "head_size", 0)
        if not self.head_size and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}."
            )
        for field in ("hidden_dropout_rate", "attention_dropout_rate"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ConfigError(f"{field} of the model is {getattr(self, field)}, but a dropout lies in [0, 1).")
        if self.labels and len(self.labels) != self.num_labels:
            raise ConfigError(f"The model has {self.num_labels} labels, but {len(self.labels)} label names.")

    def _settle_layers(self, field: str, whole: str) -> None:
        """Checks sizes of single layers, and forgets them where all layers are alike."""
        sizes = tuple(getattr(self, field))
        if sizes and (len(sizes) != self.num_hidden_layers or any(not isinstance(n, int) or n < 1 for n in sizes)):
            raise ConfigError(
                f"{field} of the model is {sizes}, but must be {self.num_hidden_layers} whole numbers of at least 1, one for each layer."
            )
        if sizes:
            object.__setattr__(self, whole, max(sizes))
        object.__setattr__(self, field, sizes if len(set(sizes)) > 1 else ())

    @property
    def max_length(self) -> int:
        """Most tokens of one input."""
        return self.max_position_embeddings - self.position_offset

    @property
    def embedding_width(self) -> int:
        """Width of the embedding tables."""
        return self.embedding_size or self.hidden_size

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_size or self.hidden_size // self.num_attention_heads

    @property
    def attention_size(self) -> int:
        """Width of all attention heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def has_equal_layers(self) -> bool:
        """Whether all layers have the same sizes."""
        return not (self.layer_heads or self.layer_intermediate)

    @property
    def layer_sizes(self) -> tuple["ModelConfig", ...]:
        """What each layer is built from, in order."""
        return tuple(self.for_layer(index) for index in range(self.num_hidden_layers))

    @property
    def num_next_sentence_labels(self) -> int:
        """Outputs of the next sentence head: is next, is not next."""
        return 2

    @property
    def num_span_ends(self) -> int:
        """Outputs of the question answering head for each token: starts the answer, ends it."""
        return 2

    @property
    def num_scores(self) -> int:
        """Outputs of a head that gives each token one score."""
        return 1

    @property
    def relation_size(self) -> int:
        """Width of what the relation head classifies: the whole input and two entities side by side."""
        return 3 * self.hidden_size

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, ``LABEL_0``… where the checkpoint has none."""
        return self.labels or tuple(f"LABEL_{index}" for index in range(self.num_labels))

    def own(self, kind: type[Options]) -> Options:
        """Returns the family's options, the usual ones where none are given.

        Args:
          kind: Class of the options.
        """
        return self.options if isinstance(self.options, kind) else kind()

    def for_layer(self, index: int) -> "ModelConfig":
        """Returns what one layer is built from: this config with that layer's own sizes as those of all.

        Args:
          index: Number of the layer, from 0.
        """
        if self.has_equal_layers:
            return self
        return dataclasses.replace(
            self,
            num_attention_heads=self.layer_heads[index] if self.layer_heads else self.num_attention_heads,
            intermediate_size=self.layer_intermediate[index] if self.layer_intermediate else self.intermediate_size,
            head_size=self.head_dim,
            layer_heads=(),
            layer_intermediate=(),
        )

    def replace(self, **changes: Any) -> "ModelConfig":
        """Returns a copy with some fields changed.

        Args:
          **changes: New values by attribute name.
        """
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Execution:
    """How the same mathematics is run; none of it changes parameters or, within float tolerance, results.

    Attributes:
      precision: Type of activations and matrix products.
      attention: Attention implementation: auto, xla, cudnn or splash.
      scan_layers: One scanned loop over stacked layers instead of unrolled layers.
      remat: What the backward pass recomputes: none, full, dots or attention.
    """

    precision: PrecisionName = "float32"
    attention: AttentionName = "auto"
    scan_layers: bool = False
    remat: RematPolicy = "none"


def resolve_task(task: str) -> str:
    """Returns the canonical name of a task.

    Args:
      task: A task name or alias.

    Raises:
      ConfigError: The task is unknown; names the nearest.
    """
    from flaxbert.errors import nearest

    canonical = TASK_ALIASES.get(task, task)
    if canonical not in TASK_HEADS:
        known = [*TASK_HEADS, *TASK_ALIASES]
        raise ConfigError(f"Unknown task '{task}'; known are {', '.join(known)}.{nearest(task, known)}")
    return canonical
