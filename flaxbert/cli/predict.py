"""``flaxbert predict``: what a model's task says of texts: labels, entities, answers, vectors."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

from flaxbert.cli.engine import EngineName, computed_by, engine_name
from flaxbert.config import AttentionName, PrecisionName, TaskConfig


def run(
    model: str,
    text: tuple[str, ...] = (),
    text_pair: tuple[str, ...] = (),
    input: str = "",
    output: str = "",
    text_column: str = "text",
    text_pair_column: str = "",
    data_format: Literal["", "csv", "tsv", "jsonl", "lines", "parquet", "conll", "squad", "semeval"] = "",
    task: TaskConfig = TaskConfig(),
    format: Literal["text", "jsonl"] = "text",
    batch_size: int = 32,
    chunk_rows: int = 8192,
    max_length: int = 0,
    precision: PrecisionName = "float32",
    attention: AttentionName = "auto",
    engine: EngineName = "jax",
    offline: bool = False,
) -> int:
    """Makes the predictions of a model's task for texts, or embeds them by a sentence model.

    Args:
      model: Folder or hub id of the model.
      text: The texts themselves, as a list; for question answering and multiple choice the questions.
      text_pair: Second texts, one for each text or one for all; for question answering where the answers stand.
      input: File to read texts from: CSV, TSV, JSONL or Parquet by its ending, a file of the task's own format, else one text a line; - reads lines from standard input.
      output: File to write to, made whole before it appears; one that ends in .parquet becomes a Parquet file. Empty writes to standard output.
      text_column: Column of the text in a table.
      text_pair_column: Column of the second text in a table; empty for single texts.
      data_format: Format of the file, such as conll or squad; empty: from its name.
      task: What the model's task needs beyond texts, such as the columns of questions.
      format: text writes label or answer, score and text by tabs, of entities one a line; jsonl writes one object a line with all scores or the vector.
      batch_size: Most texts computed together.
      chunk_rows: Rows of a large file that are read, computed and written together; an interrupted command with --output goes on after the last of them.
      max_length: Most tokens of a text; 0 takes the model's maximum.
      precision: Type that the matrix products are computed in.
      attention: Attention implementation.
      engine: What computes: jax, or on CPU the exported model in onnxruntime or openvino (extras onnx, openvino); auto measures those that are installed and remembers the fastest. The files are kept in the compile cache.
      offline: Never contact the hub.

    Returns:
      The exit code.
    """
    options = dict(locals())
    import flaxbert

    return predict(flaxbert.load, options)


def predict(load: Callable[..., Any], options: Mapping[str, Any]) -> int:
    """Runs the command with a model from anywhere.

    Args:
      load: Takes what ``flaxbert.load`` takes and returns a model.
      options: The arguments of ``run``.

    Returns:
      The exit code.
    """
    from flaxbert.core.runtime import configure

    configure()
    from flaxbert.config import DataConfig
    from flaxbert.evaluation.bulk import can_be_cut
    from flaxbert.evaluation.predict import predict_lines, read_inputs, read_texts, write_lines

    text, source, task = options["text"], options["input"], options["task"]
    columns = {name: options[name] for name in ("text_column", "text_pair_column")}
    if bool(text) == bool(source):
        read_texts(text, source, **columns)
    loaded = load(options["model"], **{name: options[name] for name in ("precision", "attention", "offline")})
    config = DataConfig(**columns, label_column="", format=options["data_format"])
    if source and options["output"] and not options["text_pair"] and can_be_cut(loaded, source, config):
        return _predict_in_parts(loaded, config, options)
    examples = read_inputs(loaded, text, source, config, pairs=options["text_pair"], options=task)
    lines = predict_lines(
        computed_by(options["engine"], loaded, options["model"]),
        examples,
        format=options["format"],
        batch_size=options["batch_size"],
        max_length=options["max_length"] or None,
        options=task,
    )
    write_lines(lines, options["output"])
    return 0


def _predict_in_parts(loaded: Any, config: Any, options: Mapping[str, Any]) -> int:
    """Predicts a file some rows at a time."""
    from flaxbert.evaluation.bulk import Bulk, identity_of
    from flaxbert.weights.hub import resolve

    words = {
        "format": options["format"],
        "batch_size": options["batch_size"],
        "max_length": options["max_length"] or None,
        "options": options["task"],
    }
    identity = [
        *identity_of(resolve(options["model"], offline=True)),
        str(options["precision"]),
        str(options["engine"]),
    ]
    bulk = Bulk(loaded, options["input"], options["output"], config, words, options["chunk_rows"], identity)

    def compute(model: Any, before: str) -> tuple[Any, str]:
        made = computed_by(before or options["engine"], model, options["model"])
        return made, engine_name(made)

    bulk.run(lambda line: print(line, file=sys.stderr, flush=True), compute)
    return 0
