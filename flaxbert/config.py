"""Configuration of a run: frozen dataclasses, the only source of command line flags, YAML files and documentation.

Units are in the names or in the attribute's description. ``RunConfig`` is what ``flaxbert finetune`` reads; its sections are
the words before the dot in overrides such as ``--train.learning_rate 3e-5``.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from flaxbert.errors import ConfigError
from flaxbert.task_config import TaskConfig

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
PrecisionName = Literal["float32", "bfloat16", "float16"]
AttentionName = Literal["auto", "xla", "cudnn", "splash"]
RematPolicy = Literal["none", "full", "dots", "attention"]
ScheduleName = Literal[
    "linear",
    "cosine",
    "polynomial",
    "exponential",
    "step",
    "inverse_square_root",
    "constant",
    "warmup_stable_decay",
]
OptimizerName = Literal["adamw", "adam", "sgd", "lamb", "lion", "adafactor", "muon", "stable_adamw"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_rate(section: str, field: str, value: float, upper_open: bool = False) -> None:
    inside = 0.0 <= value < 1.0 if upper_open else 0.0 <= value <= 1.0
    _require(
        inside,
        f"{section}.{field} is {value}, but a rate lies in [0, 1{')' if upper_open else ']'}.",
    )


def _require_at_least(section: str, field: str, value: float, least: float) -> None:
    _require(
        not math.isnan(value) and value >= least,
        f"{section}.{field} is {value}, but must be at least {least}.",
    )


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Which model a run starts from.

    Attributes:
      path: Folder of a checkpoint (Hugging Face or sentence-transformers layout), or an id on the hub.
      revision: Branch, tag or commit on the hub; only for ids.
      task: sequence-classification, token-classification, question-answering, relation-classification, multiple-choice, fill-mask, next-sentence-prediction or sentence-similarity. Empty: sequence-classification.
      problem_type: single_label_classification, multi_label_classification or regression. Empty: from the labels of the data.
      precision: Type that the matrix products are computed in; parameters stay float32.
      attention: Attention implementation; auto picks cudnn on NVIDIA GPUs in half precision, splash on TPUs for lengths of 1024 and more, else xla.
      scan_layers: Run the layers as one scanned loop over stacked leaves (fast compilation) instead of unrolled (fast steps on CPU).
      remat: What to recompute in the backward pass instead of keeping: none, full (everything), dots (keep matrix products), attention (recompute the attention half of every block; its weights are never kept).
      pooling: How token vectors become a sentence vector where the task needs one: cls, mean or max. Empty: as the checkpoint says.
      dropout_rate: Overrides the checkpoint's hidden dropout, in [0, 1). Negative: keep the checkpoint's.
      attention_dropout_rate: Overrides the checkpoint's attention dropout, in [0, 1). Negative: keep the checkpoint's.
      classifier_dropout_rate: Overrides the dropout before the classifier, in [0, 1). Negative: keep the checkpoint's.
      from_scratch: Start from random weights with the configuration and tokenizer found at path.
      offline: Never contact the hub; only use what is on this machine.
    """

    path: str = ""
    revision: str = ""
    task: str = ""
    problem_type: str = ""
    precision: PrecisionName = "float32"
    attention: AttentionName = "auto"
    scan_layers: bool = False
    remat: RematPolicy = "none"
    pooling: Literal["", "cls", "mean", "max"] = ""
    dropout_rate: float = -1.0
    attention_dropout_rate: float = -1.0
    classifier_dropout_rate: float = -1.0
    from_scratch: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        for field in (
            "dropout_rate",
            "attention_dropout_rate",
            "classifier_dropout_rate",
        ):
            if getattr(self, field) >= 0:
                _require_rate("model", field, getattr(self, field), upper_open=True)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    r"""Which examples a run reads and how they become batches.

    Attributes:
      train: File (CSV, TSV, JSONL, Parquet; .gz too), folder written by ``datasets``, or hub id of the training examples.
      validation: The same for the held-out examples. Empty: ``validation_rate`` of the training examples is held out.
      test: The same for a last evaluation after training. Empty: none.
      format: csv, tsv, jsonl, lines (one record a line, taken apart by ``line_pattern``), parquet, datasets or hub; conll (a word and its tag a line), squad (the JSON of SQuAD) or semeval (TRAIN_FILE.TXT of SemEval-2010 task 8) for their tasks. Empty: from the name.
      name: Configuration of a hub data set, for example sst2 of glue.
      train_split: Split of a hub data set for training.
      validation_split: Split of a hub data set for validation.
      test_split: Split of a hub data set for the test.
      text_column: Name or position (0-based, for files without header) of the text, or of the first text of a pair.
      text_pair_column: The same for the second text of a pair. Empty: single texts.
      label_column: The same for the label.
      header: Whether CSV and TSV files start with a line of column names.
      delimiter: Field separator of CSV and TSV files. Empty: comma or tab by format.
      quoting: Whether CSV and TSV fields can be quoted with double quotes.
      allow_extra_fields: Whether lines of CSV and TSV files may have more fields than the first one (they are ignored).
      line_pattern: Regular expression that must match each whole line of a lines file; its named groups are the columns, for example ``(?P<label>[A-Z]+):\S+ (?P<text>.+)``. Empty: the line is the column text.
      encoding: Text encoding of the files.
      labels: Label names in the order of their numbers. Empty: the sorted distinct labels of the training examples.
      label_map: Renames raw labels before anything else, for example {"0": "negative", "1": "positive"}.
      label_separator: Character between the labels of one example for multi-label data.
      validation_rate: Share of the training examples held out when validation is empty, in [0, 1).
      max_length: Most tokens of one input, special tokens included; longer inputs are truncated and counted. 0: the model's maximum.
      truncation: For pairs: longest_first, only_first or only_second; error refuses inputs that are too long.
      length_buckets: Lengths in tokens that batches are padded to. Empty: powers of two and their middles from 16 to max_length.
      group_by_length: Batch examples of similar length together, within windows of 64 batches.
      max_train_examples: Keep only so many training examples, in file order; 0 keeps all.
      max_validation_examples: The same for validation.
      shuffle: Whether training examples are shuffled anew each epoch.
    """

    train: str = ""
    validation: str = ""
    test: str = ""
    format: Literal["", "csv", "tsv", "jsonl", "lines", "parquet", "datasets", "hub", "conll", "squad", "semeval"] = ""
    name: str = ""
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    text_column: str = "text"
    text_pair_column: str = ""
    label_column: str = "label"
    header: bool = True
    delimiter: str = ""
    quoting: bool = True
    allow_extra_fields: bool = False
    line_pattern: str = ""
    encoding: str = "utf-8"
    labels: tuple[str, ...] = ()
    label_map: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label_separator: str = ","
    validation_rate: float = 0.1
    max_length: int = 128
    truncation: Literal["longest_first", "only_first", "only_second", "error"] = "longest_first"
    length_buckets: tuple[int, ...] = ()
    group_by_length: bool = True
    max_train_examples: int = 0
    max_validation_examples: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        _require_rate("data", "validation_rate", self.validation_rate, upper_open=True)
        for field in (
            "max_length",
            "max_train_examples",
            "max_validation_examples",
        ):
            _require_at_least("data", field, getattr(self, field), 0)
        _require(
            len(self.delimiter) <= 1,
            f"data.delimiter is {self.delimiter!r}, but must be one character or empty.",
        )
        _require(
            all(length > 0 for length in self.length_buckets),
            f"data.length_buckets is {self.length_buckets}, but lengths are positive.",
        )


