"""From raw columns to checked texts and numbered labels."""

import dataclasses
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from flaxbert.config import DataConfig, ProblemType
from flaxbert.data.sources import as_list, read_table
from flaxbert.data.tables import Table, shorten
from flaxbert.errors import ConfigError, DataError, nearest


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """Label names and their numbers, immutable.

    Attributes:
      names: The names in the order of their numbers.

    Example:
      >>> LabelSet(("negative", "positive")).number("positive")
      1
    """

    names: tuple[str, ...]
    _numbers: Mapping[str, int] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = {name: number for number, name in enumerate(self.names)}
        if not self.names:
            raise ConfigError("data.labels is empty; name at least one label.")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated or not all(isinstance(name, str) and name for name in self.names):
            raise ConfigError(
                f"data.labels is {self.names}; labels are non-empty texts that differ (repeated: {repeated})."
            )
        object.__setattr__(self, "_numbers", numbers)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, number: int) -> str:
        return self.names[number]

    def number(self, name: str, where: str = "") -> int:
        """Returns the number of a label.

        Args:
          name: The label.
          where: File and line for the message.

        Raises:
          DataError: The label is not in the set; the message names the place and the nearest label.
        """
        number = self._numbers.get(name)
        if number is None:
            shown = ", ".join(self.names[:20]) + (f" and {len(self) - 20} more" if len(self) > 20 else "")
            raise DataError(
                f"{where + ': ' if where else ''}the label {name!r} is not one of {shown}.{nearest(name, self.names)} Mend "
                "the label, add it to data.labels, or rename it with data.label_map."
            )
        return number


