"""``flaxbert quantize``: stores a model's matrices as codes of a few bits, and runs them in integers where that is faster."""

from typing import TYPE_CHECKING, Any

from flaxbert.cli.compression import (
    add_to_registry,
    check_output,
    check_registration,
    plan_comparison,
    save_compressed,
)
from flaxbert.config import DataConfig, QuantizeConfig, TaskConfig

if TYPE_CHECKING:
    from flaxbert.transforms import CompressionReport


def run(
    model: str,
    output: str,
    examples: str = "",
    data: DataConfig = DataConfig(max_length=0),
    task_options: TaskConfig = TaskConfig(),
    task: str | None = None,
    report: str = "",
    register: str = "",
    registry: str = "",
    **options: Any,
) -> int:
    """Stores a model's matrices as codes: int8, which is also computed in, or 4, 3, 2 or 1 bits or float8, which are written out for each product.

    Args:
      model: Folder or hub id of the model.
      output: New folder that the quantized model is written to, with compression_report.json beside it.
      examples: Labelled examples that auto judges by, and for the quality in the report.
      data: Where labels and texts stand in calibration and examples.
      task_options: What the model's task needs beyond texts and labels.
      task: Task to load the model for; default what the folder holds.
      report: New folder for a page that compares the two models, as flaxbert compare writes it; empty writes none.
      register: Name under which the quantized model is added to a registry; empty: to none.
      registry: Folder or URL of that registry; empty takes the variable FLAXBERT_REGISTRY.
      **options: Fields of ``QuantizeConfig``: how.

    Returns:
      The exit code.
    """
    chosen = QuantizeConfig(**options)
    check_registration(register, registry)
    compare = plan_comparison(model, output, report, examples, data, task_options, chosen.is_mixed)
    done = quantize_model(model, output, chosen, examples, data, task_options, task)
    print(done.to_text(), end="")
    print(f"Saved to {output}.")
    add_to_registry(register, registry, output, model, "quantized")
    return compare()


def quantize_model(
    model: str,
    output: str,
    options: QuantizeConfig = QuantizeConfig(),
    examples: str = "",
    data: DataConfig = DataConfig(max_length=0),
    task_options: TaskConfig = TaskConfig(),
    task: str | None = None,
) -> "CompressionReport":
    """Quantizes a model on disk and returns the report that is also written into the new folder.

    Args:
      model: Folder or hub id.
      output: Folder to write; must not exist or be empty.
      options: How.
      examples: Labelled examples to judge by.
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
    from flaxbert.compression.options import check_options, quantize_by

    check_options(options, examples)
    loaded = flaxbert.load(model, task=task)
    compressed, report = quantize_by(loaded, options, examples, data, task_options, consume=True)
    save_compressed(compressed, report, folder, source=model)
    return report
