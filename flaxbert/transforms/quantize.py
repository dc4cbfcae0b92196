"""Quantization of weights: int8 codes with one scale per output channel, or 4-bit codes with one scale per group.

The dots of an int8 kernel run in int8: ``core.contraction`` rounds every token of the activations as it comes (dynamic, per token) and
multiplies codes by codes. A 4-bit kernel is only stored small: it is written out in the compute type for each product.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.core.arrays import GroupedArray, Params, QuantizedArray, SparseArray, is_quantized
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.trees import flatten_names, map_leaves, unflatten_names
from flaxbert.errors import ConfigError, RuleError, ShapeError
from flaxbert.transforms.leaves import contracted_axis, host_weights, place_like
from flaxbert.transforms.report import CompressionReport, LeafReport, compare_leaf, kept_leaf

SUPPORTED_BITS = (4, 8)
DEFAULT_GROUP_SIZE = 64
_CLIPPED = tuple(np.float32(share) for share in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7))
"""Shares of a group's largest magnitude that are tried as the largest code stands for."""
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Scale of an all-zero channel: the smallest normal number, which no device flushes to zero."""


@dataclasses.dataclass(frozen=True)
class QuantizationSpec:
    """How a leaf is quantized.

    Attributes:
      bits: Bits of a code: 8, which the dots of all backends take, or 4, which are stored two to a byte.
      group_size: Neighbours along the contracted axis that share a scale, for 4 bits: an even number from 4 that divides the axis. 0 takes 64 for 4
        bits; 8-bit codes have one scale for the whole axis.
    """

    bits: int = 8
    group_size: int = 0

    def __post_init__(self) -> None:
        if self.bits not in SUPPORTED_BITS or isinstance(self.bits, bool):
            raise ConfigError(f"bits is {self.bits!r}, but codes have one of {SUPPORTED_BITS} bits.")
        if self.bits == 8 and self.group_size:
            raise ConfigError(
                f"group_size is {self.group_size}, but 8-bit codes have one scale for each output; leave it 0."
            )
        if self.bits == 4 and self.group_size and (self.group_size < 4 or self.group_size % 2):
            raise ConfigError(
                f"group_size is {self.group_size}, but a group has an even number of entries, at least 4."
            )


QuantizationRule = Rule[QuantizationSpec | None]
"""What matching leaves get: a specification, or None to keep them."""


def default_quantization_rules(spec: QuantizationSpec = QuantizationSpec()) -> tuple[QuantizationRule, ...]:
    """Returns rules for every large matrix; classifiers, small tables, norms and biases stay in float32, where they cost next to nothing.

    Args:
      spec: How they are quantized.
    """
    return (
        Rule(r"encoder\.(layers|groups)\..*\.kernel", spec),
        Rule(r"embeddings\.word\.embedding", spec, optional=True),
        Rule(r"pooler\.dense\.kernel", spec, optional=True),
        Rule(r"masked_lm\.transform\.kernel", spec, optional=True),
        Rule(r".*", None),
    )


DEFAULT_QUANTIZATION_RULES: tuple[QuantizationRule, ...] = default_quantization_rules()
"""Those for int8."""


def quantize_weights(weights: np.ndarray, axis: int, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Rounds weights to symmetric integer codes.

    ``scale = max|w| / (2**(bits - 1) - 1)`` along the axis, ``codes = round(w / scale)``, hence
    ``|w - codes * scale| <= scale / 2`` elementwise.

    Args:
      weights: Finite float32 weights.
      axis: Axis that shares one scale, the contracted one.
      bits: Bits of a code.

    Returns:
      int8 codes of the weights' shape, and float32 scales with size 1 along the axis.
    """
    limit = 2 ** (bits - 1) - 1
    largest = np.max(np.abs(weights), axis=axis, keepdims=True)
    scale = np.maximum(largest / np.float32(limit), np.float32(SMALLEST_SCALE))
    codes = np.rint(weights / scale)
    return np.clip(codes, -limit, limit).astype(np.int8), scale


