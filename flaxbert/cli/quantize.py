"""``flaxbert quantize``: stores and runs a model's matrices as int8."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flaxbert.transforms import CompressionReport


def run(model: str, output: str, keep: list[str] | None = None, task: str | None = None) -> int:
    """Stores and runs a model's matrices as int8: weights per channel, activations per token as they come.

    Args:
      model: Folder or hub id of the model.
      output: New folder that the quantized model is written to, with compression_report.json beside it.
      keep: Regular expressions of leaf names that stay as they are, for example "encoder.layers.0.*".
      task: Task to load the model for; default what the folder holds.

    Returns:
      The exit code.
    """
    print(quantize_model(model, output, keep=keep, task=task).to_text(), end="")
    print(f"Saved to {output}.")
    return 0


def quantize_model(
    model: str, output: str, keep: list[str] | None = None, task: str | None = None
) -> "CompressionReport":
    """Quantizes a model on disk and returns the report that is also written into the new folder.

    Args:
      model: Folder or hub id.
      output: Folder to write; must not exist or be empty.
      keep: Regular expressions of leaf names that stay as they are; each must match one at least.
      task: Task to load the model for; None takes what the folder holds.

    Returns:
      The report.

    Raises:
      ConfigError: The output folder exists already.
      RuleError: An entry of ``keep`` matches no leaf, or the model is quantized already.
    """
    from flaxbert.cli.compression import check_output, save_compressed

    folder = check_output(output)
    from flaxbert.core.runtime import configure

    configure()
    import flaxbert
    from flaxbert.core.rules import Rule
    from flaxbert.transforms import DEFAULT_QUANTIZATION_RULES, quantize
    from flaxbert.transforms.quantize import QuantizationRule

    loaded = flaxbert.load(model, task=task)
    kept: tuple[QuantizationRule, ...] = tuple(Rule(pattern, None) for pattern in keep or ())
    rules = (*kept, *DEFAULT_QUANTIZATION_RULES)
    params, report = quantize(loaded.params, rules)
    save_compressed(loaded.replace(params=params), report, folder)
    return report
