"""Documents of raw text, read one after the other in bounded memory: text files, JSON lines, Parquet, data sets of the hub."""

import codecs
import dataclasses
import glob
import gzip
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flaxbert.config import CorpusConfig
from flaxbert.data.readers import DAMAGED_GZIP, damaged_gzip, numbered_lines, parse_record
from flaxbert.data.tables import shorten
from flaxbert.errors import DataError, nearest

_BLOCK_BYTES = 1 << 16

_ENDINGS = {".txt": "text", ".text": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

_SENTENCE_END = re.compile(
    r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\W\d_a-z])|(?<=[。！？])[”’」』）]*(?=[^”’」』）])"
)
"""Where a sentence ends: after a full stop and a blank before a letter that is not small, or after a Chinese or Japanese full stop."""

_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Rev|Capt|Col|Gen|Lt|Hon|Jr|Sr|vs|etc|cf|No|vol|pp|p)\.$"
)


@dataclasses.dataclass(frozen=True)
class Document:
    """A document.

    Attributes:
      sentences: Its sentences, none of them blank.
      where: Its place, for messages.
    """

    sentences: tuple[str, ...]
    where: str


def split_sentences(text: str) -> list[str]:
    """Splits a text into sentences at full stops, which is exact enough for what learns that sentences follow each other.

    Args:
      text: A paragraph.

    Returns:
      The sentences that are not blank, each with single blanks between its words.

    Example:
      >>> split_sentences("Mr. Fox came. “Why?” asked the hen. It was 3.5 miles.")
      ['Mr. Fox came.', '“Why?” asked the hen.', 'It was 3.5 miles.']
    """
    sentences: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if _ABBREVIATION.search(text, max(start, match.start() - 12), match.start()):
            continue
        sentences.append(text[start : match.end()])
        start = match.end()
    sentences.append(text[start:])
    return [sentence for raw in sentences if (sentence := " ".join(raw.split()))]


def expand_inputs(config: CorpusConfig) -> list[tuple[str, str]]:
    """Returns every file or id with its format, files in the order of their names.

    Args:
      config: Inputs and, perhaps, their format.

    Raises:
      DataError: There is no input, a pattern fits no file, or a file's name does not tell its format.
    """
    found: list[tuple[str, str]] = []
    for entry in config.inputs:
        path = Path(entry).expanduser()
        if config.format == "hub":
            found.append((entry, "hub"))
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and _format_of(file))
            if not files:
                raise DataError(
                    f"{path}: the folder holds no file that ends in {', '.join(sorted(_ENDINGS))} (or these with .gz)."
                )
            found += [(str(file), config.format or _format_of(file)) for file in files]
        elif path.is_file():
            found.append((str(path), config.format or _require_format(path)))
        elif glob.has_magic(entry):
            names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  patterns can be absolute
            files = [Path(name) for name in names if Path(name).is_file()]
            if not files:
                raise DataError(f"corpus.inputs: no file fits {entry!r} (looked from {Path.cwd()}).")
            found += [(str(file), config.format or _require_format(file)) for file in files]
        elif _looks_like_path(entry):
            known = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(f"{entry}: there is no such file or folder.{nearest(path.name, known)}")
        else:
            found.append((entry, "hub"))
    if not found:
        raise DataError("corpus.inputs names no text; give files, folders, patterns or ids of data sets.")
    return found


