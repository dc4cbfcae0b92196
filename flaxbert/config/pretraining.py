"""A pre-training run: which model, which rows, how words are hidden, what else is learned."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from flaxbert.config.checks import require, require_at_least, require_rate
from flaxbert.config.distillation import INTERMEDIATE_TERMS, DistillationConfig, StudentConfig, TeacherConfig
from flaxbert.config.mesh import MeshConfig
from flaxbert.config.model import AttentionName, PrecisionName, RematPolicy
from flaxbert.config.output import OutputConfig
from flaxbert.config.train import TrainConfig
from flaxbert.errors import ConfigError

MaskingUnit = Literal["token", "word", "ngram", "span"]


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """How tokens are masked.

    Attributes:
      rate: Share of the real tokens that are to be predicted.
      unit: What is drawn: single tokens (Devlin et al., 2019), whole words, n-grams of words (Lan et al., 2020, section 3.1: length ``n``
        with a probability proportional to ``1 / n``), or spans of words (Joshi et al., 2020, section 3.1: geometric lengths).
      hidden_rate: Share of the drawn tokens that the mask token replaces.
      random_rate: Share of the drawn tokens that a random token replaces; the rest stays as it is.
      max_ngram: Most words of an n-gram.
      span_end_rate: Chance that a span ends after each of its words.
      max_span: Most words of a span.
    """

    rate: float = 0.15
    unit: MaskingUnit = "token"
    hidden_rate: float = 0.8
    random_rate: float = 0.1
    max_ngram: int = 3
    span_end_rate: float = 0.2
    max_span: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"masking.rate is {self.rate}, but must lie between 0 and 1, for example 0.15.")
        if min(self.hidden_rate, self.random_rate) < 0 or self.hidden_rate + self.random_rate > 1 + 1e-9:
            raise ConfigError(
                f"masking.hidden_rate is {self.hidden_rate} and masking.random_rate {self.random_rate}; neither may be negative, and "
                "their sum is at most 1."
            )
        if not 0 < self.span_end_rate <= 1:
            raise ConfigError(f"masking.span_end_rate is {self.span_end_rate}, but must be over 0 and at most 1.")
        for name in ("max_ngram", "max_span"):
            require_at_least("masking", name, getattr(self, name), 1)


@dataclasses.dataclass(frozen=True)
class PretrainModel:
    """Which model is pre-trained.

    Attributes:
      path: Checkpoint to go on from, a folder or an id on the hub. Empty: new weights.
      revision: Branch, tag or commit on the hub.
      family: Family of a new model.
      size: Size of a new model: tiny (2 layers of 128), mini (4 of 256), small (4 of 512), medium (8 of 512), base (12 of 768) or large (24 of 1024).
      architecture: Keys of ``config.json`` that a new model has otherwise, for example {"hidden_dropout_prob": 0.0}.
      precision: Type that the matrix products are computed in; parameters stay float32.
      attention: Attention implementation, as for fine-tuning.
      scan_layers: Run the layers as one scanned loop.
      remat: What to recompute in the backward pass.
      offline: Never contact the hub.
    """

    path: str = ""
    revision: str = ""
    family: str = "bert"
    size: Literal["tiny", "mini", "small", "medium", "base", "large"] = "small"
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    precision: PrecisionName = "bfloat16"
    attention: AttentionName = "auto"
    scan_layers: bool = False
    remat: RematPolicy = "none"
    offline: bool = False


@dataclasses.dataclass(frozen=True)
class PretrainPhase:
    """A stretch of a run whose batches have one shape.

    Attributes:
      share: Steps of this phase relative to those of the others.
      row_length: Tokens of a row; 0 takes data.row_length.
      batch_size: Rows per optimizer step; 0 takes train.batch_size.
    """

    share: float = 1.0
    row_length: int = 0
    batch_size: int = 0

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise ConfigError(f"data.phases has a share of {self.share}, but shares are over 0.")
        if self.batch_size < 0 or (self.row_length and self.row_length < 8) or self.row_length < 0:
            raise ConfigError(
                f"data.phases has row_length {self.row_length} and batch_size {self.batch_size}; a row has at least 8 tokens and a batch a "
                "row, 0 takes the value of the run."
            )


@dataclasses.dataclass(frozen=True)
class PretrainData:
    """Which prepared corpora are read, and how they become rows.

    Attributes:
      corpora: Folders that ``flaxbert prepare`` wrote, with one tokenizer.
      weights: How often the rows of each come, relative to each other. Empty: as often as there are rows.
      validation: Folder of a prepared corpus of held-out text. Empty: ``validation_rate`` of the documents of the first corpus.
      validation_rate: Share of the documents that is held out.
      max_validation_rows: Most rows of an evaluation; 0 takes all.
      row_length: Tokens of a row.
      phases: Stretches of the run one after the other, each with its own row length and batch size: short rows first and long ones at the end (Devlin et al., 2019), or batches that grow. Empty: all steps alike.
      packing: best_fit or first_fit put several pieces into a row; none leaves each alone, with padding.
      min_tokens: Pieces with fewer tokens are left out.
      max_pieces: Most pieces of a row; 0 for any number.
      skip_damaged: Leave out files of a corpus that are missing or cut off, instead of refusing it.
      num_workers: Processes that make batches ahead, for devices that learn faster than one thread makes rows; each holds the numbers of all pieces. 0: a thread. The batches are the same.
    """

    corpora: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    validation: str = ""
    validation_rate: float = 0.01
    max_validation_rows: int = 512
    row_length: int = 128
    phases: tuple[PretrainPhase, ...] = ()
    packing: Literal["best_fit", "first_fit", "none"] = "best_fit"
    min_tokens: int = 8
    max_pieces: int = 0
    skip_damaged: bool = False
    num_workers: int = 0

    def __post_init__(self) -> None:
        require_rate("data", "validation_rate", self.validation_rate, upper_open=True)
        limits = {"max_validation_rows": 0, "row_length": 8, "min_tokens": 1, "max_pieces": 0, "num_workers": 0}
        for name, least in limits.items():
            require_at_least("data", name, getattr(self, name), least)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is learned beside hidden words.

    Attributes:
      pairs: none; next_sentence (whether the second text follows the first or is another one's; BERT, ERNIE); sentence_order (whether two texts that follow each other were exchanged; ALBERT).
      pair_weight: Factor of the loss of pairs.
      replaced_tokens: Train a discriminator, which says of every token whether a generator has replaced it, beside that generator (ELECTRA, DeBERTa 3).
      replaced_weight: Factor of the discriminator's loss.
      generator: Checkpoint of a generator to go on from, a folder or an id on the hub. Empty: a new one.
      generator_rate: Size of a new generator: share of the discriminator's width (ELECTRA) or depth (other families).
      sharing: What both share of their embeddings: none; tied tables; disentangled (the discriminator adds a table of its own, He et al., 2023).
    """

    pairs: Literal["none", "next_sentence", "sentence_order"] = "none"
    pair_weight: float = 1.0
    replaced_tokens: bool = False
    replaced_weight: float = 50.0
    generator: str = ""
    generator_rate: float = 0.25
    sharing: Literal["none", "tied", "disentangled"] = "tied"

    def __post_init__(self) -> None:
        if not self.pair_weight > 0:
            raise ConfigError(
                f"objective.pair_weight is {self.pair_weight}, but must be over 0; for no pairs set pairs: none."
            )
        if self.replaced_tokens and self.pairs != "none":
            raise ConfigError("objective.replaced_tokens and objective.pairs do not go together; set pairs: none.")
        if self.generator and not self.replaced_tokens:
            raise ConfigError("objective.generator is read with objective.replaced_tokens: true only.")
        if not (self.replaced_weight > 0 and 0 < self.generator_rate <= 1):
            raise ConfigError(
                f"objective.replaced_weight is {self.replaced_weight} and objective.generator_rate {self.generator_rate}; both must be "
                "over 0, the second at most 1."
            )


