"""Every transform of weights with what it promises, for suites that run over all of them. A new transform is a line in ``TRANSFORMS``."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from flaxbert.architecture import ModelConfig
from flaxbert.core.trees import flatten_names, leaf_names
from flaxbert.families import get_family
from flaxbert.transforms import (
    BlockSparsity,
    GroupSparsity,
    MagnitudeSparsity,
    QuantizationSpec,
    default_quantization_rules,
    default_sparsity_rules,
    keep_tokens,
    quantize,
    resize_vocabulary,
    sparsify,
)
from flaxbert.transforms.budgets import UnitBudget, choose_units
from flaxbert.transforms.depth import keep_layers
from flaxbert.transforms.shrink import shrink
from flaxbert.transforms.statistics import InputStatistics
from flaxbert.transforms.units import find_units, magnitude_scores, mask_units
from tests.transforms.pruned import unit_axes

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
"""Sizes that groups of 16 and a mesh of two by two by two divide, halves of heads and neurons too."""

QUANTIZED, SPARSE, RESIZED, SHRUNK = "quantized", "sparse", "resized", "shrunk"

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Transform:
    """One transform.

    Attributes:
      run: Takes a tree and its architecture, returns both anew.
      makes: What the leaves that it changes become: ``QUANTIZED``, ``SPARSE``, ``RESIZED`` (tables of words), or ``SHRUNK`` (fewer layers, heads or neurons).
      error: Most root-mean-square error of a leaf's weights, from these weights; None where no bound is promised.
      keeps_zeros: Whether the zeros of a sparse leaf stay zeros; those that can not keep them refuse it.
      after_quantized: What the error says where it follows a quantization; empty where it can.
      not_for: Families that refuse it.
    """

    run: Callable[[Tree, ModelConfig], tuple[Tree, ModelConfig]]
    makes: str
    error: Callable[[np.ndarray], float] | None = None
    keeps_zeros: bool = True
    after_quantized: str = "quantized already"
    not_for: tuple[str, ...] = ()


def statistics_of(params: Tree) -> dict[str, InputStatistics]:
    """Statistics of made-up inputs for every kernel."""
    found = {}
    for index, (name, leaf) in enumerate(flatten_names(params).items()):
        if name.endswith(".kernel") and len(leaf.shape) == 2:
            inputs = np.random.default_rng(index).standard_normal((64, leaf.shape[0])) + 0.2
            moment = inputs.T @ inputs / len(inputs)
            low, high, mean = inputs.min(axis=0), inputs.max(axis=0), np.abs(inputs).mean(axis=0)
            found[name] = InputStatistics(len(inputs), low, high, mean, None, moment)
    return found


def quantized(spec: QuantizationSpec, error: Callable[[np.ndarray], float] | None, **promises: Any) -> Transform:
    def run(params: Tree, config: ModelConfig) -> tuple[Tree, ModelConfig]:
        statistics = statistics_of(params) if spec.needs_statistics else None
        return quantize(params, default_quantization_rules(spec), statistics)[0], config

    return Transform(run, QUANTIZED, error, **promises)


def sparsified(spec: Any, error: Callable[[np.ndarray], float] | None) -> Transform:
    rules = default_sparsity_rules(spec)
    refusal = "can not be pruned any more"

    def run(params: Tree, config: ModelConfig) -> tuple[Tree, ModelConfig]:
        statistics = statistics_of(params) if spec.criterion == "second_moment" else None
        return sparsify(params, rules, statistics)[0], config

    return Transform(run, SPARSE, error, True, refusal)


def resized(change: int) -> Transform:
    def run(params: Tree, config: ModelConfig) -> tuple[Tree, ModelConfig]:
        size = config.vocab_size + change
        return resize_vocabulary(params, size), config.replace(vocab_size=size)

    return Transform(run, RESIZED, after_quantized="before compressing")


def axes_of(params: Tree, config: ModelConfig) -> dict[str, tuple[str, ...]]:
    return get_family(config.family).parameter_axes(leaf_names(params))


def first_tokens(params: Tree, config: ModelConfig) -> tuple[Tree, ModelConfig]:
    config, params, _ = keep_tokens(config, params, axes_of(params, config), np.arange(config.vocab_size - 8))
    return params, config


def first_layers(params: Tree, config: ModelConfig) -> tuple[Tree, ModelConfig]:
    family = get_family(config.family)
    kept = range(max(1, config.num_hidden_layers - 1))
    options = {"select_layers": family.select_layers, "next_layer_leaves": family.next_layer_leaves}
    config, params, _ = keep_layers(config, params, list(kept), **options)
    return params, config


def half_the_units(params: Tree, config: ModelConfig) -> tuple[Tree, ModelConfig]:
    axes, kinds = axes_of(params, config), unit_axes(config)
    for kind in kinds:
        units = find_units(config, params, axes, kind, kinds[kind])
        chosen = choose_units(units, magnitude_scores(params, units), UnitBudget(0.5, scope="layer"))
        params = mask_units(params, units, chosen)
    config, params, _ = shrink(config, params, axes, kinds)
    return params, config


def largest(weights: np.ndarray) -> float:
    return float(np.abs(weights).max())


def norm(weights: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(weights, dtype=np.float64))))


TRANSFORMS: dict[str, Transform] = {
    # Half a step of 127 levels from 0 to the largest weight of a channel.
    "int8": quantized(QuantizationSpec(), lambda w: largest(w) / 254),
    # The same with ranges of activations, which the weights do not see.
    "int8 static": quantized(QuantizationSpec(activations="static"), lambda w: largest(w) / 254),
    # The levels of least squares are no worse than 7 levels from 0 to the largest of a group.
    "int4": quantized(QuantizationSpec(4, 16), lambda w: largest(w) / 14),
    # No worse than 7 steps over at most twice the largest; ends and step are bfloat16, whose rounding is 2**-9 of each.
    "3 bits": quantized(QuantizationSpec(3, 16), lambda w: largest(w) * (1 / 7 + 2**-7), keeps_zeros=False),
    # Signs with the mean magnitude, and zeros beside them, leave less than all of the weights; the number is a bfloat16.
    "1 bit": quantized(QuantizationSpec(1, 16), lambda w: norm(w) * (1 + 2**-8), keeps_zeros=False),
    "ternary": quantized(QuantizationSpec(2, 16, "ternary"), lambda w: norm(w) * (1 + 2**-8)),
    # Three bits of mantissa: half of 2**-3 of each weight; below 2**-6 of 448 levels of one size.
    "float8": quantized(QuantizationSpec(8, scheme="float8"), lambda w: norm(w) / 16 + largest(w) / 448 * 2**-10),
    "gptq": quantized(QuantizationSpec(4, 16, rounding="gptq"), None),
    "awq": quantized(QuantizationSpec(4, 16, rounding="awq"), None),
    # The smaller half of four, or three in ten, hold at most so much of the squares.
    "2:4": sparsified(GroupSparsity(2, 4), lambda w: norm(w) * 0.5**0.5),
    "magnitude": sparsified(MagnitudeSparsity(0.3), lambda w: norm(w) * 0.3**0.5),
    "global magnitude": sparsified(MagnitudeSparsity(0.3, scope="global"), norm),
    # The smaller half of the blocks holds at most half of the squares; drawn weights may hold all.
    "blocks": sparsified(BlockSparsity(0.5, 4, 2), lambda w: norm(w) * 0.5**0.5),
    # The weights that stay take over what the others gave.
    "2:4 by moments": sparsified(GroupSparsity(2, 4, "second_moment"), None),
    "random": sparsified(MagnitudeSparsity(0.3, criterion="random"), norm),
    "more words": resized(8),
    "fewer words": resized(-8),
    "fewer layers": Transform(first_layers, SHRUNK, after_quantized="", not_for=("albert",)),
    "half the units": Transform(half_the_units, SHRUNK, after_quantized="prune before you quantize"),
    "first tokens": Transform(first_tokens, RESIZED, after_quantized="prune before you quantize"),
}


def refusal(first: Transform, second: Transform) -> str | None:
    """Returns what the error says where the second can not follow the first; None where it can."""
    if first.makes == QUANTIZED:
        return second.after_quantized or None
    if first.makes == SPARSE and second.makes == QUANTIZED and not second.keeps_zeros:
        return "no level 0"
    return None
