"""How a model is quantized."""

import dataclasses
from typing import Literal, get_args

from flaxbert.config.checks import require
from flaxbert.errors import ConfigError

SchemeName = Literal["uniform", "ternary", "float8"]
RoundingName = Literal["nearest", "gptq", "awq"]
ActivationsName = Literal["dynamic", "static"]
RangeName = Literal["minmax", "percentile", "entropy"]


SUPPORTED_BITS = (1, 2, 3, 4, 8)
DEFAULT_GROUP_SIZE = 64

SMALLEST_PACKED_GROUP = 16
"""Groups of packed codes have at least this many entries, so that the shapes of the parts tell the contracted axis."""


@dataclasses.dataclass(frozen=True)
class QuantizationSpec:
    """How a leaf is quantized.

    Attributes:
      bits: Bits of a code: 8, which the dots of all backends take; 4, stored two to a byte; 3, 2 or 1 (plus and minus one number), stored as planes of
        bits. All but 8 are written out in the compute type for each product.
      group_size: Neighbours along the contracted axis that share a scale, for less than 8 bits: a number that divides the axis. 0 takes 64. 8-bit codes
        have one scale for the whole axis.
      scheme: ``uniform`` levels; ``ternary`` (minus a number, 0 and plus it; 2 bits); ``float8`` (8 bits).
      rounding: ``nearest``; ``gptq``, which makes up for each error in the weights that follow; ``awq`` (4 bits), which scales input channels by their
        magnitude first. Both need statistics, and tables, which have none, are rounded to nearest.
      activations: For 8 bits: ``dynamic`` rounds every token as it comes; ``static`` takes ranges that were measured.
      activation_range: What static ranges are: ``minmax``, ``percentile`` or ``entropy``.
      percentile: Share of the entries that lie inside the range, for ``percentile``, in (0, 100].
      smoothing: Strength with which static activations hand their large channels to the weights (SmoothQuant), in [0, 1); 0 for not at all.
    """

    bits: int = 8
    group_size: int = 0
    scheme: SchemeName = "uniform"
    rounding: RoundingName = "nearest"
    activations: ActivationsName = "dynamic"
    activation_range: RangeName = "minmax"
    percentile: float = 99.99
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.bits not in SUPPORTED_BITS or isinstance(self.bits, bool):
            raise ConfigError(f"bits is {self.bits!r}, but codes have one of {SUPPORTED_BITS} bits.")
        for field, names in (
            ("scheme", SchemeName),
            ("rounding", RoundingName),
            ("activations", ActivationsName),
            ("activation_range", RangeName),
        ):
            if getattr(self, field) not in get_args(names):
                raise ConfigError(f"{field} is {getattr(self, field)!r}; choose {', '.join(get_args(names))}.")
        self._check_groups()
        needed = {"ternary": 2, "float8": 8}.get(self.scheme, self.bits)
        if self.bits != needed:
            raise ConfigError(f"The scheme {self.scheme} has {needed} bits, not {self.bits}.")
        if self.rounding != "nearest" and self.scheme == "float8":
            raise ConfigError("float8 is rounded to nearest.")
        if self.rounding == "awq" and self.bits != 4:
            raise ConfigError(f"AWQ scales channels of 4-bit codes, not of {self.bits} bits; choose gptq or nearest.")
        if self.activations == "static" and (self.bits != 8 or self.scheme != "uniform"):
            raise ConfigError(
                "Static activations go with int8 weights; with fewer bits products are not computed in integers."
            )
        if not 0 < self.percentile <= 100:
            raise ConfigError(f"percentile is {self.percentile}, but lies in (0, 100].")
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"smoothing is {self.smoothing}, but lies in [0, 1).")
        if self.smoothing and self.activations != "static":
            raise ConfigError("smoothing needs static activations.")

    def _check_groups(self) -> None:
        size = self.group_size
        if self.bits == 8 and size:
            raise ConfigError(f"group_size is {size}, but 8-bit codes have one scale for each output; leave it 0.")
        if self.bits == 4 and size and (size < 4 or size % 2):
            raise ConfigError(f"group_size is {size}, but a group has an even number of entries, at least 4.")
        if self.bits < 4 and size and (size < SMALLEST_PACKED_GROUP or size % 8):
            raise ConfigError(
                f"group_size is {size}, but a group of packed codes has a multiple of 8 entries, at least {SMALLEST_PACKED_GROUP}."
            )

    @property
    def needs_statistics(self) -> bool:
        """Whether something must be known of the inputs."""
        return self.rounding != "nearest" or self.activations == "static"

    @property
    def needs_second_moment(self) -> bool:
        """Whether the second moment of the inputs must be known."""
        return self.rounding != "nearest"

    @property
    def needs_histogram(self) -> bool:
        """Whether the histogram of the inputs must be known."""
        return self.activations == "static" and self.activation_range != "minmax"


