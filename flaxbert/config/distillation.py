"""How a student learns from a teacher."""

import dataclasses
from typing import Literal

from flaxbert.config.checks import require, require_at_least
from flaxbert.config.model import AttentionName, PrecisionName
from flaxbert.config.run import RunConfig
from flaxbert.config.train import TrainConfig

TemperatureSchedule = Literal["constant", "linear", "cosine", "exponential"]

INTERMEDIATE_TERMS = (
    "embedding",
    "hidden",
    "hidden_cosine",
    "attention",
    "attention_relation",
    "query_relation",
    "key_relation",
    "value_relation",
    "patient",
)
"""Terms that compare what is inside of teacher and student."""

PREDICTION_TERMS = ("soft", "logit", "hard")
"""Terms that compare what comes out, or the labels."""


@dataclasses.dataclass(frozen=True)
class OtherTeacher:
    """One more teacher, whose outputs count beside those of the first.

    Attributes:
      path: Folder of a checkpoint, or an id on the hub.
      weight: Its weight beside that of the other teachers.
    """

    path: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Which model a student learns from.

    Attributes:
      path: Folder of a checkpoint that was trained for the task, or an id on the hub; quantized models too.
      revision: Branch, tag or commit on the hub; only for ids.
      weight: Weight of its probabilities where there are several teachers.
      others: Further teachers; the probabilities (or scores) of all are averaged by weight. What is inside is taken from the first alone.
      precision: Type that its matrix products are computed in.
      attention: Its attention implementation, as for model.attention.
      scan_layers: Run its layers as one scanned loop, as for model.scan_layers.
      cache: Folder for its outputs on the training examples: they are computed once, before training, and used again by later runs whose teacher and examples are the same. Empty: computed in every step.
      cache_top_k: Most scores of each output that are stored; of the others only their share together. 0 stores all.
      offline: Never contact the hub; only use what is on this machine.
    """

    path: str = ""
    revision: str = ""
    weight: float = 1.0
    others: tuple[OtherTeacher, ...] = ()
    precision: PrecisionName = "float32"
    attention: AttentionName = "auto"
    scan_layers: bool = False
    cache: str = ""
    cache_top_k: int = 0
    offline: bool = False

    def __post_init__(self) -> None:
        require_at_least("teacher", "cache_top_k", self.cache_top_k, 0)
        for name, weight in (("weight", self.weight), *((f"others: {one.path}", one.weight) for one in self.others)):
            require(weight > 0, f"teacher.{name} has weight {weight}, but the weight of a teacher is above 0.")


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """How a student is made of the teacher where model.path names none.

    Attributes:
      init: teacher_layers takes whole layers of the teacher; sliced makes narrower layers of them, fitted to the teacher's activations by least squares; random draws new weights.
      layers: Layers of the teacher, from 0, that the student's are made of (and compared with).
      every: Takes every so-manieth layer of the teacher, from 0: with 2 the layers 0, 2, 4… 0: as layers or num_layers say.
      num_layers: Layers of the student, spread evenly over the teacher's and ending with its last; 0: as layers or every say, else as many as the teacher has.
      hidden_size: Width of the student; 0: that of the teacher.
      num_attention_heads: Heads of the student; 0: as many as keep the width of the teacher's heads, else as many as the teacher has.
      intermediate_size: Width of its feed-forward layers; 0: in proportion to hidden_size.
      calibration_examples: Training examples whose activations the sliced student is fitted to.
    """

    init: Literal["teacher_layers", "sliced", "random"] = "teacher_layers"
    layers: tuple[int, ...] = ()
    every: int = 0
    num_layers: int = 0
    hidden_size: int = 0
    num_attention_heads: int = 0
    intermediate_size: int = 0
    calibration_examples: int = 512

    def __post_init__(self) -> None:
        for field in ("every", "num_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
            require_at_least("student", field, getattr(self, field), 0)
        require_at_least("student", "calibration_examples", self.calibration_examples, 1)
        given = [name for name in ("layers", "every", "num_layers") if getattr(self, name)]
        require(len(given) <= 1, f"student.{' and student.'.join(given)} contradict each other; give one of them.")


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """What a student is compared with its teacher by; a weight of 0 switches a term off.

    Attributes:
      stages: two: first the terms of what is inside (section intermediate), then those of the outputs (section train); joint: all at once.
      soft_weight: Divergence from the teacher's probabilities (Hinton et al., 2015); squared error for a regression.
      logit_weight: Squared error of the scores before softmax (Ba and Caruana, 2014).
      hard_weight: The task's own loss on the labels.
      temperature: What scores are divided by in the soft term, above 0.
      temperature_schedule: How the temperature goes to end_temperature over the run: constant (not at all), linear, cosine or exponential.
      end_temperature: Temperature at the last step.
      embedding_weight: Squared error of the embeddings (Jiao et al., 2020), through a learned projection where widths differ.
      hidden_weight: The same of the hidden states after the mapped layers.
      hidden_cosine_weight: Cosine distance of the hidden states after the mapped layers (Sanh et al., 2019).
      attention_weight: Squared error of the attention scores before softmax of the mapped layers (Jiao et al., 2020).
      attention_relation_weight: Divergence of the attention of one layer (Wang et al., 2020).
      query_relation_weight: Divergence of the relations of the queries of one layer among each other (Wang et al., 2021).
      key_relation_weight: The same of the keys.
      value_relation_weight: The same of the values (Wang et al., 2020 and 2021).
      patient_weight: Squared error of the normalised first tokens of the mapped layers but the last (Sun et al., 2019).
      layer_map: The teacher's layer, from 0, for each layer of the student. Empty: the layers that the student was made of, else spread evenly.
      relation_heads: Heads that queries, keys and values are cut into for their relations; 0: as many as the student has.
      relation_teacher_layer: Layer of the teacher, from 0, whose relations are learned; -1: the last.
      relation_student_layer: Layer of the student that learns them; -1: the last.
    """

    stages: Literal["two", "joint"] = "two"
    soft_weight: float = 1.0
    logit_weight: float = 0.0
    hard_weight: float = 0.0
    temperature: float = 1.0
    temperature_schedule: TemperatureSchedule = "constant"
    end_temperature: float = 1.0
    embedding_weight: float = 0.0
    hidden_weight: float = 0.0
    hidden_cosine_weight: float = 0.0
    attention_weight: float = 0.0
    attention_relation_weight: float = 0.0
    query_relation_weight: float = 0.0
    key_relation_weight: float = 0.0
    value_relation_weight: float = 0.0
    patient_weight: float = 0.0
    layer_map: tuple[int, ...] = ()
    relation_heads: int = 0
    relation_teacher_layer: int = -1
    relation_student_layer: int = -1

    def __post_init__(self) -> None:
        for term in (*INTERMEDIATE_TERMS, *PREDICTION_TERMS):
            require_at_least("distillation", f"{term}_weight", self.weight(term), 0)
        for field in ("temperature", "end_temperature"):
            value = getattr(self, field)
            require(0 < value < float("inf"), f"distillation.{field} is {value}, but a temperature is above 0.")
        require_at_least("distillation", "relation_heads", self.relation_heads, 0)
        for field in ("relation_teacher_layer", "relation_student_layer"):
            require_at_least("distillation", field, getattr(self, field), -1)
        require(
            any(self.weight(term) for term in (*INTERMEDIATE_TERMS, *PREDICTION_TERMS)),
            "All weights of the section distillation are 0, so that there is nothing to learn; give one of them a weight.",
        )

    def weight(self, term: str) -> float:
        """Returns the weight of a term.

        Args:
          term: One of ``INTERMEDIATE_TERMS`` or ``PREDICTION_TERMS``.
        """
        return float(getattr(self, f"{term}_weight"))

    def terms(self, names: tuple[str, ...]) -> dict[str, float]:
        """Returns those of some terms that have a weight, with it.

        Args:
          names: Names of terms.
        """
        return {name: self.weight(name) for name in names if self.weight(name)}

    @property
    def has_two_stages(self) -> bool:
        """Whether what is inside is learned in a run of its own, before the outputs."""
        return self.stages == "two" and bool(self.terms(INTERMEDIATE_TERMS)) and bool(self.terms(PREDICTION_TERMS))


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """How training texts are added whose words a masked language model has replaced (Jiao et al., 2020, algorithm 1).

    Attributes:
      model: Folder of a model that fills in words, or an id on the hub.
      revision: Branch, tag or commit on the hub; only for ids.
      copies: Copies of every training text; 0: none.
      probability: Share of the words of a copy that are replaced.
      num_candidates: Most likely words that one is drawn from.
      offline: Never contact the hub; only use what is on this machine.
    """

    model: str = ""
    revision: str = ""
    copies: int = 0
    probability: float = 0.4
    num_candidates: int = 15
    offline: bool = False

    def __post_init__(self) -> None:
        require_at_least("augmentation", "copies", self.copies, 0)
        require_at_least("augmentation", "num_candidates", self.num_candidates, 1)
        require(
            0 < self.probability <= 1,
            f"augmentation.probability is {self.probability}, but must be over 0 and at most 1.",
        )
        require(
            bool(self.model) == bool(self.copies),
            "augmentation.model and augmentation.copies belong together: name a model that fills in words, and how many copies it makes of every text.",
        )


@dataclasses.dataclass(frozen=True)
class DistillConfig(RunConfig):
    """A whole distillation: a fine-tuning run of a student, with what it learns from.

    Attributes:
      teacher: Which model the student learns from.
      student: How the student is made of the teacher.
      distillation: What it is compared by.
      intermediate: How the first of two stages trains.
      augmentation: Texts that are added to the training examples.
    """

    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)
    distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)
    intermediate: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)

    def __post_init__(self) -> None:
        require(
            not self.quantize.is_on,
            f"quantize.bits is {self.quantize.bits}, but distillation does not round; train the student on (flaxbert finetune --model.path STUDENT "
            "--quantize.bits …) or quantize it (flaxbert quantize).",
        )
