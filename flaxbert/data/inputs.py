"""Where raw text comes from: files and data sets by name, and the parts of them that can be read apart from each other."""

import codecs
import dataclasses
import glob
import gzip
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from flaxbert.config import CorpusConfig
from flaxbert.data.readers import DAMAGED_GZIP, damaged_gzip, unreadable
from flaxbert.errors import DataError, nearest

_ENDINGS = {".txt": "text", ".text": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

_PARTS_PER_SHARD = 4
"""Parts that large files are cut into for each shard, so that shards are of nearly one size."""

_LEAST_PART_BYTES = 1 << 20

_BLOCK_BYTES = 1 << 16

_LINE_FEED_ENCODINGS = ("utf-8", "ascii", "iso8859", "cp125", "koi8", "gb", "big5", "shift_jis", "euc_")
"""Beginnings of the names of encodings in which the byte 10 is a line feed wherever it stands."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a file or data set that is read for itself, or all of it.

    Attributes:
      source: Path or id.
      format: text, jsonl, parquet or hub.
      number: Number of the part.
      count: Parts of the source: Parquet is cut by row groups, data sets by their files, and each has its own number of these.
      byte_range: Of files of text, first byte of the part and the one after its last, both before a line or at the end of the file; None for all.
      shared: Whether the part is much larger than others, so that its documents are dealt out one by one.
    """

    source: str
    format: str
    number: int = 0
    count: int = 1
    byte_range: tuple[int, int] | None = None
    shared: bool = False

    def of(self, total: int) -> tuple[int, int]:
        """Returns where this part begins and ends if it is one of ``count`` equal ones.

        Args:
          total: Size of the whole.
        """
        return total * self.number // self.count, total * (self.number + 1) // self.count


def cut_text(path: Path, wanted: int, between_paragraphs: bool) -> list[tuple[int, int]]:
    """Returns ranges of bytes that together are a file of text, each from one line to another.

    Args:
      path: The file.
      wanted: Most ranges; where lines or paragraphs are long, there are fewer.
      between_paragraphs: Cut only after blank lines.

    Raises:
      DataError: The file can not be read.
    """
    try:
        with path.open("rb") as file:
            size, cuts = file.seek(0, 2), [0]
            for number in range(1, wanted):
                if cuts[-1] < size * number // wanted:  # else one paragraph reaches beyond
                    cuts.append(_line_start(file, size * number // wanted, between_paragraphs))
    except OSError as error:
        raise unreadable(path, error) from error
    return list(itertools.pairwise([cut for cut in cuts if cut < size or not cut] + [size]))


def _line_start(file: BinaryIO, offset: int, after_blank: bool) -> int:
    """Returns the place of the first line that begins at or after a place, in bounded memory."""
    if offset == 0:
        return 0
    file.seek(offset - 1)
    _skip_line(file)
    while after_blank and _skip_line(file):
        pass
    return file.tell()


def _skip_line(file: BinaryIO) -> bool:
    """Moves behind a line; returns whether it holds more than blanks."""
    text = False
    while piece := file.readline(_BLOCK_BYTES):
        text = text or bool(piece.strip())
        if piece.endswith(b"\n"):
            break
    return text


def expand_inputs(config: CorpusConfig) -> list[Part]:
    """Returns every file or id, each as one part, files in the order of their names.

    Args:
      config: Inputs and, perhaps, their format.

    Raises:
      DataError: There is no input, a pattern fits no file, or a file's name does not tell its format.
    """
    found = [Part(*pair) for entry in config.inputs for pair in _expand(entry, config)]
    if not found:
        raise DataError("corpus.inputs names no text; give files, folders, patterns or ids of data sets.")
    return found


def _expand(entry: str, config: CorpusConfig) -> Iterator[tuple[str, str]]:
    path = Path(entry).expanduser()
    if config.format == "hub":
        yield entry, "hub"
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _format_of(file))
        if not files:
            raise DataError(
                f"{path}: the folder holds no file that ends in {', '.join(sorted(_ENDINGS))} (or these with .gz)."
            )
        yield from ((str(file), config.format or _format_of(file)) for file in files)
    elif path.is_file():
        yield str(path), config.format or _require_format(path)
    elif glob.has_magic(entry):
        names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  patterns can be absolute
        files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            raise DataError(f"corpus.inputs: no file fits {entry!r} (looked from {Path.cwd()}).")
        yield from ((str(file), config.format or _require_format(file)) for file in files)
    elif _looks_like_path(entry):
        known = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{entry}: there is no such file or folder.{nearest(path.name, known)}")
    else:
        yield entry, "hub"


def _format_of(path: Path) -> str:
    return _ENDINGS.get((path.with_suffix("") if is_packed(path) else path).suffix.lower(), "")


def is_packed(path: Path) -> bool:
    """Returns whether a file is one of gzip, by its name.

    Args:
      path: The file.
    """
    return path.suffix.lower() == ".gz"


def _require_format(path: Path) -> str:
    found = _format_of(path)
    if not found:
        raise DataError(f"{path}: the ending does not tell the format; set corpus.format to text, jsonl or parquet.")
    return found


def _looks_like_path(entry: str) -> bool:
    return bool(Path(entry).suffix) or entry.startswith((".", "/", "~")) or entry.count("/") > 1


def split_inputs(inputs: Sequence[Part], config: CorpusConfig, num_shards: int) -> tuple[Part, ...]:
    """Cuts large inputs into parts, so that many workers can read them, each a part of its own.

    The documents of the parts one after the other are those of the inputs. Packed files, files with a head or tail that is left out and files
    that are one document stay whole.

    Args:
      inputs: From ``expand_inputs``.
      config: What a document is.
      num_shards: Shards that the parts are dealt out to; what they are depends on this number, but not on that of the workers.

    Returns:
      The parts.

    Raises:
      DataError: A file or data set can not be read.
    """
    sizes = [0 if part.format == "hub" else Path(part.source).stat().st_size for part in inputs]
    bytes_of_part = max(_LEAST_PART_BYTES, sum(sizes) // (_PARTS_PER_SHARD * num_shards))
    found: list[Part] = []
    for part, size in zip(inputs, sizes, strict=True):
        wanted = num_shards if part.format == "hub" else -(-size // bytes_of_part)
        found += _split(part, config, wanted)
    return tuple(found)


def _split(part: Part, config: CorpusConfig, wanted: int) -> list[Part]:
    """Returns the parts of an input. Where there are fewer than half of those wanted, each is large, and its documents are shared."""
    count = max(1, min(wanted, _most_parts(part, config, wanted)))
    ranges: list[tuple[int, int] | None] = [None] * count
    if count > 1 and part.format in ("text", "jsonl"):
        paragraphs = part.format == "text" and config.document == "blank_line"
        ranges = list(cut_text(Path(part.source), count, paragraphs))
    shared = 2 * len(ranges) <= wanted
    return [
        dataclasses.replace(part, number=number, count=len(ranges), byte_range=found, shared=shared)
        for number, found in enumerate(ranges)
    ]


def _most_parts(part: Part, config: CorpusConfig, wanted: int) -> int:
    """Returns how many parts an input can be cut into."""
    path = Path(part.source)
    if wanted <= 1 or (part.format != "hub" and is_packed(path)):
        return 1
    if part.format == "hub":
        return open_hub(part.source, config, wanted).num_shards
    if part.format == "parquet":
        with open_parquet(path) as file:
            return file.metadata.num_row_groups
    whole = config.document == "file" or config.start_pattern or config.end_pattern
    if part.format == "text" and whole:
        return 1
    return wanted if codecs.lookup(config.encoding).name.startswith(_LINE_FEED_ENCODINGS) else 1


def open_parquet(path: Path) -> Any:
    """Opens a Parquet file.

    Args:
      path: The file; gzip where its name ends in ``.gz``, which is then unpacked in memory, since Parquet is read from its end.

    Returns:
      A ``pyarrow.parquet.ParquetFile``.

    Raises:
      DataError: The file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        if not is_packed(path):
            return pyarrow.parquet.ParquetFile(path)
        with gzip.open(path) as file:
            return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(file.read()))
    except DAMAGED_GZIP as error:
        raise damaged_gzip(path, error) from error
    except (pyarrow.ArrowException, OSError) as error:
        raise broken_parquet(path, error) from error


def broken_parquet(path: Path, error: Exception) -> DataError:
    """Returns the error of a Parquet file that can not be read.

    Args:
      path: The file.
      error: What Arrow says.
    """
    return DataError(f"{path}: the file is no readable Parquet ({error}).")


def open_hub(source: str, config: CorpusConfig, least: int = 1) -> Any:
    """Opens a data set of the hub as a stream.

    Args:
      source: Its id.
      config: Configuration and split.
      least: Where it has fewer files than this, row groups of Parquet count as files.

    Returns:
      An ``IterableDataset``.

    Raises:
      DataError: The hub can not be reached, or has no such data set.
    """
    import datasets

    try:
        rows = datasets.load_dataset(source, config.name or None, split=config.split, streaming=True)
        return rows if rows.num_shards >= least else rows.reshard()
    except (OSError, ValueError, RuntimeError) as error:
        raise broken_hub(source, error) from error


def broken_hub(source: str, error: Exception) -> DataError:
    """Returns the error of a data set that can not be read.

    Args:
      source: Its id.
      error: What ``datasets`` says.
    """
    return DataError(
        f"The data set {source!r} can not be read from the hub ({error}). Check the id, corpus.name and corpus.split; for a "
        "local file, check the path."
    )
