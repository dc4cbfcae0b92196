"""Quantization of weights: from int8, in which products are computed, to codes of 4, 3, 2 and 1 bits, which are stored small and written out for each product."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from flaxbert.config import ActivationsName, RangeName, RoundingName, SchemeName
from flaxbert.core.arrays import GroupedArray, Params, QuantizedArray, SparseArray, is_quantized
from flaxbert.core.low_bit_arrays import (
    FLOAT8,
    FLOAT8_MAXIMUM,
    SMALLEST_PACKED_GROUP,
    ChannelGroupedArray,
    Float8Array,
    PackedArray,
    StaticQuantizedArray,
)
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.trees import flatten_names, map_leaves, unflatten_names
from flaxbert.errors import ConfigError, RuleError, ShapeError
from flaxbert.transforms.leaves import contracted_axis, host_weights, place_like
from flaxbert.transforms.report import CompressionReport, LeafReport, compare_leaf, kept_leaf
from flaxbert.transforms.rounding import (
    SMALLEST_SCALE,
    GridMaker,
    affine_grid,
    binary_grid,
    channel_grid,
    gptq,
    pack_pairs,
    pack_planes,
    round_groups,
    signed_grid,
    ternary_grid,
    to_bfloat16,
)
from flaxbert.transforms.statistics import (
    InputStatistics,
    Statistics,
    largest_magnitude,
    smoothing_scales,
)

SUPPORTED_BITS = (1, 2, 3, 4, 8)
DEFAULT_GROUP_SIZE = 64
INT8_MAXIMUM = 127
AWQ_STRENGTHS = tuple(step / 20 for step in range(20))
"""Exponents of the mean magnitude that AWQ tries (Lin et al., 2024, equation 5)."""


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


QuantizationRule = Rule[QuantizationSpec | None]
"""What matching leaves get: a specification, or None to keep them."""


def default_quantization_rules(spec: QuantizationSpec = QuantizationSpec()) -> tuple[QuantizationRule, ...]:
    """Returns rules for every large matrix; classifiers, small tables, norms and biases stay in float32, where they cost next to nothing.

    Args:
      spec: How they are quantized; tables, which multiply no activations, with activations as they come.
    """
    table = dataclasses.replace(spec, activations="dynamic", smoothing=0.0, rounding="nearest")
    return (
        Rule(r"encoder\.(layers|groups)\..*\.kernel", spec),
        Rule(r"embeddings\.word\.embedding", table, optional=True),
        Rule(r"pooler\.dense\.kernel", spec, optional=True),
        Rule(r"masked_lm\.transform\.kernel", spec, optional=True),
        Rule(r".*", None),
    )


DEFAULT_QUANTIZATION_RULES: tuple[QuantizationRule, ...] = default_quantization_rules()
"""Those for int8."""


def _check_lengths(params: Mapping[str, Any], specs: Mapping[str, QuantizationSpec | None]) -> None:
    """Refuses groups that do not divide a leaf, before any work, with a size that suits all leaves of the same specification."""
    lengths: dict[QuantizationSpec, dict[str, int]] = {}
    for name, leaf in flatten_names(params).items():
        spec = specs[name]
        if spec is not None and spec.bits < 8 and not is_quantized(leaf):
            lengths.setdefault(spec, {})[name] = leaf.shape[contracted_axis(name, leaf, "integer codes")]
    for spec, found in lengths.items():
        size = spec.group_size or DEFAULT_GROUP_SIZE
        wrong = next((name for name, length in found.items() if length % size), None)
        if wrong is not None:
            common = math.gcd(*found.values())
            least, step = (4, 2) if spec.bits == 4 else (SMALLEST_PACKED_GROUP, 8)
            fits = [number for number in range(least, common + 1, step) if common % number == 0]
            mend = "no size suits all of them, so"
            if fits:
                mend = (
                    f"choose group_size {min(fits, key=lambda number: abs(number - size))}, which suits all of them, or"
                )
            raise ShapeError(
                f"'{wrong}' has {found[wrong]} entries along its contracted axis, which groups of {size} do not divide; the {len(found)} leaves of this rule "
                f"have {', '.join(map(str, sorted(set(found.values()))))}: {mend} let an earlier rule give some leaves the value None."
            )


def _statistics_of(name: str, spec: QuantizationSpec, statistics: Statistics, width: int) -> InputStatistics:
    if name not in statistics:
        raise RuleError(
            f"'{name}' is to be quantized with {'static activations' if spec.activations == 'static' else spec.rounding}, but nothing was measured of its "
            "inputs; calibrate it, or let an earlier rule give this leaf another specification."
        )
    found = statistics[name]
    if len(found.low) != width:
        raise ShapeError(f"'{name}' has {width} inputs, but its statistics are of {len(found.low)}: of another model?")
    if spec.needs_second_moment and found.second_moment is None:
        raise RuleError(f"'{name}' is to be rounded by {spec.rounding}, but its statistics have no second moment.")
    return found


Stored = tuple[Any, np.ndarray]
"""A quantized leaf, and the dense weights that it stands for."""


def _rounded(
    leaf: Any, weights: np.ndarray, axis: int, size: int, spec: QuantizationSpec, found: InputStatistics | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns codes, scales and offsets of the groups, and the dense weights that they stand for."""
    if found is not None and found.second_moment is not None and spec.rounding == "gptq":
        mask = np.asarray(leaf.mask) if isinstance(leaf, SparseArray) else None
        codes, scale, offset = gptq(weights, found.second_moment, size, spec.grid_maker(), mask)
    else:
        codes, scale, offset = round_groups(weights, axis, size, spec.grid_maker())
    place = weights.ndim + axis
    dense = codes * np.repeat(scale, size, axis=place) + np.repeat(offset, size, axis=place)
    return codes, scale, offset, dense.astype(np.float32)


