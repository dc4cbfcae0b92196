"""What columns a source has, before any are read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxbert.config import DataConfig
from flaxbert.data.readers import first_record_keys
from flaxbert.data.sources import as_list, guess_format, load_datasets_folder, load_hub
from flaxbert.data.tables import Table
from flaxbert.errors import DataError


def open_source(source: object, config: DataConfig, split: str) -> object:
    """Returns a source that is a folder of ``datasets`` or a hub id as a loaded data set, others as they are.

    Args:
      source: A path, a hub id, or an object.
      config: Format and configuration name.
      split: Split of a hub data set or of a folder that holds several.

    Raises:
      DataError: There is no such source.
    """
    if isinstance(source, str | os.PathLike):
        file_format = guess_format(str(source), config.format)
        if file_format == "hub":
            return load_hub(str(source), config, split)
        if file_format == "datasets":
            source = load_datasets_folder(Path(source))
    if isinstance(source, Mapping) and source and all(hasattr(value, "column_names") for value in source.values()):
        if split not in source:
            raise DataError(f"{split} examples: there is no split {split!r}; there are {', '.join(source)}.")
        return source[split]
    return source


def column_names(source: Any, config: DataConfig) -> list[str]:
    """Returns the names of the columns of a source; empty where it does not tell.

    Args:
      source: From ``open_source``.
      config: Format, delimiter, encoding.

    Raises:
      DataError: A file is not there or is malformed.
    """
    if isinstance(source, str | os.PathLike):
        file_format = guess_format(str(source), config.format)
        if file_format == "parquet":
            import pyarrow.parquet

            return list(pyarrow.parquet.read_schema(source).names) if Path(source).is_file() else []
        return first_record_keys(Path(source), file_format, config) if Path(source).is_file() else []
    if isinstance(source, Table):
        return list(source.columns)
    if hasattr(source, "column_names"):
        return list(source.column_names)
    if hasattr(source, "columns"):
        return [str(name) for name in source.columns]
    if isinstance(source, Mapping):
        return [str(name) for name in source]
    rows = as_list(source)
    return [str(name) for name in rows[0]] if rows and isinstance(rows[0], Mapping) else []
