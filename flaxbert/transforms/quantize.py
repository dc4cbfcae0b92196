"""Quantization to int8: symmetric codes with one scale per output channel.

The dots of a quantized kernel run in int8: ``core.contraction`` rounds every token of the activations as it comes
(dynamic, per token) and multiplies codes by codes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.core.arrays import Params, QuantizedArray, SparseArray
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.trees import flatten_names, map_leaves, unflatten_names
from flaxbert.errors import ConfigError, RuleError
from flaxbert.transforms.leaves import contracted_axis, host_weights, place_like
from flaxbert.transforms.report import CompressionReport, LeafReport, compare_leaf, kept_leaf

SUPPORTED_BITS = (8,)
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Scale of an all-zero channel: the smallest normal number, which no device flushes to zero."""


@dataclasses.dataclass(frozen=True)
class QuantizationSpec:
    """How a leaf is quantized.

    Attributes:
      bits: Bits of a code; 8 is what the dots of all backends take.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in SUPPORTED_BITS:
            raise ConfigError(f"bits is {self.bits!r}, but codes have one of {SUPPORTED_BITS} bits.")


QuantizationRule = Rule[QuantizationSpec | None]
"""What matching leaves get: a specification, or None to keep them."""

DEFAULT_QUANTIZATION_RULES: tuple[QuantizationRule, ...] = (
    Rule(r"encoder\.(layers|groups)\..*\.kernel", QuantizationSpec()),
    Rule(r"embeddings\.word\.embedding", QuantizationSpec(), optional=True),
    Rule(r"pooler\.dense\.kernel", QuantizationSpec(), optional=True),
    Rule(r"masked_lm\.transform\.kernel", QuantizationSpec(), optional=True),
    Rule(r".*", None),
)
"""Every large matrix; classifiers, small tables, norms and biases stay in float32, where they cost next to nothing."""


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


def _quantize_leaf(name: str, leaf: Any, spec: QuantizationSpec) -> tuple[Any, LeafReport]:
    if isinstance(leaf, QuantizedArray):
        raise RuleError(
            f"'{name}' is quantized already; rounding it twice would add a second error. Quantize the float model, or "
            "let an earlier rule give this leaf the value None."
        )
    axis = contracted_axis(name, leaf, "integer codes")
    weights = host_weights(name, leaf)
    codes, scale = quantize_weights(weights, axis, spec.bits)
    quantized = QuantizedArray(codes=place_like(codes, leaf), scale=place_like(scale, leaf))
    quantized.validate(name)
    share = float(np.mean(np.asarray(leaf.mask))) if isinstance(leaf, SparseArray) else 1.0
    form = "quantized, zeros kept" if isinstance(leaf, SparseArray) else "quantized"
    return quantized, compare_leaf(name, form, leaf, quantized, weights, codes * scale, share)


def quantize(
    params: Mapping[str, Any], rules: Sequence[QuantizationRule] = DEFAULT_QUANTIZATION_RULES
) -> tuple[Params, CompressionReport]:
    """Replaces matched weights by symmetric integer codes.

    For output channel ``c``: ``scale[c] = max|w[:, c]| / 127``, ``codes = round(w / scale)``, hence
    ``|w - codes * scale| <= scale / 2`` elementwise. Embedding tables have one scale per row. The zeros of a sparse leaf
    stay zeros; its mask is given up, since codes are not trained.

    Args:
      params: Tree of named leaves, layers numbered or stacked.
      rules: Tried in order against the leaf name; the first match decides (None keeps the leaf).

    Returns:
      The tree under the same names, matched leaves as ``QuantizedArray``; and a report per leaf: bytes before and
      after, largest and root-mean-square relative error.

    Raises:
      RuleError: A rule matched no leaf or a leaf no rule, or a leaf is quantized already.
      ShapeError: A matched leaf is neither kernel nor embedding table, or holds no floating-point numbers.
      WeightsError: A matched leaf holds NaN or infinity.

    Example:
      >>> import numpy as np
      >>> params, report = quantize({"dense": {"kernel": np.eye(4, dtype=np.float32)}}, [Rule(".*", QuantizationSpec())])
      >>> params["dense"]["kernel"].codes[0, 0], report.bytes_before, report.bytes_after
      (np.int8(127), 64, 32)
    """
    specs = match_rules(params, rules, purpose="quantization")
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
    return map_leaves(lambda _, leaf: leaf.materialize() if isinstance(leaf, QuantizedArray) else leaf, params)
