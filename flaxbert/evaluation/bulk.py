"""Predictions for files of any size: some rows at a time, in constant memory, going on where an interrupted run stopped."""

import hashlib
import json
import pathlib
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flaxbert.config import DataConfig
from flaxbert.core.files import whole_file
from flaxbert.data.chunks import count_rows, table_chunks
from flaxbert.data.columns import read_examples
from flaxbert.data.sources import guess_format
from flaxbert.data.tables import Table
from flaxbert.data.tokenization import TruncationWarning
from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation.predict import predict_lines, require_folder
from flaxbert.model import Model
from flaxbert.tasks.registry import TASKS, find_task

DEFAULT_CHUNK_ROWS = 8192
_TELL_SECONDS = 5.0
_IDENTITY, _ENGINE = "identity.json", "engine"
_SEQUENCES = ("sequence-classification", "next-sentence-prediction")

Compute = Callable[[Model, str], tuple[Model, str]]
"""Takes a model, and the name of the engine that an interrupted run began with or nothing; returns the model that computes, and its engine's name."""


def can_be_cut(model: Model, path: str, config: DataConfig) -> bool:
    """Returns whether a file to predict can be read some rows at a time: tables of texts and pairs, and files of lines.

    Args:
      model: The model.
      path: The file.
      config: May name its format.
    """
    task = find_task(model.task)
    if not pathlib.Path(path).is_file():
        return False
    if guess_format(path, config.format or ("" if _has_format(path) else "lines")) == "lines":
        return task is None or task.reads_lines(path, config)
    return task is None or model.task in _SEQUENCES


def _has_format(path: str) -> bool:
    try:
        guess_format(path)
    except DataError:
        return False
    return True


