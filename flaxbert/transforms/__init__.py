"""Transforms: pure functions from parameter tree to parameter tree, each with a report of what it cost."""

from flaxbert.transforms.budgets import UnitBudget, choose_units
from flaxbert.transforms.depth import keep_layers
from flaxbert.transforms.quantize import (
    DEFAULT_QUANTIZATION_RULES,
    QuantizationSpec,
    default_quantization_rules,
    dequantize,
    quantize,
)
from flaxbert.transforms.report import CompressionReport, LeafReport
from flaxbert.transforms.shrink import shrink
from flaxbert.transforms.sparsify import (
    BlockSparsity,
    GroupSparsity,
    MagnitudeSparsity,
    default_sparsity_rules,
    densify,
    sparsify,
)
from flaxbert.transforms.units import find_units, magnitude_scores, mask_units, random_scores
from flaxbert.transforms.vocabulary import keep_tokens, resize_vocabulary

__all__ = [
    "DEFAULT_QUANTIZATION_RULES",
    "BlockSparsity",
    "CompressionReport",
    "GroupSparsity",
    "LeafReport",
    "MagnitudeSparsity",
    "QuantizationSpec",
    "UnitBudget",
    "choose_units",
    "default_quantization_rules",
    "default_sparsity_rules",
    "densify",
    "dequantize",
    "find_units",
    "keep_layers",
    "keep_tokens",
    "magnitude_scores",
    "mask_units",
    "quantize",
    "random_scores",
    "resize_vocabulary",
    "shrink",
    "sparsify",
]