def quantize_groups(weights: np.ndarray, axis: int, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rounds weights to 4-bit codes with one scale per group: of several scales, each group takes that of the least squared error.

    Args:
      weights: Finite float32 weights.
      axis: The contracted axis, negative.
      group_size: Neighbours along it that share a scale; divides it.

    Returns:
      int8 codes in [-8, 7] of the weights' shape, and float32 scales with as many entries along the axis as there are groups. The largest
      magnitude of a group is tried as the code -8, whose sign it takes, and as 7, as it is and clipped.
    """
    place = weights.ndim + axis
    shape = (*weights.shape[:place], -1, group_size, *weights.shape[place + 1 :])
    groups = weights.reshape(shape)
    inner = place + 1
    largest = np.max(np.abs(groups), axis=inner, keepdims=True)
    signed = np.take_along_axis(groups, np.abs(groups).argmax(axis=inner, keepdims=True), axis=inner)
    best_scale, best_error = largest, np.full(largest.shape, np.inf, np.float32)
    for candidate in (-signed / np.float32(8), *(largest * share / np.float32(7) for share in _CLIPPED)):
        scale = np.where(np.abs(candidate) < SMALLEST_SCALE, np.float32(SMALLEST_SCALE), candidate)
        rounded = np.clip(np.rint(groups / scale), -8, 7) * scale
        # Relative to the largest, so that no square is too large or too small for float32.
        error = np.square((rounded - groups) / np.maximum(largest, SMALLEST_SCALE)).sum(axis=inner, keepdims=True)
        better = error < best_error
        best_scale, best_error = np.where(better, scale, best_scale), np.where(better, error, best_error)
    codes = np.clip(np.rint(groups / best_scale), -8, 7).astype(np.int8)
    return codes.reshape(weights.shape), np.squeeze(best_scale, inner)


def pack_codes(codes: np.ndarray, axis: int) -> np.ndarray:
    """Returns 4-bit codes two to a byte, the one with the even number in the lower half.

    Args:
      codes: int8 in [-8, 7], with an even number of entries along the axis.
      axis: Axis of the pairs.
    """
    even, odd = (np.take(codes, np.arange(start, codes.shape[axis], 2), axis=axis) for start in (0, 1))
    return ((even & 15) | (odd << 4)).astype(np.int8)


def _grouped(
    name: str, leaf: Any, weights: np.ndarray, axis: int, spec: QuantizationSpec
) -> tuple[GroupedArray, np.ndarray]:
    size = spec.group_size or DEFAULT_GROUP_SIZE
    codes, scale = quantize_groups(weights, axis, size)
    grouped = GroupedArray(packed=place_like(pack_codes(codes, axis), leaf), scale=place_like(scale, leaf))
    place = weights.ndim + axis
    return grouped, (codes * np.repeat(scale, size, axis=place)).astype(np.float32)


def _check_groups(params: Mapping[str, Any], specs: Mapping[str, QuantizationSpec | None]) -> None:
    """Refuses groups that do not divide a leaf, before any work, with a size that suits all leaves of the same specification."""
    lengths: dict[QuantizationSpec, dict[str, int]] = {}
    for name, leaf in flatten_names(params).items():
        spec = specs[name]
        if spec is not None and spec.bits == 4 and not is_quantized(leaf):
            lengths.setdefault(spec, {})[name] = leaf.shape[contracted_axis(name, leaf, "integer codes")]
    for spec, found in lengths.items():
        size = spec.group_size or DEFAULT_GROUP_SIZE
        wrong = next((name for name, length in found.items() if length % size), None)
        if wrong is not None:
            common = math.gcd(*found.values())
            fits = [number for number in range(4, common + 1, 2) if common % number == 0]
            mend = "no size suits all of them, so"
            if fits:
                mend = (
                    f"choose group_size {min(fits, key=lambda number: abs(number - size))}, which suits all of them, or"
                )
            raise ShapeError(
                f"'{wrong}' has {found[wrong]} entries along its contracted axis, which groups of {size} do not divide; the {len(found)} leaves of this rule "
                f"have {', '.join(map(str, sorted(set(found.values()))))}: {mend} let an earlier rule give some leaves the value None."
            )


def _quantize_leaf(name: str, leaf: Any, spec: QuantizationSpec) -> tuple[Any, LeafReport]:
    if is_quantized(leaf):
        raise RuleError(
            f"'{name}' is quantized already; rounding it twice would add a second error. Quantize the float model, or "
            "let an earlier rule give this leaf the value None."
        )
    axis = contracted_axis(name, leaf, "integer codes")
    weights = host_weights(name, leaf)
    if spec.bits == 4:
        quantized, stored = _grouped(name, leaf, weights, axis, spec)
    else:
        codes, scale = quantize_weights(weights, axis, spec.bits)
        quantized, stored = QuantizedArray(codes=place_like(codes, leaf), scale=place_like(scale, leaf)), codes * scale
    quantized.validate(name)
    share = float(np.mean(np.asarray(leaf.mask))) if isinstance(leaf, SparseArray) else 1.0
    form = "quantized, zeros kept" if isinstance(leaf, SparseArray) else "quantized"
    return quantized, compare_leaf(name, form, leaf, quantized, weights, stored, share)


def quantize(
    params: Mapping[str, Any], rules: Sequence[QuantizationRule] = DEFAULT_QUANTIZATION_RULES
) -> tuple[Params, CompressionReport]:
    """Replaces matched weights by symmetric integer codes.

    For output channel ``c``: ``scale[c] = max|w[:, c]| / 127``, ``codes = round(w / scale)``, hence
    ``|w - codes * scale| <= scale / 2`` elementwise. Embedding tables have one scale per row. With 4 bits each group has a scale, which
    ``quantize_groups`` chooses. The zeros of a sparse leaf stay zeros; its mask is given up, since codes are not trained.

    Args:
      params: Tree of named leaves, layers numbered or stacked.
      rules: Tried in order against the leaf name; the first match decides (None keeps the leaf).

    Returns:
      The tree under the same names, matched leaves as ``QuantizedArray`` or, with 4 bits, ``GroupedArray``; and a report per leaf: bytes before and
      after, largest and root-mean-square relative error.

    Raises:
      RuleError: A rule matched no leaf or a leaf no rule, or a leaf is quantized already.
      ShapeError: A matched leaf is neither kernel nor embedding table, holds no floating-point numbers, or groups do not divide it.
      WeightsError: A matched leaf holds NaN or infinity.

    Example:
      >>> import numpy as np
      >>> params, report = quantize({"dense": {"kernel": np.eye(4, dtype=np.float32)}}, [Rule(".*", QuantizationSpec())])
      >>> params["dense"]["kernel"].codes[0, 0], report.bytes_before, report.bytes_after
      (np.int8(127), 64, 32)
    """
    specs = match_rules(params, rules, purpose="quantization")
    _check_groups(params, specs)
    leaves: dict[str, Any] = {}
    reports: list[LeafReport] = []
    for name, leaf in flatten_names(params).items():
        spec = specs[name]
        leaves[name], report = (leaf, kept_leaf(name, leaf)) if spec is None else _quantize_leaf(name, leaf, spec)
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