class Bulk:
    """One file on its way through a model.

    Parts are written beside the output, each whole, and become the output when all are there.

    Args:
      model: The model.
      source: The file of texts.
      output: The file to write: JSON lines, text, or Parquet by its ending.
      config: Columns and format.
      options: What ``predict_lines`` takes: format, batch_size, max_length, options.
      chunk_rows: Rows of a part.
      identity: What else says that an interrupted run was the same, such as the model's digest.

    Attributes:
      model: The model that computes; ``run`` may put another in its place.

    Raises:
      ConfigError: The output can not be written, or belongs to another run.
    """

    def __init__(
        self,
        model: Model,
        source: str,
        output: str,
        config: DataConfig,
        options: dict[str, Any],
        chunk_rows: int = DEFAULT_CHUNK_ROWS,
        identity: Sequence[str] = (),
    ) -> None:
        if chunk_rows < 1:
            raise ConfigError(f"chunk_rows is {chunk_rows}, but a part has at least one row.")
        self.model = model
        self._source = pathlib.Path(source)
        self._output = pathlib.Path(output)
        require_folder(self._output)
        self._lines = not self._is_table()
        self._config = DataConfig(text_column="text", label_column="", format="lines") if self._lines else config
        self._options = options
        self._chunk_rows = chunk_rows
        self._parquet = self._output.suffix == ".parquet"
        if self._parquet and options["format"] != "jsonl":
            self._options = {**options, "format": "jsonl"}
        self._parts = self._output.with_name(f".{self._output.name}.parts")
        self._claim(identity)

    def _is_table(self) -> bool:
        return _has_format(str(self._source)) and guess_format(str(self._source)) != "lines"

    def _claim(self, identity: Sequence[str]) -> None:
        status = self._source.stat()
        described = {
            "source": [str(self._source.resolve()), status.st_size, status.st_mtime_ns],
            "chunk_rows": self._chunk_rows,
            "config": str(self._config),
            "options": str(sorted((key, str(value)) for key, value in self._options.items())),
            "identity": list(identity),
        }
        file = self._parts / _IDENTITY
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            changed = [key for key in described if found.get(key) != described[key]]
            if changed:
                raise ConfigError(
                    f"{self._parts} holds an interrupted run with other {', '.join(changed)}; finish it with the same command, or delete it."
                )
            return
        self._parts.mkdir(exist_ok=True)
        with whole_file(file) as place:
            place.write_text(json.dumps(described), encoding="utf-8")

    def _part(self, number: int) -> pathlib.Path:
        return self._parts / f"{number:08d}"

    @property
    def num_done(self) -> int:
        """Parts that an interrupted run finished."""
        number = 0
        while self._part(number).is_file():
            number += 1
        return number

    def _chunks(self, skip: int) -> Iterator[Table]:
        columns = [name for name in (self._config.text_column, self._config.text_pair_column) if name]
        yield from table_chunks(self._source, columns, self._config, self._chunk_rows, skip_chunks=skip)

    def _examples(self, table: Table) -> Any:
        if self._lines:
            task = find_task(self.model.task) or TASKS["sequence-classification"]
            return task.inputs(list(table.columns["text"]))
        return read_examples(table, self._config)

    def run(self, say: Callable[[str], None], compute: Compute | None = None) -> int:
        """Computes what is not there yet and writes the output.

        Args:
          say: Is told now and then how far it is.
          compute: Makes the model that computes; None takes the one that is there.

        Returns:
          The rows that were computed by this run.

        Raises:
          DataError: A row is malformed; what was computed before it stays, and the same command goes on after it is mended.
        """
        note = self._parts / _ENGINE
        try:
            if compute is not None:
                self.model, name = compute(self.model, note.read_text(encoding="utf-8") if note.is_file() else "")
                with whole_file(note) as place:
                    place.write_text(name, encoding="utf-8")
            return self._run(say)
        except BaseException:
            if not self.num_done:  # there is nothing to go on after
                shutil.rmtree(self._parts, ignore_errors=True)
            raise

    def _run(self, say: Callable[[str], None]) -> int:
        number, total = self.num_done, count_rows(self._source, self._config)
        if number:
            say(f"Going on after {number * self._chunk_rows:,} rows that are there.")
        begun = told = time.monotonic()
        rows, before = 0, number * self._chunk_rows
        for table in self._chunks(number):
            with warnings.catch_warnings():
                if rows:  # said once
                    warnings.simplefilter("ignore", TruncationWarning)
                self._write(number, table)
            number += 1
            rows += len(table)
            now = time.monotonic()
            if now - told > _TELL_SECONDS:
                told = now
                say(_progress(rows, before, total, now - begun))
        if not number:
            raise DataError(f"{self._source} holds no text.")
        self._finish(number)
        seconds = time.monotonic() - begun
        say(f"{rows:,} rows in {seconds:.1f} s ({rows / max(seconds, 1e-9):.1f} rows/s): {self._output}")
        return rows

    def _write(self, number: int, table: Table) -> None:
        lines = predict_lines(self.model, self._examples(table), **self._options)
        with whole_file(self._part(number)) as place, place.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)

    def _finish(self, num_parts: int) -> None:
        with whole_file(self._output, durable=True) as place:
            if self._parquet:
                _write_parquet(place, [self._part(number) for number in range(num_parts)])
            else:
                with place.open("wb") as target:
                    for number in range(num_parts):
                        with self._part(number).open("rb") as part:
                            shutil.copyfileobj(part, target)
        shutil.rmtree(self._parts)


def _progress(rows: int, before: int, total: int, seconds: float) -> str:
    rate = rows / max(seconds, 1e-9)
    if not total:
        return f"{before + rows:,} rows, {rate:.1f} rows/s"
    left = max(0, total - before - rows) / max(rate, 1e-9)
    return f"{before + rows:,} of {total:,} rows, {rate:.1f} rows/s, {left / 60:.0f} min left"


def _write_parquet(place: pathlib.Path, parts: Sequence[pathlib.Path]) -> None:
    """Writes one row group a part."""
    import pyarrow
    import pyarrow.parquet

    writer = None
    try:
        for part in parts:
            with part.open(encoding="utf-8") as file:
                table = pyarrow.Table.from_pylist([json.loads(line) for line in file])
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(place, table.schema)
            writer.write_table(table.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()


def identity_of(folder: pathlib.Path) -> list[str]:
    """Returns what tells a model folder from another without reading its weights: names, sizes and times of its files.

    Args:
      folder: The folder.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    described = [f"{file.relative_to(folder)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return [hashlib.sha256("\n".join(described).encode()).hexdigest()]
