"""Where examples come from: files, folders written by ``datasets``, hub ids, and objects handed in by a program."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxbert.config import DataConfig
from flaxbert.data.readers import read_text_file
from flaxbert.data.tables import Table, find_columns, shorten
from flaxbert.errors import DataError, nearest

_FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".txt": "lines", ".parquet": "parquet",
}  # fmt: skip


def read_table(
    source: object, wanted: Sequence[str], config: DataConfig, *, split: str = "train", limit: int = 0
) -> Table:
    """Reads the named columns of a source.

    Args:
      source: A path, a hub id, or an object: list of texts, of tuples (text, label) or (text, second text, label), or of
        dictionaries; dictionary of columns; NumPy array; pandas Series or DataFrame; ``datasets.Dataset``; Table.
      wanted: Names or 0-based positions of the columns.
      config: Format, delimiter, encoding, configuration name of a hub data set.
      split: Split of a hub data set or of a folder that holds several.
      limit: Most rows to read, in order; 0 reads all.

    Returns:
      The columns by the names in ``wanted``.

    Raises:
      DataError: The source is not there, or malformed; the message names file and line and says how to mend it.

    Example:
      >>> read_table([("good", 1)], ["text", "label"], DataConfig()).columns["text"]
      ['good']
    """
    if not isinstance(source, str | os.PathLike):
        return _read_object(source, wanted, f"{split} examples", limit, split)
    file_format = guess_format(str(source), config.format)
    path = Path(source)
    if file_format == "hub":
        where = f"{source}{'/' + config.name if config.name else ''}, split {split}"
        return _read_dataset(load_hub(str(source), config, split), wanted, where, limit)
    if not path.exists():
        raise DataError(missing_file(path))
    if file_format == "datasets":
        return _read_object(load_datasets_folder(path), wanted, str(path), limit, split)
    if path.is_dir():
        raise DataError(f"{path} is a folder, but data.format {file_format} needs a file; name the file inside it.")
    if file_format == "parquet":
        return _read_parquet(path, wanted, limit)
    return read_text_file(path, file_format, wanted, config, limit)


def is_table_file(path: str) -> bool:
    """Returns whether a file is a table by its ending, perhaps compressed by gzip, and not lines of text.

    Args:
      path: Path of the file.
    """
    name = Path(path.lower().removesuffix(".gz"))
    return _FORMATS.get(name.suffix, "lines") != "lines"


def guess_format(source: str, file_format: str = "") -> str:
    """Returns the format of a path or hub id: as told, or from the name.

    Args:
      source: Path or hub id.
      file_format: The format where the configuration gives one, else empty.

    Raises:
      DataError: The name does not tell, or nothing of that name is there.

    Example:
      >>> guess_format("reviews.tsv.gz")
      'tsv'
    """
    if file_format:
        return file_format
    path = Path(source)
    suffix = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    if path.is_dir():
        return "datasets"
    if suffix.lower() in _FORMATS:
        return _FORMATS[suffix.lower()]
    if path.exists():
        raise DataError(
            f"{source}: the ending {suffix!r} does not tell the format; set data.format to csv, tsv, jsonl, lines or parquet."
        )
    looks_like_path = suffix or source.startswith((".", "/", "~")) or source.count("/") > 1 or not source
    if looks_like_path or (Path(source).parent.is_dir() and "/" in source):
        raise DataError(missing_file(path))
    return "hub"


def missing_file(path: Path) -> str:
    """Returns the message for a file that is not there, with the nearest of those that are.

    Args:
      path: The file.
    """
    folder = path.parent
    if not folder.is_dir():
        return (
            f"{path}: there is no such file, and no folder {folder} (looked from {Path.cwd()}). Give the path with "
            "data.train, for example --data.train /path/to/train.tsv."
        )
    hint = nearest(path.name, sorted(entry.name for entry in folder.iterdir()))
    return (
        f"{path}: there is no such file in {folder}.{hint} Give the path with data.train, data.validation or data.test."
    )


def _read_parquet(path: Path, wanted: Sequence[str], limit: int) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            chosen = [names[position] for position in find_columns(wanted, names, str(path))]
            table = file.read(columns=list(dict.fromkeys(chosen)))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: the file is no readable Parquet file ({error}); write or copy it again.") from error
    return from_columns(table, wanted, chosen, str(path), limit)


def from_columns(table: Any, wanted: Sequence[str], chosen: Sequence[str], name: str, limit: int) -> Table:
    """Returns columns of Arrow as they were asked for.

    Args:
      table: A ``pyarrow.Table``.
      wanted: What they are asked for by.
      chosen: What they are called in the table.
      name: What was read, for messages.
      limit: Most rows; 0 for all.

    Raises:
      DataError: There are no rows.
    """
    table = table.slice(0, limit) if limit else table
    if table.num_rows == 0:
        raise DataError(f"{name}: there are no rows.")
    return Table(name, {want: table.column(column).to_pylist() for want, column in zip(wanted, chosen, strict=True)})


def load_datasets_folder(path: Path) -> Any:
    """Loads a folder that ``datasets.save_to_disk`` wrote.

    Args:
      path: The folder.

    Returns:
      The data set, or a dictionary of them.

    Raises:
      DataError: The folder is none, or damaged.
    """
    import datasets

    if not ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        raise DataError(
            f"{path} is a folder, but not one that datasets.save_to_disk wrote (no dataset_dict.json or state.json). Name a "
            "file inside it, or save the data set again."
        )
    try:
        return datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: the folder can not be read as a data set ({error}); save it again.") from error


def load_hub(name: str, config: DataConfig, split: str) -> Any:
    """Loads one split of a data set of the hub.

    Args:
      name: Its id.
      config: Gives the configuration's name.
      split: The split.

    Returns:
      The data set.

    Raises:
      DataError: It can not be loaded.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    where = f"{name}{'/' + config.name if config.name else ''}, split {split}"
    try:
        return datasets.load_dataset(name, config.name or None, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"{where}: neither a file or folder here nor a data set that could be loaded from the hub "
            f"({type(error).__name__}: {error}). Check the path or id, data.name and the split, and the network; a data "
            "set that was saved with save_to_disk can be named by its folder."
        ) from error


