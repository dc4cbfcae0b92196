"""What ``flaxbert predict`` does: texts from anywhere in, one line each out."""

import codecs
import gzip
import json
import pathlib
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from flaxbert.architecture import TASK_HEADS
from flaxbert.config import DataConfig
from flaxbert.core.files import whole_file
from flaxbert.data.columns import read_examples
from flaxbert.data.sources import is_table_file
from flaxbert.errors import ConfigError, DataError
from flaxbert.model import Model


def read_texts(
    texts: Sequence[str], path: str, text_column: str, text_pair_column: str
) -> tuple[list[str], list[str] | None]:
    """Returns the texts to predict and, for pairs, the second texts.

    Args:
      texts: Texts given directly.
      path: File to read, ``-`` for standard input, or empty.
      text_column: Column of the text in a table.
      text_pair_column: Column of the second text, or empty.

    Raises:
      ConfigError: Neither or both of texts and file are given.
      DataError: The file can not be read.
    """
    if bool(texts) == bool(path):
        raise ConfigError(
            "Give either texts (--text '[\"A fine film.\"]') or a file (--input FILE, - for standard input)."
        )
    if texts:
        return list(texts), None
    if path == "-":
        return _lines(sys.stdin.buffer.read(), "standard input"), None
    if not pathlib.Path(path).is_file():
        raise DataError(f"There is no file '{path}' to predict.")
    if is_table_file(path):
        config = DataConfig(text_column=text_column, text_pair_column=text_pair_column, label_column="")
        examples = read_examples(path, config)
        return list(examples.texts), None if examples.pairs is None else list(examples.pairs)
    content = pathlib.Path(path).read_bytes()
    if path.lower().endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} can not be decompressed ({error}); write or copy it again.") from error
    return _lines(content, path), None


def _lines(content: bytes, where: str) -> list[str]:
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.rstrip(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"Line {number} of {where} is not UTF-8 (byte {error.start}); convert the file first."
            ) from error
        if text:
            texts.append(text)
    if not texts:
        raise DataError(f"{where} holds no text.")
    return texts


def predict_lines(
    model: Model,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    format: str,
    batch_size: int,
    max_length: int | None,
) -> Iterator[str]:
    """Yields one line per text.

    Args:
      model: A classifier, or a sentence model without head.
      texts: First texts.
      pairs: Second texts, or None.
      format: text or jsonl.
      batch_size: Most texts computed together.
      max_length: Most tokens of a text.

    Raises:
      ConfigError: There are pairs, but the model makes one vector of each text.
    """
    if not TASK_HEADS[model.task]:
        if pairs is not None:
            raise ConfigError("The model makes one vector of each text; leave out text_pair_column.")
        vectors = model.encode(list(texts), batch_size=batch_size, max_length=max_length)
        for text, vector in zip(texts, vectors, strict=True):
            yield _embedding_line(text, vector, format)
        return
    predictions = model.predict(list(texts), pairs, batch_size=batch_size, max_length=max_length)
    for index, (text, prediction) in enumerate(zip(texts, predictions, strict=True)):
        if format == "jsonl":
            line = {"text": text, "label": prediction.label, "score": prediction.score, "scores": prediction.scores}
            yield json.dumps({**line, **({"text_pair": pairs[index]} if pairs else {})}, ensure_ascii=False)
        else:
            yield f"{prediction.label}\t{prediction.score:.4f}\t{_one_line(text)}"


def _one_line(text: str) -> str:
    return text.replace("\t", " ").replace("\n", " ").replace("\r", " ")


def _embedding_line(text: str, vector: np.ndarray, format: str) -> str:
    if format == "jsonl":
        return json.dumps({"text": text, "embedding": [round(float(value), 7) for value in vector]}, ensure_ascii=False)
    return f"{' '.join(f'{value:.6f}' for value in vector)}\t{_one_line(text)}"


def require_folder(path: pathlib.Path) -> None:
    """Checks, before anything is computed, that a file can be written at a place.

    Args:
      path: The file.

    Raises:
      ConfigError: Its folder does not exist, or the file is a folder.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path} can not be written: there is no folder {path.parent}. Make it first.")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it.")


def write_lines(lines: Iterable[str], path: str) -> None:
    """Writes lines to a file that appears only when it is whole, or to standard output.

    Args:
      lines: The lines, without line ends.
      path: The file, or empty for standard output.

    Raises:
      ConfigError: Its folder does not exist; nothing was computed then.
    """
    if not path:
        for line in lines:
            print(line)
        return
    target = pathlib.Path(path)
    require_folder(target)
    with whole_file(target) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
