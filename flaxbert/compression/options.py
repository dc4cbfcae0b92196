"""What ``flaxbert quantize`` is asked for, checked before a model is loaded, and done."""

import dataclasses

from flaxbert.compression.examples import read_calibration, read_judge
from flaxbert.compression.quantization import candidate_specs, mix_bits, quantize_model
from flaxbert.config import DataConfig, TaskConfig
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError
from flaxbert.model import Model
from flaxbert.transforms.quantize import ActivationsName, QuantizationSpec, RoundingName, SchemeName
from flaxbert.transforms.report import CompressionReport
from flaxbert.transforms.statistics import RangeName


@dataclasses.dataclass(frozen=True)
class QuantizationOptions:
    """What is asked for; the fields of ``QuantizationSpec``, and:

    Attributes:
      bits: As for ``QuantizationSpec``, as all up to ``smoothing``.
      group_size: The same.
      scheme: The same.
      rounding: The same.
      activations: The same.
      activation_range: The same.
      percentile: The same.
      smoothing: The same.
      calibration: File of texts, with labels for mixed bits.
      num_examples: Examples drawn from it; 0 for all.
      budget: Mixed bits within this share of the float model's size; 0 for none.
      auto: Mixed bits that keep the metric within this tolerance; negative for none.
      choices: Numbers of bits that mixed bits choose from.
      examples: Labelled examples to judge by.
      keep: Patterns of leaves that stay as they are.
    """

    bits: int = 8
    group_size: int = 0
    scheme: SchemeName = "uniform"
    rounding: RoundingName = "nearest"
    activations: ActivationsName = "dynamic"
    activation_range: RangeName = "minmax"
    percentile: float = 99.99
    smoothing: float = 0.0
    calibration: str = ""
    num_examples: int = 256
    budget: float = 0.0
    auto: float = -1.0
    choices: tuple[int, ...] = (2, 3, 4, 8)
    examples: str = ""
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_examples < 0:
            raise ConfigError(f"num_examples is {self.num_examples}; give a number of examples, or 0 for all.")
        if not self.is_mixed:
            self.spec()
            return
        if self.budget and self.auto >= 0:
            raise ConfigError("--budget and --auto exclude each other: the one gives a size, the other a quality.")
        if not 0 <= self.budget <= 1:
            raise ConfigError(f"budget is {self.budget}, but is a share of the float model's size, in (0, 1].")
        for field, usual in (("bits", 8), ("scheme", "uniform"), ("activations", "dynamic")):
            if getattr(self, field) != usual:
                raise ConfigError(
                    f"--{field} {getattr(self, field)} does not go with mixed bits, which --budget and --auto choose among --choices."
                )
        if self.auto >= 0 and not self.examples:
            raise ConfigError("--auto needs labelled examples to judge by: --examples FILE.")
        if not (self.calibration or self.examples):
            raise ConfigError("Mixed bits need labelled examples to measure curvature on: --calibration FILE.")
        candidate_specs(self.choices, self.group_size, self.rounding)

    @property
    def is_mixed(self) -> bool:
        """Whether leaves get different numbers of bits."""
        return self.budget != 0 or self.auto >= 0

    def spec(self) -> QuantizationSpec:
        """Returns the one specification of all matrices."""
        return QuantizationSpec(
            self.bits,
            self.group_size,
            self.scheme,
            self.rounding,
            self.activations,
            self.activation_range,
            self.percentile,
            self.smoothing,
        )


def quantize_by(
    model: Model, options: QuantizationOptions, data: DataConfig = DataConfig(), task: TaskConfig = TaskConfig()
) -> tuple[Model, CompressionReport]:
    """Quantizes a model as asked.

    Args:
      model: The float model.
      options: What is asked for.
      data: Columns and format of calibration and examples.
      task: What the model's task needs beyond texts and labels.

    Returns:
      The quantized model, and what happened to each leaf.

    Raises:
      ConfigError: Files are missing, or what is asked for can not be had; says the best found.
      DataError: Files can not be read, are empty, or are of another task.
      RuleError: A pattern matches no leaf, or the model is quantized already.
      ShapeError: Groups do not divide a leaf.
    """
    if not options.is_mixed:
        examples = None
        if options.spec().needs_statistics:
            examples = read_calibration(model, options.calibration, data, options.num_examples, options=task)
        return quantize_model(model, options.spec(), examples, options.keep)
    judge = read_judge(model, options.examples, data, task) if options.auto >= 0 else None
    labelled = _labelled(model, options, data, task)
    specs = candidate_specs(options.choices, options.group_size, options.rounding)
    mixed = mix_bits(model, labelled, specs, options.keep)
    return mixed.within(options.budget) if judge is None else mixed.cheapest(judge, options.auto)


def _labelled(model: Model, options: QuantizationOptions, data: DataConfig, task: TaskConfig) -> TokenizedExamples:
    limited = dataclasses.replace(data, max_validation_examples=options.num_examples)
    source = options.calibration or options.examples
    return read_judge(model, source, limited, task).features(model)
