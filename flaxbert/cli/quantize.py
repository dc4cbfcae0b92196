"""``flaxbert quantize``: stores a model's matrices as codes of a few bits, and runs them in integers where that is faster."""

from typing import TYPE_CHECKING, Literal

from flaxbert.cli.compression import check_output, plan_comparison, save_compressed
from flaxbert.config import DataConfig, TaskConfig

if TYPE_CHECKING:
    from flaxbert.compression.options import QuantizationOptions
    from flaxbert.transforms import CompressionReport


def run(
    model: str,
    output: str,
    bits: int = 8,
    group_size: int = 0,
    scheme: Literal["uniform", "ternary", "float8"] = "uniform",
    rounding: Literal["nearest", "gptq", "awq"] = "nearest",
    activations: Literal["dynamic", "static"] = "dynamic",
    activation_range: Literal["minmax", "percentile", "entropy"] = "minmax",
    percentile: float = 99.99,
    smoothing: float = 0.0,
    calibration: str = "",
    num_examples: int = 256,
    budget: float = 0.0,
    auto: float = -1.0,
    choices: tuple[int, ...] = (2, 3, 4, 8),
    examples: str = "",
    data: DataConfig = DataConfig(max_length=0),
    task_options: TaskConfig = TaskConfig(),
    keep: list[str] | None = None,
    task: str | None = None,
    report: str = "",
) -> int:
    """Stores a model's matrices as codes: int8, which is also computed in, or 4, 3, 2 or 1 bits or float8, which are written out for each product.

    Args:
      model: Folder or hub id of the model.
      output: New folder that the quantized model is written to, with compression_report.json beside it.
      bits: 8 (weights per channel), 4 (weights per group, two codes to a byte), 3, 2 or 1 (per group, packed).
      group_size: Weights that share a scale, for less than 8 bits; 0 takes 64.
      scheme: uniform levels, ternary (with --bits 2) or float8 (with --bits 8).
      rounding: nearest; gptq, which makes up for errors in the weights that follow; awq (4 bits), which scales channels first. The last two need --calibration.
      activations: For int8: dynamic rounds every token as it comes, static takes ranges measured on --calibration.
      activation_range: Static ranges: the largest (minmax), a percentile, or the least divergence (entropy).
      percentile: Share of the entries inside the range, for percentile, in (0, 100].
      smoothing: Strength with which static activations hand their large channels to the weights (SmoothQuant), in [0, 1).
      calibration: File of texts such as the model will see; with labels for --budget and --auto, where it may be left out for --examples.
      num_examples: Examples drawn from it; 0 takes all.
      budget: Mixed bits within this share of the float32 size, in (0, 1], for example 0.12; 0 for one number of bits.
      auto: Mixed bits, as few as keep the metric on --examples within this tolerance, for example 0.005; negative for one number of bits.
      choices: Numbers of bits that --budget and --auto choose from.
      examples: Labelled examples that --auto judges by, and the quality in the report; --data FILE is the same.
      data: Where labels and texts stand in calibration and examples.
      task_options: What the model's task needs beyond texts and labels.
      keep: Regular expressions of leaf names that stay as they are, for example "encoder.layers.0.*".
      task: Task to load the model for; default what the folder holds.
      report: New folder for a page that compares the two models, as flaxbert compare writes it; empty writes none.

    Returns:
      The exit code.
    """
    from flaxbert.compression.options import QuantizationOptions

    ways = (bits, group_size, scheme, rounding, activations, activation_range, percentile, smoothing)
    mixed = (budget, auto, choices, examples, tuple(keep or ()))
    options = QuantizationOptions(*ways, calibration, num_examples, *mixed)
    compare = plan_comparison(model, output, report, examples, data, task_options, options.is_mixed)
    print(quantize_model(model, output, options, data, task_options, task).to_text(), end="")
    print(f"Saved to {output}.")
    return compare()


def quantize_model(
    model: str,
    output: str,
    options: "QuantizationOptions | None" = None,
    data: DataConfig = DataConfig(max_length=0),
    task_options: TaskConfig = TaskConfig(),
    task: str | None = None,
) -> "CompressionReport":
    """Quantizes a model on disk and returns the report that is also written into the new folder.

    Args:
      model: Folder or hub id.
      output: Folder to write; must not exist or be empty.
      options: How; None for int8.
      data: Columns and format of calibration and examples.
      task_options: What the model's task needs beyond texts and labels.
      task: Task to load the model for; None takes what the folder holds.

    Returns:
      The report.

    Raises:
      ConfigError: The output folder exists already, or the options do not fit together.
      DataError: Calibration or examples can not be read.
      RuleError: An entry of ``keep`` matches no leaf, or the model is quantized already.
    """
    folder = check_output(output)
    from flaxbert.core.runtime import configure

    configure()
    import flaxbert
    from flaxbert.compression.options import QuantizationOptions, quantize_by

    loaded = flaxbert.load(model, task=task)
    compressed, report = quantize_by(loaded, options or QuantizationOptions(), data, task_options)
    save_compressed(compressed, report, folder, source=model)
    return report
