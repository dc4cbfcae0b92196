"""Readers of text files: CSV, TSV, JSON lines, and lines taken apart by a pattern. Every error names file and line."""

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import re
import sys
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxbert.config import DataConfig
from flaxbert.data.tables import Table, find_columns, shorten
from flaxbert.errors import ConfigError, DataError, nearest

Line = tuple[int, str]


DAMAGED_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)
"""What Python raises where a gzip file is cut off or damaged."""


def read_text_file(path: Path, file_format: str, wanted: Sequence[str], config: DataConfig, limit: int = 0) -> Table:
    """Reads columns of a text file.

    Args:
      path: The file; gzip where its name ends in ``.gz``.
      file_format: csv, tsv, jsonl or lines.
      wanted: Names or 0-based positions of the columns.
      config: Header, delimiter, quoting, line pattern and encoding.
      limit: Most rows to read, in file order; 0 reads all.

    Returns:
      The columns, with the line of each row.

    Raises:
      DataError: The file is missing, damaged, not in its encoding, or a record is malformed.
    """
    with contextlib.closing(numbered_lines(path, config.encoding)) as lines:
        return _read_records(path, file_format, lines, wanted, config, limit)


def text_file_chunks(
    path: Path, file_format: str, wanted: Sequence[str], config: DataConfig, num_rows: int
) -> Iterator[Table]:
    """Yields the columns of a text file some rows at a time, in memory that does not depend on its size.

    Args:
      path: The file; gzip where its name ends in ``.gz``.
      file_format: csv, tsv, jsonl or lines.
      wanted: Names or 0-based positions of the columns.
      config: Header, delimiter, quoting, line pattern and encoding.
      num_rows: Rows of a chunk.

    Raises:
      DataError: As ``read_text_file``, once the place is reached.
    """
    with contextlib.closing(numbered_lines(path, config.encoding)) as lines:
        if file_format in ("jsonl", "lines"):
            filled = ((number, line) for number, line in lines if line.strip())
            while chunk := list(itertools.islice(filled, num_rows)):
                yield _read_records(path, file_format, iter(chunk), wanted, config, 0)
            return
        records, positions, num_fields = _open_fields(path, _records(path, file_format, lines, config), wanted, config)
        while chunk := list(itertools.islice(records, num_rows)):
            yield _collect_fields(path, iter(chunk), positions, num_fields, wanted, config, 0)


def _records(
    path: Path, file_format: str, lines: Iterator[Line], config: DataConfig
) -> Iterator[tuple[int, list[str]]]:
    delimiter = config.delimiter or ("\t" if file_format == "tsv" else ",")
    if not config.quoting:
        return ((number, line.split(delimiter)) for number, line in lines if line)
    return _quoted_records(path, lines, delimiter)


def _read_records(
    path: Path, file_format: str, lines: Iterator[Line], wanted: Sequence[str], config: DataConfig, limit: int
) -> Table:
    if file_format == "jsonl":
        return _read_json_lines(path, lines, wanted, limit)
    if file_format == "lines":
        return _read_pattern_lines(path, lines, wanted, config.line_pattern, limit)
    records, positions, num_fields = _open_fields(path, _records(path, file_format, lines, config), wanted, config)
    return _collect_fields(path, records, positions, num_fields, wanted, config, limit)


def damaged_gzip(path: Path, error: Exception) -> DataError:
    """Returns the error of a gzip file that can not be unpacked.

    Args:
      path: The file.
      error: One of ``DAMAGED_GZIP``.
    """
    return DataError(f"{path}: the gzip file is damaged or cut off ({error}); copy or pack it again.")


def unreadable(path: str | Path, error: OSError) -> DataError:
    """Returns the error of a file that the system does not read.

    Args:
      path: The file.
      error: What the system says.
    """
    return DataError(f"{path}: the file can not be read ({error.strerror or error}).")


def range_name(path: str | Path, byte_range: tuple[int, int] | None) -> str:
    """Returns how a part of a file is called in messages.

    Args:
      path: The file.
      byte_range: As for ``numbered_lines``.
    """
    return f"{path} from byte {byte_range[0]:,} on" if byte_range and byte_range[0] else str(path)


