"""What ``flaxbert predict`` does: texts from anywhere in, one line each out."""

import codecs
import gzip
import json
import pathlib
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from flaxbert.architecture import TASK_HEADS
from flaxbert.config import DataConfig, TaskConfig
from flaxbert.core.files import whole_file
from flaxbert.data.columns import read_examples
from flaxbert.data.sources import is_table_file
from flaxbert.errors import ConfigError, DataError
from flaxbert.model import Model
from flaxbert.tasks.base import one_line, setting_of
from flaxbert.tasks.registry import TASKS, find_task


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


def read_inputs(
    model: Model,
    texts: Sequence[str],
    path: str,
    config: DataConfig,
    *,
    pairs: Sequence[str] = (),
    options: TaskConfig = TaskConfig(),
) -> Any:
    """Returns the examples to predict, as the model's task takes them.

    Args:
      model: The model.
      texts: Texts given directly; for question answering the questions.
      path: File to read, ``-`` for standard input, or empty.
      config: Columns and format of a file.
      pairs: Second texts given directly, or the one that goes with every text.
      options: What the task needs beyond texts.

    Raises:
      ConfigError: Neither or both of texts and file are given.
      DataError: The file can not be read.
    """
    task = find_task(model.task) or TASKS["sequence-classification"]
    if not path or texts or path == "-" or task.reads_lines(path, config):
        first, second = read_texts(texts, path, config.text_column, config.text_pair_column)
        if pairs:
            second = list(pairs) * len(first) if len(pairs) == 1 else list(pairs)
        return task.inputs(first, second)
    if not pathlib.Path(path).is_file():
        raise DataError(f"There is no file '{path}' to predict.")
    setting = setting_of(model.config, options, model.max_length, config)
    return task.read(path, setting, labelled=False)


def predict_lines(
    model: Model,
    examples: Any,
    *,
    format: str,
    batch_size: int,
    max_length: int | None,
    options: TaskConfig = TaskConfig(),
) -> Iterator[str]:
    """Yields the lines that show the predictions.

    Args:
      model: A model with a task, or a sentence model without head.
      examples: From ``read_inputs``.
      format: text or jsonl.
      batch_size: Most texts computed together.
      max_length: Most tokens of a text.
      options: What the task needs beyond texts.

    Raises:
      ConfigError: There are pairs, but the model makes one vector of each text, or the model's task predicts nothing.
    """
    task = find_task(model.task)
    if not TASK_HEADS[model.task]:
        if examples.pairs is not None:
            raise ConfigError("The model makes one vector of each text; leave out text_pair_column.")
        vectors = model.encode(list(examples.texts), batch_size=batch_size, max_length=max_length)
        for text, vector in zip(examples.texts, vectors, strict=True):
            yield _embedding_line(text, vector, format)
        return
    if task is None:
        raise ConfigError(f"A model of task '{model.task}' makes no predictions; use encode or predict_logits.")
    predictions = model.predict_examples(examples, batch_size=batch_size, max_length=max_length, options=options)
    for index, prediction in enumerate(predictions):
        if format == "jsonl":
            yield json.dumps(task.describe(examples, index, prediction), ensure_ascii=False)
        else:
            yield from task.lines(examples, index, prediction)


def _embedding_line(text: str, vector: np.ndarray, format: str) -> str:
    if format == "jsonl":
        return json.dumps({"text": text, "embedding": [round(float(value), 7) for value in vector]}, ensure_ascii=False)
    return f"{' '.join(f'{value:.6f}' for value in vector)}\t{one_line(text)}"


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
