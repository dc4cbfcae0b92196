"""How a leaf is quantized: a specification that checks itself."""

import dataclasses
from typing import get_args

from flaxbert.config import ActivationsName, RangeName, RoundingName, SchemeName
from flaxbert.core.low_bit_arrays import SMALLEST_PACKED_GROUP
from flaxbert.errors import ConfigError
from flaxbert.transforms.rounding import (
    GridMaker,
    affine_grid,
    binary_grid,
    channel_grid,
    signed_grid,
    ternary_grid,
)

SUPPORTED_BITS = (1, 2, 3, 4, 8)
DEFAULT_GROUP_SIZE = 64


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

    def grid_maker(self) -> GridMaker:
        """Returns how the levels of a group are chosen."""
        if self.scheme == "ternary":
            return ternary_grid
        if self.bits == 1:
            return binary_grid
        if self.bits == 4:
            return signed_grid
        return lambda weights, axis: (
            channel_grid(weights, axis) if self.bits == 8 else affine_grid(weights, axis, self.bits)
        )