def _awq(leaf: Any, weights: np.ndarray, size: int, spec: QuantizationSpec, found: InputStatistics) -> Stored:
    """Tries channel scales ``mean|x|**strength`` and keeps those whose rounded weights change the outputs least."""
    best: tuple[float, tuple[np.ndarray, ...], np.ndarray, np.ndarray] | None = None
    magnitude = np.maximum(found.mean_magnitude.astype(np.float64), 1e-12)
    for strength in AWQ_STRENGTHS:
        channel = magnitude**strength
        channel = (channel / np.sqrt(channel.max() * channel.min())).astype(np.float32)[:, None]
        codes, scale, _, dense = _rounded(leaf, weights * channel, -2, size, spec, None)
        dense = dense / channel
        error = dense - weights
        loss = float(np.sum(error * (np.asarray(found.second_moment, np.float32) @ error)))
        if best is None or loss < best[0]:
            best = (loss, (codes, scale), 1 / channel, dense)
    if best is None:
        raise ShapeError("AWQ has no strengths to try.")
    _, (codes, scale), channel, dense = best
    packed = pack_pairs(codes, -2)
    return ChannelGroupedArray(*(place_like(part, leaf) for part in (packed, scale, channel))), dense


def _static(leaf: Any, weights: np.ndarray, spec: QuantizationSpec, found: InputStatistics) -> Stored:
    """Rounds weights and measured ranges of activations; the ends of the range are those of the activations, within the chosen magnitude."""
    channel = smoothing_scales(found, weights, spec.smoothing) if spec.smoothing else np.ones(len(weights), np.float32)
    smoothed = dataclasses.replace(found, low=found.low / channel, high=found.high / channel)
    limit = largest_magnitude(smoothed, spec.activation_range, spec.percentile)
    low, high = max(float(smoothed.low.min()), -limit), min(float(smoothed.high.max()), limit)
    low, high = min(low, 0.0), max(high, 0.0)
    step = max((high - low) / (2 * INT8_MAXIMUM + 1), SMALLEST_SCALE)
    zero = float(np.clip(np.rint(-INT8_MAXIMUM - 1 - low / step), -INT8_MAXIMUM - 1, INT8_MAXIMUM))
    input_scale = (channel * np.float32(step)).astype(np.float32)[:, None]
    codes, scale, _, _ = _rounded(
        leaf, weights * input_scale, -2, len(weights), spec, _scaled(found, input_scale[:, 0])
    )
    shift = -zero * scale * codes.sum(axis=0, keepdims=True)
    parts = (codes.astype(np.int8), scale, input_scale, np.full((1, 1), zero, np.float32), shift.astype(np.float32))
    return StaticQuantizedArray(*(place_like(part, leaf) for part in parts)), codes * scale / input_scale


def _scaled(found: InputStatistics, input_scale: np.ndarray) -> InputStatistics:
    """Returns statistics of inputs that were divided channel by channel, as far as GPTQ needs them."""
    if found.second_moment is None:
        return found
    moment = found.second_moment / np.outer(input_scale, input_scale)
    return dataclasses.replace(found, second_moment=moment / max(float(np.diagonal(moment).mean()), 1e-300))


def _float8(leaf: Any, weights: np.ndarray, axis: int) -> Stored:
    largest = np.max(np.abs(weights), axis=axis, keepdims=True)
    scale = np.maximum(largest / np.float32(FLOAT8_MAXIMUM), np.float32(SMALLEST_SCALE))
    values = np.clip(weights / scale, -FLOAT8_MAXIMUM, FLOAT8_MAXIMUM).astype(FLOAT8)
    return Float8Array(place_like(values, leaf), place_like(scale, leaf)), values.astype(np.float32) * scale


