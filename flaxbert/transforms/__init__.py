"""Transforms: pure functions from parameter tree to parameter tree, each with a report of what it cost."""

from flaxbert.transforms.quantize import (
    DEFAULT_QUANTIZATION_RULES,
    QuantizationSpec,
    default_quantization_rules,
    dequantize,
    quantize,
)
from flaxbert.transforms.report import CompressionReport, LeafReport
from flaxbert.transforms.sparsify import (
    GroupSparsity,
    MagnitudeSparsity,
    default_sparsity_rules,
    densify,
    sparsify,
)
from flaxbert.transforms.vocabulary import resize_vocabulary

__all__ = [
    "DEFAULT_QUANTIZATION_RULES",
    "CompressionReport",
    "GroupSparsity",
    "LeafReport",
    "MagnitudeSparsity",
    "QuantizationSpec",
    "default_quantization_rules",
    "default_sparsity_rules",
    "densify",
    "dequantize",
    "quantize",
    "resize_vocabulary",
    "sparsify",
]