@dataclasses.dataclass(frozen=True)
class Examples:
    """Checked texts with their raw labels.

    Attributes:
      texts: The texts, or the first texts of pairs.
      pairs: The second texts, or None for single texts.
      raw_labels: A label name, a float, or a tuple of label names per example; None where there are no labels.
      label_names: Names in order that the data itself declares; empty where it declares none.
      table: Where the examples were read, for messages.
      rows: Row of each example in the table.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    raw_labels: Sequence[Any] | None
    label_names: tuple[str, ...]
    table: Table
    rows: Int[np.ndarray, "examples"]

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, index: int) -> str:
        """Returns file and line of an example, for a message.

        Args:
          index: Number of the example, from 0.
        """
        return self.table.where(int(self.rows[index]))

    @property
    def name(self) -> str:
        """What was read, for messages."""
        return self.table.name

    def group_keys(self) -> Sequence[Hashable]:
        """Returns a key for each example; those with equal ones stay together when examples are held out."""
        return self.texts if self.pairs is None else list(zip(self.texts, self.pairs, strict=True))

    def select(self, indices: Int[np.ndarray, "chosen"]) -> "Examples":
        """Returns the examples at the given positions.

        Args:
          indices: Numbers of the examples, from 0.
        """
        chosen = indices.tolist()
        return dataclasses.replace(
            self,
            texts=[self.texts[index] for index in chosen],
            pairs=None if self.pairs is None else [self.pairs[index] for index in chosen],
            raw_labels=None if self.raw_labels is None else [self.raw_labels[index] for index in chosen],
            rows=self.rows[indices],
        )


def read_examples(source: object, config: DataConfig, *, split: str = "train", limit: int = 0) -> Examples:
    """Reads texts and raw labels of a source by the columns of the configuration.

    Args:
      source: What ``read_table`` takes.
      config: Columns and format; an empty ``label_column`` reads no labels.
      split: Split of a hub data set or of a folder that holds several.
      limit: Most examples to read, in order; 0 reads all.

    Returns:
      The examples, with the place of each.

    Raises:
      DataError: The source is malformed, a text is empty or no text, or a label is missing.
    """
    if not config.text_column:
        raise ConfigError("data.text_column is empty; name the column of the texts.")
    wanted = [name for name in (config.text_column, config.text_pair_column, config.label_column) if name]
    table = read_table(source, wanted, config, split=split, limit=limit)
    texts = _checked_texts(table, config.text_column)
    pairs = _checked_texts(table, config.text_pair_column) if config.text_pair_column else None
    rows = np.arange(len(table))
    if not config.label_column:
        return Examples(texts, pairs, None, (), table, rows)
    names = table.class_names.get(config.label_column, ())
    raw = _raw_labels(table, config.label_column, names)
    renamed = tuple(dict.fromkeys(config.label_map.get(name, name) for name in names))
    return Examples(texts, pairs, raw, renamed, table, rows)


def _checked_texts(table: Table, column: str) -> Sequence[str]:
    values = table.columns[column]
    empty = [
        row for row, value in enumerate(values) if _is_missing(value) or (isinstance(value, str) and not value.strip())
    ]
    if empty:
        more = f" ({len(empty)} texts are empty in all)" if len(empty) > 1 else ""
        raise DataError(
            f"{table.where(empty[0])}: the text in column {column!r} is empty{more}. Fill it in or remove the row."
        )
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(
                f"{table.where(row)}: column {column!r} holds {shorten(value)}, a {type(value).__name__}, not a text. Set "
                "data.text_column to the column of the texts, or convert the values."
            )
    return values


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _raw_labels(table: Table, column: str, names: tuple[str, ...]) -> list[Any]:
    cache: dict[Any, str] = {}
    labels: list[Any] = []
    for row, value in enumerate(table.columns[column]):
        if type(value) in (str, int) and value in cache:
            labels.append(cache[value])
        elif isinstance(value, list | tuple | np.ndarray):
            labels.append(tuple(_label_name(part, table, row, names) for part in as_list(value)))
        elif isinstance(value, float) and math.isfinite(value) and not value.is_integer():
            labels.append(value)
        else:
            labels.append(_label_name(value, table, row, names))
            if type(value) in (str, int):
                cache[value] = labels[-1]
    return labels


def _label_name(value: Any, table: Table, row: int, names: tuple[str, ...]) -> str:
    """Returns a label as text; an empty one where it is missing, which only multi-label data allows."""
    if _is_missing(value):
        return ""
    if names and isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(names):
            unlabelled = " A label of -1 marks an unlabelled split; choose one with labels." if value == -1 else ""
            raise DataError(
                f"{table.where(row)}: the class number {value} is not between 0 and {len(names) - 1}.{unlabelled}"
            )
        return names[value]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def infer_problem_type(examples: Examples) -> ProblemType:
    """Returns the kind of problem that raw labels stand for.

    Lists of labels make a multi-label problem, numbers of which one at least is no integer a regression, all else a
    single-label problem. Labels that are joined in one text by a separator are not recognised: ``model.problem_type``
    must say so.

    Args:
      examples: Examples with labels.
    """
    raw = examples.raw_labels or ()
    if any(isinstance(label, tuple) for label in raw):
        return "multi_label_classification"
    numbers = [_as_float(label) for label in raw]
    known = [number for number in numbers if number is not None]
    if known and len(known) == len(numbers) and any(not number.is_integer() for number in known):
        return "regression"
    return "single_label_classification"


def _as_float(label: Any) -> float | None:
    try:
        return float(label)
    except (TypeError, ValueError):
        return None


def label_set(
    examples: Examples, problem_type: ProblemType, config: DataConfig, labels: Sequence[str] = ()
) -> LabelSet:
    """Returns the labels of a task.

    They are, in this order of preference: ``data.labels``, ``labels``, the names that the data declares, the sorted
    distinct labels of the examples (as numbers where all are integers).

    Args:
      examples: Training examples.
      problem_type: Kind of problem; a regression has the one label ``score`` unless another is given.
      config: The configuration.
      labels: Names that the model brings along.

    Raises:
      ConfigError: A regression is given several labels, or a label twice.
      DataError: There is only one label, or a label is missing.
    """
    given = tuple(config.labels) or tuple(labels)
    if problem_type == "regression":
        if len(given) > 1:
            raise ConfigError(
                f"data.labels names {len(given)} labels, but a regression has one output; name one or none."
            )
        return LabelSet(given or ("score",))
    if given or examples.label_names:
        return LabelSet(given or examples.label_names)
    distinct: set[str] = set()
    seen: set[Any] = set()
    for index, label in enumerate(examples.raw_labels or ()):
        if label not in seen:
            seen.add(label)
            distinct.update(_label_parts(examples, index, problem_type, config))
    names = sorted(distinct, key=int) if all(_is_integer(name) for name in distinct) else sorted(distinct)
    if problem_type == "single_label_classification" and len(names) < 2:
        raise DataError(
            f"{examples.table.name}: column {config.label_column!r} holds only the label {shorten((names or [''])[0])}; "
            "a classifier needs two. Check data.label_column, or name all labels in data.labels."
        )
    return LabelSet(tuple(names))


def _is_integer(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _label_parts(examples: Examples, index: int, problem_type: ProblemType, config: DataConfig) -> list[str]:
    """Returns the names of an example's labels after ``data.label_map``; exactly one for single-label data."""
    label = (examples.raw_labels or ())[index]
    if problem_type == "multi_label_classification":
        joined = str(label).split(config.label_separator) if config.label_separator else [str(label)]
        parts = [part.strip() for part in (label if isinstance(label, tuple) else joined)]
        return [_rename(part, config, examples, index) for part in parts if part]
    if isinstance(label, tuple):
        raise DataError(
            f"{examples.where(index)}: the label is the list {shorten(list(label))}, but the problem type is "
            "single_label_classification; set model.problem_type: multi_label_classification."
        )
    if label == "":
        raise DataError(f"{examples.where(index)}: the label is missing. Fill it in or remove the row.")
    return [_rename(str(label), config, examples, index)]


