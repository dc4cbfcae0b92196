"""``flaxbert quantize``: stores a model's matrices as int8, and runs them so, or as 4-bit codes."""

from typing import TYPE_CHECKING

from flaxbert.cli.compression import check_output, plan_comparison, save_compressed
from flaxbert.config import DataConfig

if TYPE_CHECKING:
    from flaxbert.transforms import CompressionReport


def run(
    model: str,
    output: str,
    bits: int = 8,
    group_size: int = 0,
    keep: list[str] | None = None,
    task: str | None = None,
    report: str = "",
    examples: str = "",
    data: DataConfig = DataConfig(max_length=0),
) -> int:
    """Stores a model's matrices as integer codes: int8, which is also computed in, or 4 bits, which are written out for each product.

    Args:
      model: Folder or hub id of the model.
      output: New folder that the quantized model is written to, with compression_report.json beside it.
      bits: 8 (weights per channel, activations per token as they come) or 4 (weights per group, two codes to a byte).
      group_size: Weights that share a scale, for 4 bits; 0 takes 64.
      keep: Regular expressions of leaf names that stay as they are, for example "encoder.layers.0.*".
      task: Task to load the model for; default what the folder holds.
      report: New folder for a page that compares the two models, as flaxbert compare writes it; empty writes none.
      examples: Labelled examples for the quality in that report; --data FILE is the same.
      data: Where labels and texts stand in these examples.

    Returns:
      The exit code.
    """
    compare = plan_comparison(model, output, report, examples, data)
    done = quantize_model(model, output, bits=bits, group_size=group_size, keep=keep, task=task)
    print(done.to_text(), end="")
    print(f"Saved to {output}.")
    compare()
    return 0


def quantize_model(
    model: str,
    output: str,
    *,
    bits: int = 8,
    group_size: int = 0,
    keep: list[str] | None = None,
    task: str | None = None,
) -> "CompressionReport":
    """Quantizes a model on disk and returns the report that is also written into the new folder.

    Args:
      model: Folder or hub id.
      output: Folder to write; must not exist or be empty.
      bits: As for ``QuantizationSpec``.
      group_size: The same.
      keep: Regular expressions of leaf names that stay as they are; each must match one at least.
      task: Task to load the model for; None takes what the folder holds.

    Returns:
      The report.

    Raises:
      ConfigError: The output folder exists already.
      RuleError: An entry of ``keep`` matches no leaf, or the model is quantized already.
    """
    folder = check_output(output)
    from flaxbert.core.runtime import configure

    configure()
    import flaxbert
    from flaxbert.core.rules import Rule
    from flaxbert.transforms import QuantizationSpec, default_quantization_rules, quantize
    from flaxbert.transforms.quantize import QuantizationRule

    spec = QuantizationSpec(bits, group_size)
    loaded = flaxbert.load(model, task=task)
    kept: tuple[QuantizationRule, ...] = tuple(Rule(pattern, None) for pattern in keep or ())
    rules = (*kept, *default_quantization_rules(spec))
    params, report = quantize(loaded.params, rules)
    save_compressed(loaded.replace(params=params), report, folder, source=model)
    return report
