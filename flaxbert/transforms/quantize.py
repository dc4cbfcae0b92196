"""Quantization of weights: from int8, in which products are computed, to codes of 4, 3, 2 and 1 bits, which are stored small and written out for each product."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.config.quantization import DEFAULT_GROUP_SIZE, SMALLEST_PACKED_GROUP, QuantizationSpec
from flaxbert.core.arrays import Params, SparseArray, is_quantized
from flaxbert.core.host_memory import return_freed_memory
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.trees import find_leaf, flatten_names, map_leaves, take_leaf, unflatten_names
from flaxbert.errors import RuleError, ShapeError
from flaxbert.transforms.leaves import contracted_axis, host_weights
from flaxbert.transforms.quantized_leaves import store_leaf
from flaxbert.transforms.report import CompressionReport, LeafReport, compare_errors, kept_leaf
from flaxbert.transforms.statistics import InputStatistics, Statistics

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
    quantized, errors = store_leaf(leaf, weights, axis, spec, found)
    quantized.validate(name)
    share = float(np.mean(np.asarray(leaf.mask))) if isinstance(leaf, SparseArray) else 1.0
    form = "quantized, zeros kept" if isinstance(leaf, SparseArray) else "quantized"
    return quantized, compare_errors(name, form, leaf, quantized, errors, share)


def quantize(
    params: Mapping[str, Any],
    rules: Sequence[QuantizationRule] = DEFAULT_QUANTIZATION_RULES,
    statistics: Statistics | None = None,
    *,
    consume: bool = False,
) -> tuple[Params, CompressionReport]:
    """Replaces matched weights by codes of a few bits.

    For output channel ``c`` of int8: ``scale[c] = max|w[:, c]| / 127``, ``codes = round(w / scale)``, hence
    ``|w - codes * scale| <= scale / 2`` elementwise. Embedding tables have one scale per row. With fewer bits each group has levels of its own, which
    ``transforms.rounding`` chooses. The zeros of a sparse leaf stay zeros as far as 0 is a level; its mask is given up, since codes are not trained.

    Args:
      params: Tree of named leaves, layers numbered or stacked.
      rules: Tried in order against the leaf name; the first match decides (None keeps the leaf).
      statistics: What was measured of the inputs of kernels, by leaf name; only rules with static activations, gptq or awq need them.
      consume: Takes every leaf out of the tree once it is done, so that memory falls while codes are made; the tree is empty afterwards. By default it is
        left as it is.

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
    found: dict[str, LeafReport] = {}
    # Small leaves first: the largest one needs most memory on the way, and by then that of the others is free.
    order = sorted(specs, key=lambda name: find_leaf(params, name).size) if consume else list(specs)
    for name in order:
        spec, leaf = specs[name], take_leaf(params, name) if consume else find_leaf(params, name)
        if spec is None:
            leaves[name], found[name] = leaf, kept_leaf(name, leaf)
        else:
            leaves[name], found[name] = _quantize_leaf(name, leaf, spec, statistics or {})
        if consume:
            del leaf
            return_freed_memory()
    leaves, reports = {name: leaves[name] for name in specs}, [found[name] for name in specs]
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