def _rename(name: str, config: DataConfig, examples: Examples, index: int) -> str:
    if not config.label_map or name in config.label_map:
        return config.label_map.get(name, name)
    known = (*config.label_map.values(), *config.labels)
    if name in known:
        return name
    raise DataError(
        f"{examples.where(index)}: the label {name!r} is not in data.label_map, whose labels are "
        f"{', '.join(config.label_map)}.{nearest(name, (*config.label_map, *known))} Mend the label or add it to the map."
    )


def encode_labels(
    examples: Examples, labels: LabelSet, problem_type: ProblemType, config: DataConfig
) -> Int[np.ndarray, "examples"] | Float[np.ndarray, "examples"] | Float[np.ndarray, "examples labels"]:
    """Returns labels as numbers.

    Args:
      examples: Examples with labels.
      labels: The label set.
      problem_type: Kind of problem.
      config: Gives the separator of multi-label data.

    Returns:
      int32[examples] for single labels, float32[examples] for a regression, float32[examples, labels] of zeros and ones
      for multi-label data.

    Raises:
      DataError: A label is not in the set, or not a finite number; the message names file and line.
    """
    raw = examples.raw_labels
    if raw is None:
        raise ConfigError("data.label_column is empty, but the labels are needed; name the column of the labels.")
    if problem_type == "regression":
        return np.array([_finite(label, examples, index) for index, label in enumerate(raw)], np.float32)
    numbers: dict[Any, list[int]] = {}
    for index, label in enumerate(raw):
        if label not in numbers:
            parts = _label_parts(examples, index, problem_type, config)
            numbers[label] = [labels.number(part, examples.where(index)) for part in parts]
    if problem_type == "single_label_classification":
        return np.array([numbers[label][0] for label in raw], np.int32)
    hot = np.zeros((len(raw), len(labels)), np.float32)
    for index, label in enumerate(raw):
        hot[index, numbers[label]] = 1.0
    return hot


def _finite(label: Any, examples: Examples, index: int) -> float:
    number = _as_float(label)
    if number is None or not math.isfinite(number):
        raise DataError(
            f"{examples.where(index)}: the label {shorten(label)} is not a finite number, but the problem type is "
            "regression. Mend the value, or set data.label_column or model.problem_type."
        )
    return number


def count_labels(
    numbers: Num[np.ndarray, "examples ..."] | None, labels: LabelSet, problem_type: ProblemType
) -> dict[str, int]:
    """Returns the number of examples per label; nothing for a regression or without labels.

    Args:
      numbers: Labels as ``encode_labels`` returns them.
      labels: The label set.
      problem_type: Kind of problem.
    """
    if numbers is None or problem_type == "regression":
        return {}
    multi = problem_type == "multi_label_classification"
    counts = numbers.sum(axis=0) if multi else np.bincount(numbers, minlength=len(labels))
    return {name: int(count) for name, count in zip(labels, counts, strict=True)}
