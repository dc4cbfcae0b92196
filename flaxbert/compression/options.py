"""What ``flaxbert quantize`` is asked for, checked before a model is loaded, and done."""

import dataclasses

from flaxbert.compression.examples import read_calibration, read_judge
from flaxbert.compression.quantization import candidate_specs, mix_bits, quantize_model
from flaxbert.config import DataConfig, QuantizeConfig, TaskConfig
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError
from flaxbert.model import Model
from flaxbert.transforms.report import CompressionReport


def check_options(options: QuantizeConfig, examples: str) -> None:
    """Refuses options that do not fit together, before a model is loaded.

    Args:
      options: What is asked for.
      examples: Labelled examples; empty for none.

    Raises:
      ConfigError: They do not fit together, or files are missing.
    """
    if not options.is_mixed:
        if options.needs_statistics and not options.calibration:
            what = "Static activations" if options.activations == "static" else options.rounding
            raise ConfigError(
                f"{what} must know the inputs: name a file of texts such as the model will see (--calibration FILE)."
            )
        return
    if options.auto >= 0 and not examples:
        raise ConfigError("--auto needs labelled examples to judge by: --examples FILE.")
    if not (options.calibration or examples):
        raise ConfigError("Mixed bits need labelled examples to measure curvature on: --calibration FILE.")
    candidate_specs(options.choices, options.group_size, options.rounding)


def quantize_by(
    model: Model,
    options: QuantizeConfig,
    examples: str = "",
    data: DataConfig = DataConfig(),
    task: TaskConfig = TaskConfig(),
    *,
    consume: bool = False,
) -> tuple[Model, CompressionReport]:
    """Quantizes a model as asked.

    Args:
      model: The float model.
      options: What is asked for.
      examples: Labelled examples to judge by.
      data: Columns and format of calibration and examples.
      task: What the model's task needs beyond texts and labels.
      consume: Whether the model's own parameters may be gone afterwards, so that less memory is needed.

    Returns:
      The quantized model, and what happened to each leaf.

    Raises:
      ConfigError: Files are missing, or what is asked for can not be had; says the best found.
      DataError: Files can not be read, are empty, or are of another task.
      RuleError: A pattern matches no leaf, or the model is quantized already.
      ShapeError: Groups do not divide a leaf.
    """
    check_options(options, examples)
    keep = tuple(options.keep)
    if not options.is_mixed:
        spec, texts = options.spec, None
        if spec.needs_statistics:
            texts = read_calibration(model, options.calibration, data, options.num_examples, options=task)
        return quantize_model(model, spec, texts, keep, consume=consume)
    judge = read_judge(model, examples, data, task) if options.auto >= 0 else None
    labelled = _labelled(model, options.calibration or examples, options.num_examples, data, task)
    specs = candidate_specs(options.choices, options.group_size, options.rounding)
    mixed = mix_bits(model, labelled, specs, keep)
    return mixed.within(options.budget) if judge is None else mixed.cheapest(judge, options.auto)


def _labelled(model: Model, source: str, num_examples: int, data: DataConfig, task: TaskConfig) -> TokenizedExamples:
    limited = dataclasses.replace(data, max_validation_examples=num_examples)
    return read_judge(model, source, limited, task).features(model)
