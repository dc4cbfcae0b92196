"""``flaxbert predict``: labels or embeds texts."""

from typing import Literal

from flaxbert.config import AttentionName, PrecisionName


def run(
    model: str,
    text: tuple[str, ...] = (),
    input: str = "",
    output: str = "",
    text_column: str = "text",
    text_pair_column: str = "",
    format: Literal["text", "jsonl"] = "text",
    batch_size: int = 32,
    max_length: int = 0,
    precision: PrecisionName = "float32",
    attention: AttentionName = "auto",
    offline: bool = False,
) -> int:
    """Labels texts by a classifier, or embeds them by a sentence model.

    Args:
      model: Folder or hub id of the model.
      text: The texts themselves, as a list.
      input: File to read texts from: CSV, TSV, JSONL or Parquet by its ending, else one text a line; - reads lines from standard input.
      output: File to write to, made whole before it appears; empty writes to standard output.
      text_column: Column of the text in a table.
      text_pair_column: Column of the second text in a table; empty for single texts.
      format: text writes label, score and text by tabs; jsonl writes one object a line with all scores or the vector.
      batch_size: Most texts computed together.
      max_length: Most tokens of a text; 0 takes the model's maximum.
      precision: Type that the matrix products are computed in.
      attention: Attention implementation.
      offline: Never contact the hub.

    Returns:
      The exit code.
    """
    from flaxbert.core.runtime import configure

    configure()
    from flaxbert.evaluation.predict import predict_lines, read_texts, write_lines

    first, second = read_texts(text, input, text_column, text_pair_column)
    import flaxbert

    loaded = flaxbert.load(model, precision=precision, attention=attention, offline=offline)
    lines = predict_lines(loaded, first, second, format=format, batch_size=batch_size, max_length=max_length or None)
    write_lines(lines, output)
    return 0
