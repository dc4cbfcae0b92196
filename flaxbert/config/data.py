"""Which examples a run reads."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from flaxbert.config.checks import require, require_at_least, require_rate


@dataclasses.dataclass(frozen=True)
class DataConfig:
    r"""Which examples a run reads and how they become batches.

    Attributes:
      train: File (CSV, TSV, JSONL, Parquet; .gz too), folder written by ``datasets``, or hub id of the training examples.
      validation: The same for the held-out examples. Empty: ``validation_rate`` of the training examples is held out.
      test: The same for a last evaluation after training. Empty: none.
      format: csv, tsv, jsonl, lines (one record a line, taken apart by ``line_pattern``), parquet, datasets or hub; conll (a word and its tag a line), squad (the JSON of SQuAD) or semeval (TRAIN_FILE.TXT of SemEval-2010 task 8) for their tasks. Empty: from the name.
      name: Configuration of a hub data set, for example sst2 of glue.
      train_split: Split of a hub data set for training.
      validation_split: Split of a hub data set for validation.
      test_split: Split of a hub data set for the test.
      text_column: Name or position (0-based, for files without header) of the text, or of the first text of a pair.
      text_pair_column: The same for the second text of a pair. Empty: single texts.
      label_column: The same for the label.
      header: Whether CSV and TSV files start with a line of column names.
      delimiter: Field separator of CSV and TSV files. Empty: comma or tab by format.
      quoting: Whether CSV and TSV fields can be quoted with double quotes.
      allow_extra_fields: Whether lines of CSV and TSV files may have more fields than the first one (they are ignored).
      line_pattern: Regular expression that must match each whole line of a lines file; its named groups are the columns, for example ``(?P<label>[A-Z]+):\S+ (?P<text>.+)``. Empty: the line is the column text.
      encoding: Text encoding of the files.
      labels: Label names in the order of their numbers. Empty: the sorted distinct labels of the training examples.
      label_map: Renames raw labels before anything else, for example {"0": "negative", "1": "positive"}.
      label_separator: Character between the labels of one example for multi-label data.
      validation_rate: Share of the training examples held out when validation is empty, in [0, 1).
      max_length: Most tokens of one input, special tokens included; longer inputs are truncated and counted. 0: the model's maximum.
      truncation: For pairs: longest_first, only_first or only_second; error refuses inputs that are too long.
      length_buckets: Lengths in tokens that batches are padded to. Empty: powers of two and their middles from 16 to max_length.
      group_by_length: Batch examples of similar length together, within windows of 64 batches.
      max_train_examples: Keep only so many training examples, in file order; 0 keeps all.
      max_validation_examples: The same for validation.
      shuffle: Whether training examples are shuffled anew each epoch.
    """

    train: str = ""
    validation: str = ""
    test: str = ""
    format: Literal["", "csv", "tsv", "jsonl", "lines", "parquet", "datasets", "hub", "conll", "squad", "semeval"] = ""
    name: str = ""
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    text_column: str = "text"
    text_pair_column: str = ""
    label_column: str = "label"
    header: bool = True
    delimiter: str = ""
    quoting: bool = True
    allow_extra_fields: bool = False
    line_pattern: str = ""
    encoding: str = "utf-8"
    labels: tuple[str, ...] = ()
    label_map: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label_separator: str = ","
    validation_rate: float = 0.1
    max_length: int = 128
    truncation: Literal["longest_first", "only_first", "only_second", "error"] = "longest_first"
    length_buckets: tuple[int, ...] = ()
    group_by_length: bool = True
    max_train_examples: int = 0
    max_validation_examples: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        require_rate("data", "validation_rate", self.validation_rate, upper_open=True)
        for field in (
            "max_length",
            "max_train_examples",
            "max_validation_examples",
        ):
            require_at_least("data", field, getattr(self, field), 0)
        require(
            len(self.delimiter) <= 1,
            f"data.delimiter is {self.delimiter!r}, but must be one character or empty.",
        )
        require(
            all(length > 0 for length in self.length_buckets),
            f"data.length_buckets is {self.length_buckets}, but lengths are positive.",
        )