def numbered_lines(
    path: Path,
    encoding: str = "utf-8",
    option: str = "data.encoding",
    byte_range: tuple[int, int] | None = None,
) -> Generator[Line, None, None]:
    """Yields the lines of a text file with their numbers from 1, without line ends; a byte order mark is dropped.

    Only a line feed ends a line, so that other separators of Unicode can stand inside a text.

    Args:
      path: The file; gzip where its name ends in ``.gz``.
      encoding: Its text encoding.
      option: The option that names the encoding, for errors.
      byte_range: First byte of the lines that are read, and the one after the last; lines are then counted from the first. None reads all.

    Raises:
      ConfigError: The encoding is not known.
      DataError: The file can not be read, or bytes are not in the encoding.
    """
    try:
        codec = codecs.lookup(encoding).name
    except LookupError as error:
        known = ("utf-8", "latin-1", "utf-16", "cp1252", "gb18030", "big5", "shift_jis", "euc_kr")
        raise ConfigError(f"{option} is {encoding!r}, which Python does not know.{nearest(encoding, known)}") from error
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            if codec.startswith(("utf-16", "utf-32")):
                yield from _wide_lines(path, file, codec, option)
            else:
                start, stop = byte_range or (0, sys.maxsize)
                file.seek(start)
                lines = _until(file, stop - start)
                yield from _byte_lines(range_name(path, byte_range), lines, codec, option, has_mark=not start)
    except DAMAGED_GZIP as error:
        raise damaged_gzip(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _until(file: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yields the lines that begin in the next bytes of a file."""
    if size > 0:
        for line in file:
            yield line
            size -= len(line)
            if size <= 0:
                return


def _byte_lines(path: str, file: Iterable[bytes], codec: str, option: str, *, has_mark: bool) -> Iterator[Line]:
    number = 0
    try:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(codecs.BOM_UTF8) if has_mark and number == 1 and codec.startswith("utf-8") else raw
            yield number, line.decode(codec).removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: the byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of the line is "
            f"not {codec}. Save the file as UTF-8, or name its encoding, for example {option}: latin-1."
        ) from error


def _wide_lines(path: Path, file: Any, codec: str, option: str) -> Iterator[Line]:
    number = 0
    wrapper = io.TextIOWrapper(file, encoding=codec, newline="\n")
    try:
        for number, line in enumerate(wrapper, start=1):
            yield number, line.removesuffix("\n").removesuffix("\r")
    except UnicodeError as error:
        raise DataError(
            f"{path}, after line {number}: the text is not {codec} ({error}). Save the file as UTF-8, or set {option}."
        ) from error
    finally:
        wrapper.detach()


def _quoted_records(path: Path, lines: Iterator[Line], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line + "\n" for _, line in lines), delimiter=delimiter, strict=True)
    start = 1
    while True:
        usual_limit = csv.field_size_limit(sys.maxsize)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = "a quoted field has no end" if "unexpected end" in str(error) else str(error)
            raise DataError(
                f"{path}, record starting at line {start}: {reason}. Quotes inside a quoted field are written twice; "
                "if the file does not quote fields, set data.quoting: false."
            ) from error
        finally:
            csv.field_size_limit(usual_limit)
        if fields:
            yield start, fields
        start = reader.line_num + 1


def _open_fields(
    path: Path, records: Iterator[tuple[int, list[str]]], wanted: Sequence[str], config: DataConfig
) -> tuple[Iterator[tuple[int, list[str]]], list[int], int]:
    """Returns the records after the header, the positions of the columns, and the fields of a record."""
    first = next(records, None)
    if first is None:
        raise DataError(f"{path}: the file holds no records.")
    num_fields = len(first[1])
    names = [name.strip() for name in first[1]] if config.header else [str(position) for position in range(num_fields)]
    positions = find_columns(wanted, names, f"{path}, line {first[0]}", named=config.header)
    if not config.header:
        records = itertools.chain([first], records)
    return records, positions, num_fields


def _collect_fields(
    path: Path,
    records: Iterator[tuple[int, list[str]]],
    positions: Sequence[int],
    num_fields: int,
    wanted: Sequence[str],
    config: DataConfig,
    limit: int,
) -> Table:
    columns: list[list[str]] = [[] for _ in wanted]
    lines: list[int] = []
    for number, fields in itertools.islice(records, limit or None):
        if len(fields) != num_fields and (len(fields) < num_fields or not config.allow_extra_fields):
            raise DataError(_wrong_number_of_fields(path, number, fields, num_fields, config))
        for column, position in zip(columns, positions, strict=True):
            column.append(fields[position])
        lines.append(number)
    return Table(str(path), dict(zip(wanted, columns, strict=True)), lines)


def _wrong_number_of_fields(path: Path, number: int, fields: list[str], expected: int, config: DataConfig) -> str:
    base = "the header has" if config.header else "the first line has"
    quoting = (
        "Put fields that hold the delimiter in double quotes"
        if config.quoting
        else "If fields are quoted, set data.quoting: true"
    )
    extra = "" if len(fields) < expected else " To ignore further fields, set data.allow_extra_fields: true."
    return (
        f"{path}, line {number}: {len(fields)} fields, but {base} {expected}; the line starts with "
        f"{shorten(fields[0])}. {quoting}, or set data.delimiter if the separator is another.{extra}"
    )


def _read_json_lines(path: Path, lines: Iterator[Line], wanted: Sequence[str], limit: int) -> Table:
    columns: list[list[Any]] = [[] for _ in wanted]
    numbers: list[int] = []
    records = ((number, line) for number, line in lines if line.strip())
    for number, line in itertools.islice(records, limit or None):
        record = parse_record(path, number, line)
        for column, name in zip(columns, wanted, strict=True):
            if name not in record:
                find_columns([name], list(record), f"{path}, line {number}")
                raise DataError(
                    f"{path}, line {number}: JSON records have names, not positions: there is no key {name!r}."
                )
            column.append(record[name])
        numbers.append(number)
    if not numbers:
        raise DataError(f"{path}: the file holds no records.")
    return Table(str(path), dict(zip(wanted, columns, strict=True)), numbers)


def first_record_keys(path: Path, file_format: str, config: DataConfig) -> list[str]:
    """Returns the names of the columns of a text file, as its first record tells them.

    Args:
      path: The file.
      file_format: csv, tsv or jsonl; others have no names.
      config: Header, delimiter, encoding.

    Raises:
      DataError: The first record is malformed.
    """
    with contextlib.closing(numbered_lines(path, config.encoding)) as lines:
        number, line = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if file_format == "jsonl" and line:
        return list(parse_record(path, number, line))
    if file_format in ("csv", "tsv") and config.header:
        delimiter = config.delimiter or ("\t" if file_format == "tsv" else ",")
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    return []


def parse_record(path: str | Path, number: int, line: str) -> dict[str, Any]:
    """Returns the object of a line of JSON.

    Args:
      path: The file, for messages.
      number: Number of the line.
      line: The line.

    Raises:
      DataError: The line is no JSON object.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        if number == 1 and line.strip() in ("[", "{"):
            reason = "the file is one JSON document over several lines, not one JSON object a line"
        else:
            reason = f"the line is no complete JSON object ({error.msg} at column {error.colno})"
        raise DataError(
            f"{path}, line {number}: {reason}; the line starts with {shorten(line)}. Each line must hold one whole object "
            'such as {"text": "…", "label": "…"}; a file that was cut off must be copied again.'
        ) from error
    if not isinstance(record, dict):
        raise DataError(
            f"{path}, line {number}: the line holds {shorten(record)}, a {type(record).__name__}, but must hold an object "
            'such as {"text": "…", "label": "…"}.'
        )
    return record


def _read_pattern_lines(path: Path, lines: Iterator[Line], wanted: Sequence[str], pattern: str, limit: int) -> Table:
    try:
        compiled = re.compile(pattern or "(?P<text>.*)")
    except re.error as error:
        raise ConfigError(f"data.line_pattern {pattern!r} is no regular expression: {error}.") from error
    names = sorted(compiled.groupindex, key=lambda name: compiled.groupindex[name])
    where = f"data.line_pattern {pattern!r}" if pattern else f"{path} (format lines without data.line_pattern)"
    groups = [names[position] for position in find_columns(wanted, names, where)]
    columns: list[list[str]] = [[] for _ in wanted]
    numbers: list[int] = []
    for number, line in itertools.islice(((number, line) for number, line in lines if line), limit or None):
        match = compiled.fullmatch(line)
        if match is None:
            raise DataError(
                f"{path}, line {number}: {shorten(line)} does not match data.line_pattern {pattern!r}. Mend the line, or "
                "the pattern, which must match each whole line."
            )
        for column, group in zip(columns, groups, strict=True):
            column.append(match[group] or "")
        numbers.append(number)
    if not numbers:
        raise DataError(f"{path}: the file holds no records.")
    return Table(str(path), dict(zip(wanted, columns, strict=True)), numbers)
