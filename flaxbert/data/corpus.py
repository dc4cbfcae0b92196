"""Documents of raw text, read one after the other in bounded memory: text files, JSON lines, Parquet, data sets of the hub."""

import codecs
import dataclasses
import gzip
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flaxbert.config import CorpusConfig
from flaxbert.data.inputs import Part, broken_hub, broken_parquet, is_packed, open_hub, open_parquet
from flaxbert.data.readers import DAMAGED_GZIP, damaged_gzip, numbered_lines, parse_record, range_name, unreadable
from flaxbert.data.tables import shorten
from flaxbert.errors import DataError, nearest

_BLOCK_BYTES = 1 << 16

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


def read_documents(part: Part, config: CorpusConfig) -> Iterator[Document]:
    """Yields the documents of a file or data set, or of a part of it, that have any text.

    Args:
      part: From ``expand_inputs`` or ``split_inputs``.
      config: What a document and a sentence are.

    Raises:
      DataError: The file can not be read, is damaged, binary or not in its encoding, or lacks the column; names file and line.
    """
    events = _text_events(part, config) if part.format == "text" else _row_events(part, config)
    sentences: list[str] = []
    size, begin = 0, ""
    for where, found, ends in events:
        for sentence in _bounded_sentences(found, config.max_document_characters):
            if size + len(sentence) > config.max_document_characters:
                yield Document(tuple(sentences), begin)
                sentences, size = [], 0
            begin = begin if sentences else where
            sentences.append(sentence)
            size += len(sentence)
        if ends and sentences:
            yield Document(tuple(sentences), begin)
            sentences, size = [], 0
    if sentences:
        yield Document(tuple(sentences), begin)


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


def _text_events(part: Part, config: CorpusConfig) -> Iterator[_Event]:
    path, lines = Path(part.source), []
    first, size = 0, 0
    span = part.byte_range
    name = range_name(path, span)
    for number, line in _body(path, _numbered_pieces(path, span, config), config):
        blank = not line.strip()
        if not blank:
            first = number if not lines else first
            lines.append(line)
            size += len(line)
        if lines and (blank or config.document == "line" or size > config.max_document_characters):
            yield f"{name}, line {first}", _sentences_of(lines, config), config.document != "file"
            lines, size = [], 0
    if lines:
        yield f"{name}, line {first}", _sentences_of(lines, config), True


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


def _numbered_pieces(path: Path, span: tuple[int, int] | None, config: CorpusConfig) -> Iterator[tuple[int, str]]:
    """Yields the lines of a file or of a range of its bytes with their numbers; one that is longer than a document may be comes in pieces."""
    number, rest, name = 1, "", range_name(path, span)
    start, stop = span or (0, sys.maxsize)
    # Only the beginning of a file has a byte order mark; later the same signs are text.
    mark, encoding = (
        ("", config.encoding.lower().replace("utf-8-sig", "utf-8")) if start else ("\ufeff", config.encoding)
    )
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with gzip.open(path) if is_packed(path) else path.open("rb") as file:
            file.seek(start)
            while True:
                block = file.read(min(_BLOCK_BYTES, stop - start))
                start += len(block)
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{name}, in or after line {number}: the byte 0x{error.object[error.start]:02x} is not {config.encoding}. Save "
                        "the file as UTF-8, or name its encoding, for example corpus.encoding: latin-1."
                    ) from error
                except UnicodeError as error:
                    raise DataError(
                        f"{name}: the text is not {config.encoding} ({error}); without a byte order mark, name utf-16-le or utf-16-be."
                    ) from error
                if "\0" in text:
                    raise DataError(
                        f"{name}, in or after line {number}: the file holds zero bytes, so it is no text but a binary file, or text in "
                        "UTF-16, for which corpus.encoding must be set."
                    )
                *whole, rest = (rest + text).split("\n")
                for line in whole:
                    yield number, line.removeprefix(mark) if number == 1 else line
                    number += 1
                if not block:
                    break
                if len(rest) > config.max_document_characters:
                    cut = rest.rfind(" ") + 1 or len(rest)
                    yield number, rest[:cut].removeprefix(mark) if number == 1 else rest[:cut]
                    rest = rest[cut:]
        if rest:
            yield number, rest.removeprefix(mark) if number == 1 else rest
    except DAMAGED_GZIP as error:
        raise damaged_gzip(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _row_events(part: Part, config: CorpusConfig) -> Iterator[_Event]:
    for where, value in _row_texts(part, config):
        if not isinstance(value, str):
            raise DataError(f"{where}: {config.text_column!r} holds {shorten(value)}, but must hold text.")
        lines = value.splitlines()
        for place, line in enumerate(lines):
            yield where, _sentences_of([line], config), place == len(lines) - 1


def _row_texts(part: Part, config: CorpusConfig) -> Iterator[tuple[str, Any]]:
    if part.format == "jsonl":
        return _json_texts(part, config)
    return _parquet_texts(part, config) if part.format == "parquet" else _hub_texts(part, config)


def _json_texts(part: Part, config: CorpusConfig) -> Iterator[tuple[str, Any]]:
    path, span = Path(part.source), part.byte_range
    name = range_name(path, span)
    for number, line in numbered_lines(path, config.encoding, "corpus.encoding", span):
        if line.strip():
            record = parse_record(name, number, line)
            if config.text_column not in record:
                raise DataError(_no_column(f"{name}, line {number}", config, list(record)))
            yield f"{name}, line {number}", record[config.text_column]


def _parquet_texts(part: Part, config: CorpusConfig) -> Iterator[tuple[str, Any]]:
    import pyarrow

    path = Path(part.source)
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        if config.text_column not in names:
            raise DataError(_no_column(str(path), config, names))
        first, last = part.of(file.metadata.num_row_groups)
        number = sum(file.metadata.row_group(group).num_rows for group in range(first))
        try:
            for batch in file.iter_batches(256, row_groups=list(range(first, last)), columns=[config.text_column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield f"{path}, row {number}", value
        except (pyarrow.ArrowException, OSError) as error:
            raise broken_parquet(path, error) from error


def _hub_texts(part: Part, config: CorpusConfig) -> Iterator[tuple[str, Any]]:
    rows = open_hub(part.source, config, part.count)
    name = part.source
    if part.count > 1:
        rows = rows.shard(part.count, part.number)
        name += f", part {part.number + 1} of {part.count}"
    try:
        for number, row in enumerate(rows, start=1):
            if config.text_column not in row:
                raise DataError(_no_column(f"{name}, row {number}", config, list(row)))
            yield f"{name}, row {number}", row[config.text_column]
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise broken_hub(part.source, error) from error


def _no_column(where: str, config: CorpusConfig, names: list[str]) -> str:
    return (
        f"{where}: there is no column {config.text_column!r} but {', '.join(names)}.{nearest(config.text_column, names)} Set "
        "corpus.text_column."
    )