@dataclasses.dataclass(frozen=True)
class FreezeRule:
    r"""One rule of ``train.freeze``.

    Attributes:
      pattern: Regular expression that must match the whole dotted name of a leaf, for example ``embeddings\..*``.
      frozen: Whether matching leaves stay as they are.
    """

    pattern: str
    frozen: bool = True


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
      batch_size: Examples per optimizer step over all devices, or auto: the global batch is ``target_batch_size`` and the largest micro batch that fits is found.
      target_batch_size: Examples per optimizer step when batch_size is auto.
      accumulation_steps: Micro batches whose gradients are added up before one optimizer step; batch_size must be divisible by it.
      num_epochs: Passes over the training examples; may be fractional. Ignored when num_steps is set.
      num_steps: Optimizer steps; 0 derives them from num_epochs.
      learning_rate: Peak learning rate.
      schedule: What follows the warm-up: linear, cosine, polynomial, exponential, step, inverse_square_root, constant or warmup_stable_decay (the peak until the last decay_steps).
      warmup_rate: Share of all steps over which the learning rate rises linearly from 0, in [0, 1].
      warmup_steps: The same as a number of steps; 0 uses warmup_rate.
      end_learning_rate: Learning rate at the last step of linear, cosine, polynomial and exponential schedules.
      polynomial_power: Exponent of the polynomial schedule.
      decay_rate: Factor of the exponential schedule over decay_steps and of each drop of the step schedule.
      decay_steps: Steps per decay of the exponential and step schedules, and of the fall of warmup_stable_decay; 0: a tenth of the run.
      optimizer: adamw, adam or sgd; lamb for large batches, lion, adafactor (little memory), muon (orthogonal steps for the matrices of the blocks; Adam for the rest) or stable_adamw.
      weight_decay: Decay per step; biases and norms are exempt. Decoupled and times the learning rate for adamw, added to the gradient for adam and sgd.
      adam_beta1: Decay of the first moment.
      adam_beta2: Decay of the second moment.
      adam_epsilon: Added to the root of the second moment.
      momentum: Momentum of sgd.
      max_grad_norm: Gradients are scaled down to this global norm; 0 switches clipping off.
      label_smoothing_rate: Share of the target mass spread over all labels, in [0, 1).
      class_weights: Loss weight per label in label order; empty weighs all alike; balanced derives them from the training labels.
      freeze: Rules tried in order against leaf names; leaves that no rule matches are trained.
      seed: Seed of initial heads, dropout, shuffling and splits.
      evaluate_every: Optimizer steps between evaluations; 0 evaluates at the end of each epoch.
      evaluation_batch_size: Examples per evaluation batch; 0 takes 32.
      checkpoint_every: Optimizer steps between checkpoints; 0 saves at each evaluation.
      keep_checkpoints: Newest checkpoints that are kept beside the best one.
      log_every: Optimizer steps between lines of metrics.
      metric: Metric that chooses the best checkpoint; empty takes the task's first (accuracy, f1_micro, spearman, f1…).
      early_stopping_patience: Evaluations without improvement after which training stops; 0 never stops early.
      early_stopping_threshold: Least change of the metric that counts as an improvement.
      plateau_patience: Evaluations without improvement after which the learning rate is multiplied by plateau_factor; 0 switches it off.
      plateau_factor: Factor of the reduction on plateau, in (0, 1).
      load_best_at_end: Whether the best checkpoint rather than the last one becomes the result.
      initial_loss_scale: First loss scale of float16 training.
      loss_scale_growth_steps: Finite steps after which the loss scale of float16 training doubles.
      resume: auto continues from the newest good checkpoint of the output folder, never starts anew (an existing run is an error), must refuses to start without one.
    """

    batch_size: int | Literal["auto"] = 32
    target_batch_size: int = 32
    accumulation_steps: int = 1
    num_epochs: float = 3.0
    num_steps: int = 0
    learning_rate: float = 5e-5
    schedule: ScheduleName = "linear"
    warmup_rate: float = 0.1
    warmup_steps: int = 0
    end_learning_rate: float = 0.0
    polynomial_power: float = 1.0
    decay_rate: float = 0.5
    decay_steps: int = 0
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    momentum: float = 0.9
    max_grad_norm: float = 1.0
    label_smoothing_rate: float = 0.0
    class_weights: tuple[float, ...] | Literal["balanced"] = ()
    freeze: tuple[FreezeRule, ...] = ()
    seed: int = 0
    evaluate_every: int = 0
    evaluation_batch_size: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    log_every: int = 10
    metric: str = ""
    early_stopping_patience: int = 0
    early_stopping_threshold: float = 0.0
    plateau_patience: int = 0
    plateau_factor: float = 0.5
    load_best_at_end: bool = True
    initial_loss_scale: float = 32768.0
    loss_scale_growth_steps: int = 2000
    resume: Literal["auto", "never", "must"] = "auto"

    def __post_init__(self) -> None:
        if self.batch_size != "auto":
            _require_at_least("train", "batch_size", self.batch_size, 1)
            _require(
                self.batch_size % max(self.accumulation_steps, 1) == 0,
                f"train.batch_size {self.batch_size} is not divisible by train.accumulation_steps "
                f"{self.accumulation_steps}; choose a batch size that is a multiple of it.",
            )
        for field in (
            "target_batch_size",
            "accumulation_steps",
            "log_every",
            "keep_checkpoints",
        ):
            _require_at_least("train", field, getattr(self, field), 1)
        for field in (
            "num_epochs", "num_steps", "learning_rate", "warmup_steps", "end_learning_rate", "decay_steps",
            "weight_decay", "max_grad_norm", "evaluate_every", "evaluation_batch_size", "checkpoint_every",
            "early_stopping_patience", "early_stopping_threshold", "plateau_patience",
        ):  # fmt: skip
            _require_at_least("train", field, getattr(self, field), 0)
        for field in (
            "warmup_rate",
            "adam_beta1",
            "adam_beta2",
            "momentum",
            "plateau_factor",
        ):
            _require_rate("train", field, getattr(self, field))
        _require_rate("train", "label_smoothing_rate", self.label_smoothing_rate, upper_open=True)
        _require(
            self.num_steps > 0 or self.num_epochs > 0,
            "train.num_steps and train.num_epochs are both 0: nothing to do.",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged; the product of the axes must be the number of devices.

    Attributes:
      data: Devices over which only the batch is split; 0 takes what the other axes leave.
      fsdp: Devices over which the batch and the parameters with their optimizer state are split.
      tensor: Devices over which heads, feed-forward and vocabulary are split.
      coordinator: Address host:port of process 0 for several processes; empty detects the cluster (Slurm, Kubernetes, Cloud TPU, Open MPI) or runs as one process.
      num_processes: Number of processes; 0 detects it.
      process_id: Number of this process, from 0; -1 detects it.
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1
    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1

    def __post_init__(self) -> None:
        _require_at_least("mesh", "data", self.data, 0)
        for field in ("fsdp", "tensor"):
            _require_at_least("mesh", field, getattr(self, field), 1)


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """Where a run writes.

    Attributes:
      folder: Folder of the run: ``model/`` (the result), ``checkpoints/``, ``metrics.jsonl``, ``plots/``, ``tensorboard/``.
      tensorboard: Whether TensorBoard event files are written.
      plots: Whether PNG plots are written at the end.
      progress: auto shows a live line on a terminal and plain lines elsewhere; plain or off choose.
    """

    folder: str = "runs/finetune"
    tensorboard: bool = True
    plots: bool = True
    progress: Literal["auto", "plain", "off"] = "auto"


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole fine-tuning run.

    Attributes:
      model: Which model the run starts from.
      data: Which examples it reads.
      task: What its task needs beyond texts and labels.
      train: How it is trained.
      mesh: How devices are arranged.
      output: Where the run writes.
    """

    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    output: OutputConfig = dataclasses.field(default_factory=OutputConfig)

    def to_dict(self) -> dict[str, Any]:
        """Returns the run as plain nested dictionaries, ready for JSON or YAML."""
        return dataclasses.asdict(self)