def _read_dataset(dataset: Any, wanted: Sequence[str], name: str, limit: int) -> Table:
    names = list(dataset.column_names)
    chosen = [names[position] for position in find_columns(wanted, names, name)]
    if limit and limit < len(dataset):
        dataset = dataset.select(range(limit))
    features = dataset.features
    table = dataset.select_columns(list(dict.fromkeys(chosen))).with_format("arrow")[:]
    read = from_columns(table, wanted, chosen, name, limit)
    class_names = {}
    for want, column in zip(wanted, chosen, strict=True):
        feature = getattr(features[column], "feature", features[column])
        if getattr(feature, "names", None) is not None:
            class_names[want] = tuple(feature.names)
    return Table(name, read.columns, None, class_names)


def _read_object(source: Any, wanted: Sequence[str], name: str, limit: int, split: str) -> Table:
    if isinstance(source, Table):
        names = list(source.columns)
        chosen = [names[position] for position in find_columns(wanted, names, source.name)]
        columns = {want: list(source.columns[key])[: limit or None] for want, key in zip(wanted, chosen, strict=True)}
        classes = {
            want: source.class_names[key] for want, key in zip(wanted, chosen, strict=True) if key in source.class_names
        }
        return Table(source.name, columns, source.lines, classes)
    if hasattr(source, "column_names") and hasattr(source, "features"):
        return _read_dataset(source, wanted, name, limit)
    if isinstance(source, Mapping) and source and all(hasattr(value, "column_names") for value in source.values()):
        if split not in source:
            raise DataError(
                f"{name}: there is no split {split!r}; there are {', '.join(source)}.{nearest(split, source)}"
            )
        return _read_dataset(source[split], wanted, f"{name}, split {split}", limit)
    names, column = _open_columns(source, wanted, name)
    positions = find_columns(wanted, names, name)
    columns = {want: list(column(position))[: limit or None] for want, position in zip(wanted, positions, strict=True)}
    lengths = {want: len(values) for want, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{name}: the columns differ in length: {', '.join(f'{k} {v}' for k, v in lengths.items())}.")
    if not max(lengths.values(), default=0):
        raise DataError(f"{name}: there are no rows.")
    return Table(name, columns)


def _open_columns(source: Any, wanted: Sequence[str], name: str) -> tuple[list[str], Callable[[int], Sequence[Any]]]:
    """Returns the column names of an object, and a function from a position to that column's values."""
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        return [str(column) for column in source.columns], lambda position: source.iloc[:, position].tolist()
    if isinstance(source, Mapping):
        keys = list(source)
        return [str(key) for key in keys], lambda position: as_list(source[keys[position]])
    rows = as_list(source)
    if not rows:
        raise DataError(f"{name}: there are no rows.")
    first = rows[0]
    if isinstance(first, Mapping):
        return _open_records(rows, wanted, name)
    if isinstance(first, str):
        return list(wanted[:1]), lambda position: rows
    if not isinstance(first, Sequence | np.ndarray):
        raise DataError(
            f"{name}: row 0 is {shorten(first)}, a {type(first).__name__}; hand in texts, tuples (text, label), "
            "dictionaries, or a table of pandas or datasets."
        )
    for number, row in enumerate(rows):
        if isinstance(row, str) or len(row) != len(first):
            raise DataError(f"{name}, row {number}: {shorten(row)} does not have {len(first)} fields as row 0 has.")
    columns = list(zip(*rows, strict=True))
    names = list(wanted) if len(first) == len(wanted) else [str(position) for position in range(len(first))]
    return names, lambda position: columns[position]


def _open_records(
    rows: Sequence[Any], wanted: Sequence[str], name: str
) -> tuple[list[str], Callable[[int], Sequence[Any]]]:
    keys = list(rows[0])
    needed = [keys[position] for position in find_columns(wanted, [str(key) for key in keys], name)]
    for number, row in enumerate(rows):
        for key in needed:
            if not isinstance(row, Mapping) or key not in row:
                present = list(row) if isinstance(row, Mapping) else []
                raise DataError(
                    f"{name}, row {number}: there is no {key!r} in {shorten(row)}.{nearest(str(key), present)}"
                )
    return [str(key) for key in keys], lambda position: [row[keys[position]] for row in rows]


def as_list(values: Any) -> list[Any]:
    """Returns a list of plain Python values from a list, tuple, NumPy array, pandas Series or datasets column."""
    if isinstance(values, np.ndarray) or (hasattr(values, "tolist") and not isinstance(values, list)):
        return values.tolist()
    return list(values)


_LABEL_COLUMNS = frozenset({"label", "labels", "class", "target", "score"})


def _columns_of_text(names: Sequence[str], read: Callable[[int], Sequence[Any]]) -> list[list[Any]]:
    """Returns the one or two columns of a table that hold its texts."""
    columns = {name: as_list(read(position)) for position, name in enumerate(names)}
    textual = [
        name
        for name, values in columns.items()
        if name.lower() not in _LABEL_COLUMNS and any(isinstance(value, str) for value in values)
    ]
    if "text" in textual:
        textual = [name for name in ("text", "text_pair") if name in textual]
    elif "sentence" in textual and "question" not in textual:
        textual = ["sentence"]
    if not 1 <= len(textual) <= 2:
        raise DataError(
            f"The table has the columns {', '.join(map(repr, names))}, of which {len(textual)} may be its texts. Hand in "
            "the column itself, for example table['text'], or texts and second texts by themselves."
        )
    return [columns[name] for name in textual]


def _is_table(inputs: Any) -> bool:
    is_frame = hasattr(inputs, "columns") and hasattr(inputs, "iloc")
    return is_frame or isinstance(inputs, Mapping) or hasattr(inputs, "column_names")


def as_texts(inputs: Any) -> tuple[list[str], list[str] | None]:
    """Returns texts, and second texts where the inputs are pairs, from whatever a caller holds.

    Args:
      inputs: One text; a list, tuple, NumPy array, pandas Series or datasets column of texts or of pairs of texts; or a
        pandas DataFrame, ``datasets.Dataset`` or dictionary of columns, whose column ``text`` or ``sentence``, or whose only
        one or two columns of text are taken.

    Returns:
      The texts, and the second texts or None.

    Raises:
      DataError: An input is neither a text nor a pair of texts; the message gives its number. Or it is not clear which
        columns of a table are meant.

    Example:
      >>> as_texts([("a", "b")])
      (['a'], ['b'])
    """
    if _is_table(inputs):
        named = {name: inputs[name] for name in inputs.column_names} if hasattr(inputs, "column_names") else inputs
        columns = _columns_of_text(*_open_columns(named, [], "table"))
        inputs = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    values: list[Any] = [inputs] if isinstance(inputs, str) else as_list(inputs)
    if all(isinstance(value, str) for value in values):
        return values, None
    singles = isinstance(values[0], str)
    for number, value in enumerate(values):
        is_pair = isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, str) for part in value)
        if not (isinstance(value, str) if singles else is_pair):
            kind = "a text" if singles else "a text, and not a pair of two texts either"
            raise DataError(f"Input {number} is {shorten(value)}, a {type(value).__name__}, not {kind}.")
    return [value[0] for value in values], [value[1] for value in values]
