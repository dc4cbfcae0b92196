"""From a configuration to tokenized examples of every split, with a report of what was read."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.config import DataConfig, TaskConfig
from flaxbert.data.holdout import hold_out
from flaxbert.data.ordering import resolve_length_buckets
from flaxbert.data.tokenization import TokenizedExamples, effective_max_length, warn_truncated
from flaxbert.errors import ConfigError
from flaxbert.tasks.base import Encoded, Setting, Task
from flaxbert.tasks.registry import get_task


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What one split holds.

    Attributes:
      source: File, folder or hub id with its split, or what else was handed in.
      num_examples: Number of examples.
      num_truncated: Inputs that lost tokens.
      num_tokens: Tokens of all inputs.
      longest_tokens: Tokens of the longest input.
      label_counts: Examples (words, for token classification) per label; empty where there are no labels.
    """

    source: str
    num_examples: int
    num_truncated: int
    num_tokens: int
    longest_tokens: int
    label_counts: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Everything that training needs of the data.

    Attributes:
      task: The task.
      splits: Encoded examples with labels: train, validation and, where there is one, test.
      setting: What the task's functions depend on: labels, problem type, lengths, columns.
      length_buckets: Lengths in tokens that batches are padded to.
      report: What was read, by split.
    """

    task: Task
    splits: Mapping[str, Encoded]
    setting: Setting
    length_buckets: tuple[int, ...]
    report: Mapping[str, SplitReport]

    @property
    def train(self) -> TokenizedExamples:
        """Tokenized training examples with labels."""
        return self.splits["train"].features

    @property
    def validation(self) -> TokenizedExamples:
        """Tokenized held-out examples with labels."""
        return self.splits["validation"].features

    @property
    def test(self) -> TokenizedExamples | None:
        """Tokenized examples of the last evaluation, or None."""
        return self.splits["test"].features if "test" in self.splits else None


def load_examples(
    config: DataConfig,
    tokenizer: Any,
    task: str = "sequence-classification",
    problem_type: str = "",
    seed: int = 0,
    labels: Sequence[str] | None = None,
    *,
    options: TaskConfig = TaskConfig(),
    model_max_length: int = 0,
    sources: Mapping[str, object] | None = None,
) -> TrainingData:
    """Reads, checks, labels and tokenizes the examples of a run.

    Args:
      config: Sources, columns and lengths.
      tokenizer: A tokenizer of transformers, or ``tokenizers.Tokenizer``.
      task: Name or alias of a task that reads examples.
      problem_type: single_label_classification, multi_label_classification or regression; empty: from the labels.
      seed: Decides which examples are held out where the configuration gives no validation data.
      labels: Names that the model brings along, used where ``data.labels`` gives none.
      options: What the task needs beyond texts and labels.
      model_max_length: Most tokens that the model takes; 0 if not known.
      sources: Objects to read instead of the configuration's ``train``, ``validation`` and ``test``.

    Returns:
      Tokenized and labelled splits, with what is known of them.

    Raises:
      DataError: Data is missing or malformed; the message names file and line.
      ConfigError: The configuration does not fit the data or the task.
    """
    chosen = get_task(task)
    max_length = effective_max_length(config, model_max_length)
    buckets = resolve_length_buckets(config.length_buckets, max_length)
    setting = Setting(config, options, problem_type=problem_type, max_length=max_length)
    splits = _read_splits(chosen, setting, seed, sources or {})
    names, kind = chosen.find_labels(splits["train"], setting, labels or ())
    setting = setting.replace(labels=names, problem_type=kind)
    encoded = {split: chosen.encode(tokenizer, examples, setting) for split, examples in splits.items()}
    warn_truncated({split: entry.features for split, entry in encoded.items()}, max_length, config.truncation)
    return TrainingData(
        task=chosen,
        splits=encoded,
        setting=setting,
        length_buckets=buckets,
        report={split: _report(chosen, entry, setting) for split, entry in encoded.items()},
    )


def _read_splits(task: Task, setting: Setting, seed: int, sources: Mapping[str, object]) -> dict[str, Any]:
    config = setting.data
    given = {split: sources.get(split, getattr(config, split)) for split in ("train", "validation", "test")}
    if isinstance(given["train"], str) and not given["train"]:
        raise ConfigError("data.train is empty; name a file, a folder or a hub id with --data.train.")
    limits = {"train": config.max_train_examples, "validation": config.max_validation_examples}
    names = {"train": config.train_split, "validation": config.validation_split, "test": config.test_split}
    splits: dict[str, Any] = {
        split: task.read(source, setting, split=names[split], limit=limits.get(split, 0))
        for split, source in given.items()
        if not (source is None or (isinstance(source, str) and not source))
    }
    if "validation" not in splits:
        if config.validation_rate <= 0:
            raise ConfigError(
                "data.validation is empty and data.validation_rate is 0, so that there is nothing to evaluate on; set one."
            )
        splits["train"], held_out = hold_out(splits["train"], config.validation_rate, seed)
        keep = config.max_validation_examples or len(held_out)
        splits["validation"] = held_out.select(np.arange(min(keep, len(held_out))))
    return splits


def _report(task: Task, encoded: Encoded, setting: Setting) -> SplitReport:
    features = encoded.features
    return SplitReport(
        source=encoded.examples.name,
        num_examples=len(encoded.examples),
        num_truncated=features.num_truncated,
        num_tokens=len(features.input_ids),
        longest_tokens=int(features.lengths.max()),
        label_counts=task.summary(encoded, setting),
    )