@dataclasses.dataclass(frozen=True)
class QuantizeConfig(QuantizationSpec):
    """How ``flaxbert quantize`` stores a model's matrices: all in one way, or in mixed bits within a size or a quality.

    Attributes:
      bits: 8 (weights per channel, computed in int8), 4 (weights per group, two codes to a byte), 3, 2 or 1 (per group, packed); all but 8 are written out for each product.
      group_size: Weights that share a scale, for less than 8 bits; 0 takes 64.
      scheme: uniform levels, ternary (with bits 2) or float8 (with bits 8).
      rounding: nearest; gptq, which makes up for errors in the weights that follow; awq (4 bits), which scales channels first. The last two need calibration.
      activations: For int8: dynamic rounds every token as it comes, static takes ranges measured on calibration.
      activation_range: Static ranges: the largest (minmax), a percentile, or the least divergence (entropy).
      percentile: Share of the entries inside the range, for percentile, in (0, 100].
      smoothing: Strength with which static activations hand their large channels to the weights (SmoothQuant), in [0, 1).
      calibration: File of texts such as the model will see; with labels for budget and auto, where it may be left out for examples.
      num_examples: Examples drawn from it; 0 takes all.
      budget: Mixed bits within this share of the float32 size, in (0, 1], for example 0.12; 0 for one number of bits.
      auto: Mixed bits, as few as keep the metric on the labelled examples within this tolerance, for example 0.005; negative for one number of bits.
      choices: Numbers of bits that budget and auto choose from.
      keep: Regular expressions of leaf names that stay as they are, for example [encoder.layers.0.*].
    """

    calibration: str = ""
    num_examples: int = 256
    budget: float = 0.0
    auto: float = -1.0
    choices: tuple[int, ...] = (2, 3, 4, 8)
    keep: tuple[str, ...] | str = ()

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            object.__setattr__(self, "keep", (self.keep,) if self.keep else ())
        require(
            self.num_examples >= 0,
            f"num_examples is {self.num_examples}; give a number of examples, or 0 for all.",
        )
        if not self.is_mixed:
            super().__post_init__()
            return
        require(
            not (self.budget and self.auto >= 0),
            "--budget and --auto exclude each other: the one gives a size, the other a quality.",
        )
        require(0 <= self.budget <= 1, f"budget is {self.budget}, but is a share of the float model's size, in (0, 1].")
        for field, usual in (("bits", 8), ("scheme", "uniform"), ("activations", "dynamic")):
            require(
                getattr(self, field) == usual,
                f"--{field} {getattr(self, field)} does not go with mixed bits, which --budget and --auto choose among --choices.",
            )

    @property
    def is_mixed(self) -> bool:
        """Whether leaves get different numbers of bits."""
        return self.budget != 0 or self.auto >= 0

    @property
    def spec(self) -> QuantizationSpec:
        """The one specification of all matrices, without mixed bits."""
        names = [field.name for field in dataclasses.fields(QuantizationSpec)]
        return QuantizationSpec(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class TrainQuantizeConfig:
    """How a model is quantized while it is trained: weights are rounded in every step, and the distances of their levels learn with them (LSQ; Esser et al., 2020).

    Attributes:
      bits: 8, 4, 3 or 2; 0 trains in floating point.
      group_size: Weights that share a step, for less than 8 bits; 0 takes 64.
      activations: For 8 bits: static rounds the inputs of every kernel with a learned step too; dynamic leaves them, and rounds every token when the model is used.
      num_examples: Training examples that the first steps of inputs are measured on.
      keep: Regular expressions of leaf names that stay as they are, for example [encoder.layers.0.*].
    """

    bits: int = 0
    group_size: int = 0
    activations: ActivationsName = "static"
    num_examples: int = 64
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.bits in (0, 2, 3, 4, 8), f"quantize.bits is {self.bits}; choose 8, 4, 3 or 2, or 0 for none.")
        require(
            not self.group_size or 0 < self.bits < 8, f"quantize.group_size {self.group_size} needs 4, 3 or 2 bits."
        )
        require(self.num_examples >= 1, f"quantize.num_examples is {self.num_examples}, but must be at least 1.")

    @property
    def is_on(self) -> bool:
        """Whether anything is rounded."""
        return self.bits > 0