def _format_of(path: Path) -> str:
    return _ENDINGS.get((path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower(), "")


def _require_format(path: Path) -> str:
    found = _format_of(path)
    if not found:
        raise DataError(f"{path}: the ending does not tell the format; set corpus.format to text, jsonl or parquet.")
    return found


def _looks_like_path(entry: str) -> bool:
    return bool(Path(entry).suffix) or entry.startswith((".", "/", "~")) or entry.count("/") > 1


def read_documents(source: str, file_format: str, config: CorpusConfig) -> Iterator[Document]:
    """Yields the documents of one file or data set that have any text.

    Args:
      source: From ``expand_inputs``.
      file_format: The same.
      config: What a document and a sentence are.

    Raises:
      DataError: The file can not be read, is damaged, binary or not in its encoding, or lacks the column; names file and line.
    """
    events = _text_events(Path(source), config) if file_format == "text" else _row_events(source, file_format, config)
    sentences: list[str] = []
    size, begin = 0, ""
    for where, found, ends in events:
        for sentence in _bounded_sentences(found, config.max_document_characters):
            if size + len(sentence) > config.max_document_characters:
                yield Document(tuple(sentences), f"{source}{begin}")
                sentences, size = [], 0
            begin = begin if sentences else where
            sentences.append(sentence)
            size += len(sentence)
        if ends and sentences:
            yield Document(tuple(sentences), f"{source}{begin}")
            sentences, size = [], 0
    if sentences:
        yield Document(tuple(sentences), f"{source}{begin}")


_Event = tuple[str, list[str], bool]
"""Place, sentences of a paragraph, and whether the document ends with it."""


def _bounded_sentences(sentences: Iterable[str], most: int) -> Iterator[str]:
    """Yields sentences, cut at blanks where they are longer than a document may be."""
    for sentence in sentences:
        rest = sentence
        while len(rest) > most:
            cut = rest.rfind(" ", most // 2, most) + 1 or most
            yield rest[:cut].strip()
            rest = rest[cut:].strip()
        if rest:
            yield rest


def _sentences_of(lines: list[str], config: CorpusConfig) -> list[str]:
    if config.sentence == "line":
        return [sentence for line in lines if (sentence := " ".join(line.split()))]
    return split_sentences(" ".join(lines))


def _text_events(path: Path, config: CorpusConfig) -> Iterator[_Event]:
    lines: list[str] = []
    first, size = 0, 0
    for number, line in _body(path, _numbered_parts(path, config), config):
        blank = not line.strip()
        if not blank:
            first = number if not lines else first
            lines.append(line)
            size += len(line)
        if lines and (blank or config.document == "line" or size > config.max_document_characters):
            yield f", line {first}", _sentences_of(lines, config), config.document != "file"
            lines, size = [], 0
    if lines:
        yield f", line {first}", _sentences_of(lines, config), True


def _body(path: Path, lines: Iterator[tuple[int, str]], config: CorpusConfig) -> Iterator[tuple[int, str]]:
    """Yields the lines between start and end pattern."""
    if config.start_pattern:
        start = re.compile(config.start_pattern)
        if not any(start.search(line) for _, line in lines):
            raise DataError(
                f"{path}: no line fits corpus.start_pattern {config.start_pattern!r}, so nothing would be read."
            )
    end = re.compile(config.end_pattern) if config.end_pattern else None
    for number, line in lines:
        if end is not None and end.search(line):
            return
        yield number, line


def _numbered_parts(path: Path, config: CorpusConfig) -> Iterator[tuple[int, str]]:
    """Yields the lines of a file with their numbers; a line that is longer than a document may be comes in parts."""
    decoder = codecs.getincrementaldecoder(config.encoding)()
    number, rest = 1, ""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            while True:
                block = file.read(_BLOCK_BYTES)
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, in or after line {number}: the byte 0x{error.object[error.start]:02x} is not {config.encoding}. Save "
                        "the file as UTF-8, or name its encoding, for example corpus.encoding: latin-1."
                    ) from error
                except UnicodeError as error:
                    raise DataError(
                        f"{path}: the text is not {config.encoding} ({error}); without a byte order mark, name utf-16-le or utf-16-be."
                    ) from error
                if "\0" in text:
                    raise DataError(
                        f"{path}, in or after line {number}: the file holds zero bytes, so it is no text but a binary file, or text in "
                        "UTF-16, for which corpus.encoding must be set."
                    )
                *whole, rest = (rest + text).split("\n")
                for line in whole:
                    yield number, line.removeprefix("\ufeff") if number == 1 else line
                    number += 1
                if not block:
                    break
                if len(rest) > config.max_document_characters:
                    cut = rest.rfind(" ") + 1 or len(rest)
                    yield number, rest[:cut].removeprefix("\ufeff")
                    rest = rest[cut:]
        if rest:
            yield number, rest.removeprefix("\ufeff")
    except DAMAGED_GZIP as error:
        raise damaged_gzip(path, error) from error
    except OSError as error:
        raise DataError(f"{path}: the file can not be read ({error.strerror or error}).") from error


def _row_events(source: str, file_format: str, config: CorpusConfig) -> Iterator[_Event]:
    for where, value in _row_texts(source, file_format, config):
        if not isinstance(value, str):
            raise DataError(f"{source}{where}: {config.text_column!r} holds {shorten(value)}, but must hold text.")
        lines = value.splitlines()
        for place, line in enumerate(lines):
            yield where, _sentences_of([line], config), place == len(lines) - 1


def _row_texts(source: str, file_format: str, config: CorpusConfig) -> Iterator[tuple[str, Any]]:
    if file_format == "jsonl":
        yield from _json_texts(Path(source), config)
        return
    rows = _parquet_texts(Path(source), config) if file_format == "parquet" else _hub_texts(source, config)
    for number, value in enumerate(rows, start=1):
        yield f", row {number}", value


def _json_texts(path: Path, config: CorpusConfig) -> Iterator[tuple[str, Any]]:
    for number, line in numbered_lines(path, config.encoding, "corpus.encoding"):
        if line.strip():
            record = parse_record(path, number, line)
            if config.text_column not in record:
                raise DataError(_no_column(f"{path}, line {number}", config, list(record)))
            yield f", line {number}", record[config.text_column]


def _parquet_texts(path: Path, config: CorpusConfig) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        packed = path.suffix.lower() == ".gz"
        with pyarrow.parquet.ParquetFile(_unpacked(path) if packed else path) as file:
            names = file.schema_arrow.names
            if config.text_column not in names:
                raise DataError(_no_column(str(path), config, names))
            for batch in file.iter_batches(batch_size=256, columns=[config.text_column]):
                yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: the file is no readable Parquet ({error}).") from error


def _unpacked(path: Path) -> Any:
    """Returns the content of a gzip file: Parquet is read from its end, which a packed file has not at hand."""
    import pyarrow

    try:
        with gzip.open(path) as file:
            return pyarrow.BufferReader(file.read())
    except DAMAGED_GZIP as error:
        raise damaged_gzip(path, error) from error


def _hub_texts(source: str, config: CorpusConfig) -> Iterator[Any]:
    import datasets

    try:
        rows = datasets.load_dataset(source, config.name or None, split=config.split, streaming=True)
        for row in rows:
            if config.text_column not in row:
                raise DataError(_no_column(source, config, list(row)))
            yield row[config.text_column]
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"The data set {source!r} can not be read from the hub ({error}). Check the id, corpus.name and corpus.split; for a "
            "local file, check the path."
        ) from error


def _no_column(where: str, config: CorpusConfig, names: list[str]) -> str:
    return (
        f"{where}: there is no column {config.text_column!r} but {', '.join(names)}.{nearest(config.text_column, names)} Set "
        "corpus.text_column."
    )
