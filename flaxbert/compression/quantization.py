"""Quantizing a whole model: calibration, one specification for all matrices, bits within a size, or the cheapest bits that keep a metric."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flaxbert.compression.assignment import (
    Choices,
    assign_within_size,
    find_cheapest,
    find_choices,
    kept_size,
    rules_of,
)
from flaxbert.compression.curvature import block_of, measure_curvature
from flaxbert.compression.examples import Judge
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.trees import flatten_names, size_bytes
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError
from flaxbert.evaluation.calibrate import calibrate
from flaxbert.model import Model
from flaxbert.transforms.quantize import (
    QuantizationRule,
    QuantizationSpec,
    default_quantization_rules,
    dequantize,
    quantize,
)
from flaxbert.transforms.report import CompressionReport
from flaxbert.transforms.statistics import Statistics

SMALL_TABLES = r"embeddings\.(position|token_type)\.embedding"
"""Tables that are worth codes once all other leaves have few bits."""


def quantization_rules(spec: QuantizationSpec, keep: Sequence[str] = ()) -> tuple[QuantizationRule, ...]:
    """Returns the rules of one specification for all large matrices.

    Args:
      spec: How they are quantized.
      keep: Patterns of leaves that stay as they are; each must match one.
    """
    return (*(Rule(pattern, None) for pattern in keep), *default_quantization_rules(spec))


def quantize_model(
    model: Model,
    spec: QuantizationSpec,
    examples: TokenizedExamples | None,
    keep: Sequence[str] = (),
    *,
    consume: bool = False,
) -> tuple[Model, CompressionReport]:
    """Quantizes a model, calibrated where the specification needs it.

    Args:
      model: The model.
      spec: How.
      examples: Examples to calibrate on; only for specifications that need statistics.
      keep: Patterns of leaves that stay as they are.
      consume: As for ``quantize``: the model's own parameters are gone afterwards.

    Returns:
      The quantized model, and what happened to each leaf.

    Raises:
      ConfigError: The specification needs statistics, but there are no examples.
    """
    rules = quantization_rules(spec, keep)
    statistics: Statistics = {}
    if spec.needs_statistics:
        statistics = calibrate(model, _required(examples, spec), rules)
    params, report = quantize(model.params, rules, statistics, consume=consume)
    notes = (f"Measured on {len(examples)} examples.",) if examples is not None and statistics else ()
    return model.replace(params=params), dataclasses.replace(report, notes=(*report.notes, *notes))


def _required(examples: TokenizedExamples | None, spec: QuantizationSpec) -> TokenizedExamples:
    if examples is None:
        what = "static activations" if spec.activations == "static" else spec.rounding
        raise ConfigError(
            f"{what} must be calibrated; name a file of texts such as the model will see (--calibration FILE)."
        )
    return examples


def candidate_specs(bits: Sequence[int], group_size: int, rounding: str) -> tuple[QuantizationSpec, ...]:
    """Returns the ways that mixed bits choose from.

    Args:
      bits: Numbers of bits.
      group_size: Size of groups for less than 8 bits; 0 takes 64.
      rounding: nearest or gptq.

    Raises:
      ConfigError: There are none, one twice, or one that can not be.
    """
    if not bits or len(set(bits)) != len(bits):
        raise ConfigError(f"The bits to choose from are {list(bits)}; give several, each once.")
    return tuple(
        QuantizationSpec(number, 0 if number == 8 else group_size, rounding=rounding)  # type: ignore[arg-type]
        for number in sorted(bits)
    )


@dataclasses.dataclass(frozen=True)
class MixedBits:
    """All ways to store a model's leaves in one of several numbers of bits, with what each costs.

    Attributes:
      model: The float model.
      choices: The ways of every leaf that is quantized.
      statistics: What was measured of the inputs.
      curvature: Sensitivity by block.
    """

    model: Model
    choices: Choices
    statistics: Statistics
    curvature: Mapping[str, float]

    @property
    def kept_bytes(self) -> int:
        """Bytes of the leaves that are not quantized."""
        return kept_size(self.model.params, list(self.choices))

    def apply(self, specs: Mapping[str, QuantizationSpec | None]) -> tuple[Model, CompressionReport]:
        """Returns the model with an assignment.

        Args:
          specs: Specification by leaf name.
        """
        params, report = quantize(self.model.params, rules_of(specs), self.statistics)
        return self.model.replace(params=params), report

    def within(self, budget: float) -> tuple[Model, CompressionReport]:
        """Returns the model of least damage within a share of the float model's size.

        Args:
          budget: Share of the bytes of all float parameters, in (0, 1].

        Raises:
          ConfigError: The share is out of range, or nothing fits into it.
        """
        if not 0 < budget <= 1:
            raise ConfigError(f"budget is {budget}, but is a share of the float model's size, in (0, 1].")
        whole = size_bytes(self.model.params)
        specs = assign_within_size(self.choices, self.kept_bytes, int(budget * whole))
        model, report = self.apply(specs)
        return model, self._described(report, specs)

    def cheapest(self, judge: Judge, tolerance: float) -> tuple[Model, CompressionReport]:
        """Returns the smallest model that keeps the judge's metric.

        While searching, quantized leaves are written out, so that no assignment compiles a program of its own; what is returned is judged as it runs.

        Args:
          judge: Examples and metric.
          tolerance: By how much the metric may be lower.

        Raises:
          ConfigError: The tolerance is negative, or no assignment keeps the metric; says the best one that was found.
        """
        if tolerance < 0:
            raise ConfigError(f"The tolerance is {tolerance}, but a loss of quality is 0 or more.")
        reference = judge.measure(self.model)

        def evaluate(specs: Mapping[str, QuantizationSpec | None]) -> float:
            quantized, _ = self.apply(specs)
            return judge.measure(quantized.replace(params=dequantize(quantized.params)))

        found = find_cheapest(self.choices, evaluate, reference, tolerance, self.kept_bytes)
        model, report = self.apply(found.specs)
        final = judge.measure(model)
        tried = "; ".join(f"{size / 1e6:.2f} MB {metric:.4f}" for size, metric in found.tried)
        notes = (
            f"{judge.metric} on {len(judge.examples)} examples: {reference:.4f} before, {final:.4f} after (tolerance {tolerance:g}).",
            f"Tried: {tried}.",
        )
        report = self._described(report, found.specs)
        return model, dataclasses.replace(report, notes=(*report.notes, *notes))

    def _described(self, report: CompressionReport, specs: Mapping[str, QuantizationSpec | None]) -> CompressionReport:
        blocks: dict[str, list[str]] = {}
        for name, spec in specs.items():
            blocks.setdefault(block_of(name), []).append("32" if spec is None else str(spec.bits))
        shown = "; ".join(
            f"{block}: {'/'.join(sorted(set(bits), key=int))} bits, curvature {self.curvature[block]:.3g}"
            for block, bits in blocks.items()
        )
        return dataclasses.replace(report, notes=(*report.notes, f"Bits by block: {shown}."))


def mix_bits(
    model: Model,
    examples: TokenizedExamples,
    specs: Sequence[QuantizationSpec],
    keep: Sequence[str] = (),
    *,
    keeps_float: bool = False,
    **options: Any,
) -> MixedBits:
    """Measures curvature and inputs of a model, and what every number of bits would cost each of its leaves (Q-BERT; Shen et al., 2020).

    Args:
      model: A float model with a task that has a loss.
      examples: Encoded examples with labels.
      specs: Ways to choose from.
      keep: Patterns of leaves that stay as they are.
      keeps_float: Whether leaving a leaf as it is is a way too.
      **options: For ``measure_curvature``.

    Returns:
      The ways.
    """
    largest = specs[-1]
    small: tuple[QuantizationRule, ...] = (
        Rule(SMALL_TABLES, dataclasses.replace(largest, rounding="nearest"), optional=True),
    )
    rules = quantization_rules(largest, keep)
    matched = match_rules(model.params, (*rules[:-1], *small, rules[-1]), purpose="quantization")
    names = [name for name, spec in matched.items() if spec is not None]
    curvature = measure_curvature(model, examples, names, **options)
    needy = next((spec for spec in specs if spec.needs_statistics), None)
    statistics = {} if needy is None else calibrate(model, examples, rules_of(dict.fromkeys(names, needy)))
    leaves = flatten_names(model.params)
    candidates = {name: _fitting(specs, leaves[name].shape, name) for name in names}
    choices = find_choices(
        model.params, candidates, lambda name: curvature[block_of(name)], statistics, keeps=keeps_float
    )
    return MixedBits(model, choices, statistics, curvature)


def _fitting(specs: Sequence[QuantizationSpec], shape: tuple[int, ...], name: str) -> list[QuantizationSpec]:
    """Returns the ways whose groups divide a leaf."""
    length = shape[-2 if name.endswith(".kernel") else -1]
    return [spec for spec in specs if spec.bits == 8 or length % (spec.group_size or 64) == 0]