def _store(
    name: str, leaf: Any, weights: np.ndarray, axis: int, spec: QuantizationSpec, found: InputStatistics | None
) -> Stored:
    if spec.scheme == "float8":
        return _float8(leaf, weights, axis)
    if found is not None and spec.activations == "static":
        return _static(leaf, weights, spec, found)
    size = weights.shape[axis] if spec.bits == 8 else spec.group_size or DEFAULT_GROUP_SIZE
    if found is not None and spec.rounding == "awq":
        return _awq(leaf, weights, size, spec, found)
    codes, scale, offset, dense = _rounded(leaf, weights, axis, size, spec, found)
    if spec.bits == 8:
        return QuantizedArray(codes=place_like(codes.astype(np.int8), leaf), scale=place_like(scale, leaf)), dense
    if spec.bits == 4:
        packed = pack_pairs(codes, axis)
        return GroupedArray(packed=place_like(packed, leaf), scale=place_like(scale, leaf)), dense
    planes = pack_planes(codes, axis, spec.bits)
    placed = place_like(planes, leaf, new_axis=weights.ndim + axis)
    return PackedArray(placed, *(place_like(to_bfloat16(part), leaf) for part in (scale, offset))), dense


def _quantize_leaf(name: str, leaf: Any, spec: QuantizationSpec, statistics: Statistics) -> tuple[Any, LeafReport]:
    if is_quantized(leaf):
        raise RuleError(
            f"'{name}' is quantized already; rounding it twice would add a second error. Quantize the float model, or "
            "let an earlier rule give this leaf the value None."
        )
    if isinstance(leaf, SparseArray) and spec.bits < 4 and spec.scheme == "uniform":
        raise RuleError(
            f"'{name}' is sparse, but {spec.bits}-bit codes have no level 0 that its zeros could keep; choose 4 or 8 bits or the scheme ternary, or make "
            "the model dense first."
        )
    axis = contracted_axis(name, leaf, "integer codes")
    weights = host_weights(name, leaf)
    found = None
    if axis == -2 and spec.needs_statistics:
        if weights.ndim != 2:
            raise ShapeError(f"'{name}' has stacked layers, but statistics are of single ones; unstack them first.")
        found = _statistics_of(name, spec, statistics, weights.shape[0])
    elif axis == -1 and spec.activations == "static":
        raise RuleError(f"'{name}' is a table, whose rows are looked up: it has no activations that could be static.")
    quantized, stored = _store(name, leaf, weights, axis, spec, found)
    quantized.validate(name)
    share = float(np.mean(np.asarray(leaf.mask))) if isinstance(leaf, SparseArray) else 1.0
    form = "quantized, zeros kept" if isinstance(leaf, SparseArray) else "quantized"
    return quantized, compare_leaf(name, form, leaf, quantized, weights, stored, share)


def quantize(
    params: Mapping[str, Any],
    rules: Sequence[QuantizationRule] = DEFAULT_QUANTIZATION_RULES,
    statistics: Statistics | None = None,
) -> tuple[Params, CompressionReport]:
    """Replaces matched weights by codes of a few bits.

    For output channel ``c`` of int8: ``scale[c] = max|w[:, c]| / 127``, ``codes = round(w / scale)``, hence
    ``|w - codes * scale| <= scale / 2`` elementwise. Embedding tables have one scale per row. With fewer bits each group has levels of its own, which
    ``transforms.rounding`` chooses. The zeros of a sparse leaf stay zeros as far as 0 is a level; its mask is given up, since codes are not trained.

    Args:
      params: Tree of named leaves, layers numbered or stacked.
      rules: Tried in order against the leaf name; the first match decides (None keeps the leaf).
      statistics: What was measured of the inputs of kernels, by leaf name; only rules with static activations, gptq or awq need them.

    Returns:
      The tree under the same names, matched leaves as quantized typed leaves; and a report per leaf: bytes before and
      after, largest and root-mean-square relative error.

    Raises:
      RuleError: A rule matched no leaf or a leaf no rule, a leaf is quantized already, or statistics are missing.
      ShapeError: A matched leaf is neither kernel nor embedding table, holds no floating-point numbers, or groups do not divide it.
      WeightsError: A matched leaf holds NaN or infinity.

    Example:
      >>> import numpy as np
      >>> params, report = quantize({"dense": {"kernel": np.eye(4, dtype=np.float32)}}, [Rule(".*", QuantizationSpec())])
      >>> params["dense"]["kernel"].codes[0, 0], report.bytes_before, report.bytes_after
      (np.int8(127), 64, 32)
    """
    specs = match_rules(params, rules, purpose="quantization")
    _check_lengths(params, specs)
    leaves: dict[str, Any] = {}
    reports: list[LeafReport] = []
    for name, leaf in flatten_names(params).items():
        spec = specs[name]
        if spec is None:
            leaves[name], report = leaf, kept_leaf(name, leaf)
        else:
            leaves[name], report = _quantize_leaf(name, leaf, spec, statistics or {})
        reports.append(report)
    num_sparse = sum(report.form != "quantized" and report.form != "kept" for report in reports)
    notes = (
        (f"{num_sparse} sparse leaves were quantized: their zeros stay, their masks are gone.",) if num_sparse else ()
    )
    return unflatten_names(leaves), CompressionReport("quantize", tuple(reports), notes)


def dequantize(params: Mapping[str, Any]) -> Params:
    """Returns the tree with quantized leaves written out as dense float32; the rounding stays.

    Args:
      params: Tree of named leaves.
    """
    return map_leaves(lambda _, leaf: leaf.materialize() if is_quantized(leaf) else leaf, params)
