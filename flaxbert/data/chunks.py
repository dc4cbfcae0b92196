"""Files that are read some rows at a time, in memory that does not depend on their size."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from flaxbert.config import DataConfig
from flaxbert.data.readers import text_file_chunks
from flaxbert.data.sources import from_columns, guess_format, missing_file
from flaxbert.data.tables import Table, find_columns
from flaxbert.errors import DataError


def table_chunks(
    path: Path, wanted: Sequence[str], config: DataConfig, num_rows: int, *, skip_chunks: int = 0
) -> Iterator[Table]:
    """Yields the named columns of a file some rows at a time, in memory that does not depend on its size.

    Args:
      path: A CSV, TSV, JSONL or Parquet file, or one of lines.
      wanted: Names or 0-based positions of the columns.
      config: Format, delimiter, encoding.
      num_rows: Rows of a chunk.
      skip_chunks: First chunks that are left out.

    Raises:
      DataError: The file is not there or malformed; a mistake further on is found once it is reached.
    """
    file_format = guess_format(str(path), config.format)
    if not path.is_file():
        raise DataError(missing_file(path))
    chunks = (
        _parquet_chunks(path, wanted, num_rows)
        if file_format == "parquet"
        else text_file_chunks(path, file_format, wanted, config, num_rows)
    )
    yield from itertools.islice(chunks, skip_chunks, None)


def _parquet_chunks(path: Path, wanted: Sequence[str], num_rows: int) -> Iterator[Table]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            chosen = [names[position] for position in find_columns(wanted, names, str(path))]
            first = 0
            for batch in file.iter_batches(num_rows, columns=list(dict.fromkeys(chosen))):
                table = pyarrow.Table.from_batches([batch])
                yield from_columns(table, wanted, chosen, f"{path} from row {first:,} on", 0)
                first += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: the file is no readable Parquet file ({error}); write or copy it again.") from error


def count_rows(path: Path, config: DataConfig) -> int:
    """Returns the rows of a file where that can be known without reading it, else 0.

    Args:
      path: The file.
      config: May name its format.
    """
    if guess_format(str(path), config.format) != "parquet":
        return 0
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)
