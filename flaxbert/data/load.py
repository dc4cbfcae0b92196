"""From a configuration to tokenized examples of every split, with a report of what was read."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Num

from flaxbert.config import DataConfig, ProblemType
from flaxbert.data.columns import (
    Examples,
    LabelSet,
    encode_labels,
    hold_out,
    infer_problem_type,
    label_set,
    read_examples,
)
from flaxbert.data.ordering import resolve_length_buckets
from flaxbert.data.tokenization import TokenizedExamples, effective_max_length, tokenize, warn_truncated
from flaxbert.errors import ConfigError

_CLASSIFICATION_TASKS = ("sequence-classification", "text-classification")


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What one split holds.

    Attributes:
      source: File, folder or hub id with its split, or what else was handed in.
      num_examples: Number of examples.
      num_truncated: Examples that lost tokens.
      num_tokens: Tokens of all examples.
      longest_tokens: Tokens of the longest example.
      label_counts: Examples per label; empty for a regression.
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
      train: Tokenized training examples with labels.
      validation: Tokenized held-out examples with labels.
      test: Tokenized examples of the last evaluation, or None.
      labels: Label names in the order of their numbers.
      problem_type: single_label_classification, multi_label_classification or regression.
      max_length: Most tokens of one input.
      length_buckets: Lengths in tokens that batches are padded to.
      report: What was read, by split.
      texts: The examples as texts, by split, for reports and predictions.
    """

    train: TokenizedExamples
    validation: TokenizedExamples
    test: TokenizedExamples | None
    labels: LabelSet
    problem_type: ProblemType
    max_length: int
    length_buckets: tuple[int, ...]
    report: Mapping[str, SplitReport]
    texts: Mapping[str, Examples]


def load_examples(
    config: DataConfig,
    tokenizer: Any,
    task: str = "sequence-classification",
    problem_type: str = "",
    seed: int = 0,
    labels: Sequence[str] | None = None,
    *,
    model_max_length: int = 0,
    sources: Mapping[str, object] | None = None,
) -> TrainingData:
    """Reads, checks, labels and tokenizes the examples of a run.

    Args:
      config: Sources, columns and lengths.
      tokenizer: A tokenizer of transformers, or ``tokenizers.Tokenizer``.
      task: sequence-classification (or its alias text-classification).
      problem_type: single_label_classification, multi_label_classification or regression; empty: from the labels.
      seed: Decides which examples are held out where the configuration gives no validation data.
      labels: Names that the model brings along, used where ``data.labels`` gives none.
      model_max_length: Most tokens that the model takes; 0 if not known.
      sources: Objects to read instead of the configuration's ``train``, ``validation`` and ``test``.

    Returns:
      Tokenized and labelled splits, with what is known of them.

    Raises:
      DataError: Data is missing or malformed; the message names file and line.
      ConfigError: The configuration does not fit the data or the task.
    """
    if task not in _CLASSIFICATION_TASKS:
        raise ConfigError(
            f"model.task is {task!r}, but labelled examples are read for {_CLASSIFICATION_TASKS[0]} only."
        )
    max_length = effective_max_length(config, model_max_length)
    buckets = resolve_length_buckets(config.length_buckets, max_length)
    splits = _read_splits(config, seed, sources or {})
    kind = cast("ProblemType", problem_type or infer_problem_type(splits["train"]))
    names = label_set(splits["train"], kind, config, labels or ())
    numbers = {split: encode_labels(examples, names, kind, config) for split, examples in splits.items()}
    tokenized = {
        split: _tokenize(tokenizer, examples, max_length, config.truncation).with_labels(numbers[split])
        for split, examples in splits.items()
    }
    warn_truncated(tokenized, max_length, config.truncation)
    return TrainingData(
        train=tokenized["train"],
        validation=tokenized["validation"],
        test=tokenized.get("test"),
        labels=names,
        problem_type=kind,
        max_length=max_length,
        length_buckets=buckets,
        report={split: _report(splits[split], tokenized[split], names, kind) for split in splits},
        texts=splits,
    )


def _tokenize(tokenizer: Any, examples: Examples, max_length: int, truncation: str) -> TokenizedExamples:
    return tokenize(
        tokenizer,
        examples.texts,
        examples.pairs,
        max_length=max_length,
        truncation=truncation,
        where=examples.where,
        warn=False,
    )


def _read_splits(config: DataConfig, seed: int, sources: Mapping[str, object]) -> dict[str, Examples]:
    given = {split: sources.get(split, getattr(config, split)) for split in ("train", "validation", "test")}
    if isinstance(given["train"], str) and not given["train"]:
        raise ConfigError("data.train is empty; name a file, a folder or a hub id with --data.train.")
    limits = {"train": config.max_train_examples, "validation": config.max_validation_examples}
    names = {"train": config.train_split, "validation": config.validation_split, "test": config.test_split}
    splits = {
        split: read_examples(source, config, split=names[split], limit=limits.get(split, 0))
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


def _report(
    examples: Examples, tokenized: TokenizedExamples, labels: LabelSet, problem_type: ProblemType
) -> SplitReport:
    return SplitReport(
        source=examples.table.name,
        num_examples=len(tokenized),
        num_truncated=tokenized.num_truncated,
        num_tokens=len(tokenized.input_ids),
        longest_tokens=int(tokenized.lengths.max()),
        label_counts=count_labels(tokenized.labels, labels, problem_type),
    )


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
