"""How a model is trained."""

import dataclasses
import re
from typing import Literal

from flaxbert.config.checks import require, require_at_least, require_rate

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
      accumulation_steps: Micro batches whose gradients are added up before one optimizer step; batch_size must be divisible by it. auto: as few as memory allows.
      num_epochs: Passes over the training examples; may be fractional. Ignored when num_steps is set.
      num_steps: Optimizer steps; 0 derives them from num_epochs.
      learning_rate: Peak learning rate.
      schedule: What follows the warm-up: linear, cosine, polynomial, exponential, step, inverse_square_root, constant or warmup_stable_decay (the peak until the last decay_steps).
      warmup_rate: Share of all steps over which the learning rate rises linearly from 0, in [0, 1].
      warmup_steps: The same as a number of steps; 0 uses warmup_rate.
      end_learning_rate: Learning rate at the last step of linear, cosine, polynomial, exponential and warmup_stable_decay schedules.
      polynomial_power: Exponent of the polynomial schedule.
      decay_rate: Factor of the exponential schedule over decay_steps and of each drop of the step schedule.
      decay_steps: Steps per decay of the exponential and step schedules, and of the fall of warmup_stable_decay; 0: a tenth of the run.
      optimizer: adamw, adam or sgd; lamb for large batches, lion, adafactor (little memory), muon (orthogonal steps for the matrices of the blocks; Adam for the rest) or stable_adamw.
      weight_decay: Decay per step; biases and norms are exempt. Decoupled and times the learning rate for adamw, added to the gradient for adam and sgd.
      adam_beta1: Decay of the first moment.
      adam_beta2: Decay of the second moment.
      adam_epsilon: Added to the root of the second moment.
      momentum: Momentum of sgd and of muon.
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
      metric: Metric that chooses the best checkpoint; empty takes the task's first (accuracy, f1_micro, spearman, f1…), or the loss of the whole objective of pre-training.
      early_stopping_patience: Evaluations without improvement after which training stops; 0 never stops early.
      early_stopping_threshold: Least change of the metric that counts as an improvement.
      plateau_patience: Evaluations without improvement after which the learning rate is multiplied by plateau_factor; 0 switches it off.
      plateau_factor: Factor of the reduction on plateau, in (0, 1).
      load_best_at_end: Whether the best checkpoint rather than the last one becomes the result.
      initial_loss_scale: First loss scale of float16 training.
      loss_scale_growth_steps: Finite steps after which the loss scale of float16 training doubles.
      skip_not_finite: Whether an update whose loss or gradient is not finite is left out and training goes on, within max_skipped; otherwise the run ends at the first one.
      spike_loss_factor: The update of a step whose loss is above this many times the median of the last 64 steps is left out, for example 3; 0 never does. Not for losses that come close to 0.
      spike_grad_norm_factor: The same for the gradient norm before clipping, for example 10.
      max_skipped_in_row: Most updates left out in a row; one more ends the run.
      max_skipped: Most updates left out in the whole run; one more ends it.
      profile: Steps that are traced for xprof, first:last, for example 100:105 (--profile for short); the trace goes to profile/ in the folder of the run. Empty traces nothing.
      hang_factor: A run that makes no step within this many times its median step, and within hang_seconds, writes the stacks of its threads and ends with exit code 75; 0 never ends it.
      hang_seconds: Least time without a step that counts as a hang, in seconds. Compilation, evaluation and checkpoints do not count.
      hang_pause_seconds: Longest that one compilation, evaluation or checkpoint may take before it counts as a hang too, in seconds; 0 lets it take any time.
      resume: auto continues from the newest good checkpoint of the output folder, never starts anew (an existing run is an error), must refuses to start without one.
    """

    batch_size: int | Literal["auto"] = 32
    target_batch_size: int = 32
    accumulation_steps: int | Literal["auto"] = 1
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
    skip_not_finite: bool = False
    spike_loss_factor: float = 0.0
    spike_grad_norm_factor: float = 0.0
    max_skipped_in_row: int = 3
    max_skipped: int = 100
    profile: str = ""
    hang_factor: float = 10.0
    hang_seconds: float = 300.0
    hang_pause_seconds: float = 7200.0
    resume: Literal["auto", "never", "must"] = "auto"

    def __post_init__(self) -> None:
        if self.batch_size != "auto":
            require_at_least("train", "batch_size", self.batch_size, 1)
        if self.accumulation_steps != "auto":
            require_at_least("train", "accumulation_steps", self.accumulation_steps, 1)
            require(
                self.batch_size == "auto" or self.batch_size % self.accumulation_steps == 0,
                f"train.batch_size {self.batch_size} is not divisible by train.accumulation_steps "
                f"{self.accumulation_steps}; choose a batch size that is a multiple of it.",
            )
        for field in (
            "target_batch_size",
            "log_every",
            "keep_checkpoints",
        ):
            require_at_least("train", field, getattr(self, field), 1)
        for field in (
            "num_epochs", "num_steps", "learning_rate", "warmup_steps", "end_learning_rate", "decay_steps",
            "weight_decay", "max_grad_norm", "evaluate_every", "evaluation_batch_size", "checkpoint_every",
            "early_stopping_patience", "early_stopping_threshold", "plateau_patience", "spike_loss_factor",
            "spike_grad_norm_factor", "max_skipped_in_row", "max_skipped", "hang_factor", "hang_seconds", "hang_pause_seconds",
        ):  # fmt: skip
            require_at_least("train", field, getattr(self, field), 0)
        for field in (
            "warmup_rate",
            "adam_beta1",
            "adam_beta2",
            "momentum",
            "plateau_factor",
        ):
            require_rate("train", field, getattr(self, field))
        require_rate("train", "label_smoothing_rate", self.label_smoothing_rate, upper_open=True)
        require(
            self.num_steps > 0 or self.num_epochs > 0,
            "train.num_steps and train.num_epochs are both 0: nothing to do.",
        )
        for field in ("spike_loss_factor", "spike_grad_norm_factor"):
            value = getattr(self, field)
            require(
                value == 0 or value > 1,
                f"train.{field} is {value}, but a spike is above the median: choose more than 1, or 0 for no limit.",
            )
        self.profile_steps()

    @property
    def finds_micro_batch(self) -> bool:
        """Whether the size of a micro batch follows from the memory that there is."""
        return "auto" in (self.batch_size, self.accumulation_steps)

    @property
    def fixed_accumulation_steps(self) -> int:
        """Micro batches per step as far as they are told; 1 where they are found."""
        return 1 if self.batch_size == "auto" or self.accumulation_steps == "auto" else self.accumulation_steps

    def profile_steps(self) -> tuple[int, int] | None:
        """Returns the first and the last step that are traced, counted from 1, or None.

        Raises:
          ConfigError: ``profile`` is not of the form first:last.
        """
        if not self.profile:
            return None
        found = re.fullmatch(r"(\d+):(\d+)", self.profile)
        steps = (int(found[1]), int(found[2])) if found else (0, 0)
        require(
            1 <= steps[0] <= steps[1],
            f"train.profile is '{self.profile}', but must be first:last, two steps counted from 1, for example 100:105.",
        )
        return steps
