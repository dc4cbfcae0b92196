"""``flaxbert export``: writes a model for ONNX Runtime, OpenVINO, jax alone or stock transformers, and compares it at once."""

from collections.abc import Mapping
from typing import Any, Literal


def run(
    model: str,
    output: str,
    format: Literal["onnx", "stablehlo", "openvino", "hf"] = "onnx",
    int8: Literal["auto", "off", "dynamic", "static"] = "auto",
    calibration: str = "",
    calibration_method: Literal["min-max", "percentile"] = "min-max",
    percentile: float = 99.99,
    num_samples: int = 300,
    text_column: str = "text",
    text_pair_column: str = "",
    data_format: Literal["", "csv", "tsv", "jsonl", "lines", "parquet", "conll", "squad", "semeval"] = "",
    reduced_range: bool = False,
    quantize_attention: bool = False,
    verify: bool = True,
    tolerance: float = 0.0,
    task: str | None = None,
    offline: bool = False,
) -> int:
    """Writes a model for another engine, with config.json and tokenizer beside it, and compares its outputs with flaxbert's.

    Args:
      model: Folder or hub id of the model.
      output: New folder.
      format: onnx (model.onnx), openvino (openvino_model.xml), stablehlo (called by jax alone) or hf (a dense folder for stock transformers).
      int8: auto keeps what the model has; off writes float32; dynamic rounds activations as they come; static rounds them in ranges measured on calibration texts. dynamic and static quantize a float32 model first.
      calibration: File of texts, or of the task's own format, that static int8 is calibrated with.
      calibration_method: min-max takes the smallest and largest activation, percentile leaves out the outermost.
      percentile: Percent of the activations inside the range, for percentile.
      num_samples: Most texts that are run for calibration.
      text_column: Column of the text in a table.
      text_pair_column: Column of the second text in a table; empty for single texts.
      data_format: Format of the calibration file; empty: from its name.
      reduced_range: Keep int8 codes within 63, for processors without VNNI or AMX, where sums of byte products overflow.
      quantize_attention: Round queries and keys too in static int8, as NNCF does.
      verify: Run the exported files and refuse them where they differ.
      tolerance: Largest difference relative to the largest output, for int8 root mean square relative to that of the outputs; 0 takes 0.001, and 0.2 for int8.
      task: Task to load the model for; default what the folder holds.
      offline: Never contact the hub.

    Returns:
      The exit code.
    """
    return export(dict(locals()))


def export(options: Mapping[str, Any]) -> int:
    """Runs the command.

    Args:
      options: The arguments of ``run``.

    Returns:
      The exit code.
    """
    from flaxbert.cli.compression import check_output

    check_output(options["output"])
    from flaxbert.core.runtime import configure

    configure()
    import dataclasses

    import flaxbert
    from flaxbert.export import ExportOptions, export_model
    from flaxbert.export.verify import to_table

    fields = {field.name for field in dataclasses.fields(ExportOptions)}
    chosen = ExportOptions(**{name: value for name, value in options.items() if name in fields})
    loaded = flaxbert.load(options["model"], task=options["task"], offline=options["offline"])
    result = export_model(loaded, options["output"], chosen, examples=_calibration_examples(loaded, options))
    for notice in result.notices:
        print(notice)
    if result.comparisons:
        print("Compared with flaxbert:")
        print(to_table(result.comparisons))
    print(f"Saved to {options['output']}: {', '.join(result.files)}.")
    return 0


def _calibration_examples(loaded: Any, options: Mapping[str, Any]) -> Any:
    """Returns the tokenized texts of the calibration file; None without one."""
    if not options["calibration"]:
        return None
    from flaxbert.config import DataConfig, TaskConfig
    from flaxbert.evaluation.predict import read_inputs
    from flaxbert.tasks.base import setting_of
    from flaxbert.tasks.registry import TASKS, find_task

    columns = {name: options[name] for name in ("text_column", "text_pair_column")}
    config = DataConfig(**columns, label_column="", format=options["data_format"])
    examples = read_inputs(loaded, (), options["calibration"], config)
    task = find_task(loaded.task) or TASKS["sequence-classification"]
    setting = setting_of(loaded.config, TaskConfig(), loaded.max_length, config)
    return task.encode(loaded.tokenizer, examples, setting, labelled=False).features