DISTILBERT = DistillationConfig(
    stages="joint", soft_weight=5.0, hard_weight=2.0, hidden_cosine_weight=1.0, temperature=2.0
)
"""What a student is compared by on raw text unless told otherwise: the terms and weights that DistilBERT was trained with (Sanh et al., 2019)."""


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """A pre-training run.

    Attributes:
      model: Which model.
      data: Which corpora.
      masking: How words are hidden.
      objective: What is learned beside them.
      train: How it is trained.
      mesh: How devices are arranged.
      output: Where it writes.
      teacher: A model that fills in words, which a student learns from; nobody without teacher.path.
      student: How the student is made of the teacher, where model.path names none.
      distillation: What it is compared by.
    """

    model: PretrainModel = dataclasses.field(default_factory=PretrainModel)
    data: PretrainData = dataclasses.field(default_factory=PretrainData)
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    output: OutputConfig = dataclasses.field(default_factory=OutputConfig)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)
    distillation: DistillationConfig = DISTILBERT

    def __post_init__(self) -> None:
        unused = [name for name in ("label_smoothing_rate", "class_weights") if getattr(self.train, name)]
        if unused:
            raise ConfigError(f"Pre-training does not use train.{' and train.'.join(unused)}; leave it out.")
        if self.teacher.path:
            self._check_teacher()
        elif self.student != StudentConfig() or self.distillation != DISTILBERT or self.teacher != TeacherConfig():
            raise ConfigError(
                "teacher.path is empty, so the sections teacher, student and distillation have no use; name a model that fills in words."
            )

    def _check_teacher(self) -> None:
        require(
            not self.objective.replaced_tokens and self.objective.pairs == "none",
            "A teacher shows how words are filled in; objective.replaced_tokens and objective.pairs do not go with teacher.path.",
        )
        require(
            not self.teacher.cache,
            "teacher.cache stores what the teacher says of fixed examples, but raw text is masked anew in every epoch; leave it out.",
        )
        inside = self.distillation.terms(INTERMEDIATE_TERMS)
        require(
            not self.distillation.has_two_stages,
            f"On raw text all terms are learned at once; set distillation.stages to joint, or leave {', '.join(inside)} out.",
        )
        require(
            not self.distillation.patient_weight or self.data.packing == "none",
            "distillation.patient_weight compares the first token of a text, but packed rows hold several; set data.packing to none.",
        )
        require(
            bool(self.model.path) or not self.model.architecture,
            "model.architecture is for new models, but a student is made of its teacher: give its sizes in the section student.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the whole config as nested dictionaries, fit for YAML and JSON."""
        return dataclasses.asdict(self)
