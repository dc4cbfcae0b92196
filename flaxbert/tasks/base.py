"""What a task is: how its examples are read, become tokens, and how outputs become predictions and scores.

Everything is plain functions of numpy arrays. A model is run elsewhere: ``encode`` comes before it, ``decode`` and ``score``
come after it.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.architecture import ModelConfig
from flaxbert.config import DataConfig, TaskConfig
from flaxbert.data.tokenization import TokenizedExamples, Where
from flaxbert.data.windows import Windows, refuse_cut, tokenize_windows
from flaxbert.errors import ConfigError, nearest
from flaxbert.evaluation.bootstrap import Interval, Statistic, bootstrap_interval
from flaxbert.evaluation.report import ClassificationReport

Outputs = np.ndarray | Sequence[np.ndarray]
"""Logits of the network by input of ``Encoded.features``, in their order; per token, padding may follow at the end."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Everything that the functions of a task depend on beside examples and outputs.

    Attributes:
      data: Columns, format, truncation.
      options: What the task needs beyond that.
      labels: Label names in the order of their numbers; empty for tasks without labels and before they are known.
      problem_type: single_label_classification, multi_label_classification or regression; empty for other tasks.
      max_length: Most tokens of one input.
      extra: Further keys of the model's ``config.json``.
    """

    data: DataConfig = DataConfig()
    options: TaskConfig = TaskConfig()
    labels: tuple[str, ...] = ()
    problem_type: str = ""
    max_length: int = 128
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def replace(self, **changes: Any) -> "Setting":
        """Returns a copy with some fields changed.

        Args:
          **changes: New values by attribute name.
        """
        return dataclasses.replace(self, **changes)


def setting_of(config: ModelConfig, options: TaskConfig, max_length: int, data: DataConfig = DataConfig()) -> Setting:
    """Returns the setting of a model that is used as it is.

    Args:
      config: Architecture, with labels and problem type.
      options: What the task needs.
      max_length: Most tokens of one input.
      data: Columns and format of examples.
    """
    return Setting(data, options, config.label_names, config.problem_type, max_length, config.extra)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Examples as the network takes them.

    Attributes:
      examples: The examples.
      features: Token ids, with labels where they are needed; one or several inputs per example.
      details: How inputs and examples belong together, for the task itself.
    """

    examples: Any
    features: TokenizedExamples
    details: Any = None


@dataclasses.dataclass(frozen=True)
class Scored:
    """How well outputs fit the references.

    Attributes:
      metrics: Numbers by name.
      rows: What intervals are resampled from: predictions and references, or counts, one row per example.
      statistics: Metric of such rows by name; metrics without one have no interval.
      make_report: Returns the scores per label, or None.
      changes: What the model should remember of it, as keys of its ``config.json``.
    """

    metrics: Mapping[str, float]
    rows: tuple[np.ndarray, np.ndarray]
    statistics: Mapping[str, str | Statistic]
    make_report: Callable[[], ClassificationReport | None]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def interval(self, metric: str) -> Interval | None:
        """Returns the bootstrap interval of a metric, or None where it has none.

        Args:
          metric: Its name.
        """
        statistic = self.statistics.get(metric)
        return None if statistic is None else bootstrap_interval(*self.rows, statistic)


class Task(abc.ABC):
    """One task. A class without state: a new task is a file with one, and its line in ``TASKS``.

    Attributes:
      name: Canonical name, a key of ``architecture.TASK_HEADS``.
      names_labels: Whether the model's classifier carries the labels' names.
      scores_tokens: Whether the network scores every token, so that outputs are as long as their input.
    """

    name: str = ""
    names_labels: bool = True
    scores_tokens: bool = False

    @abc.abstractmethod
    def read(
        self, source: object, setting: Setting, *, split: str = "train", limit: int = 0, labelled: bool = True
    ) -> Any:
        """Reads examples: what ``data.holdout.ExampleSet`` describes, of the task's own kind.

        Args:
          source: File, folder, hub id, or an object of a program.
          setting: Columns and format.
          split: Split of a hub data set or of a folder that holds several.
          limit: Most examples to read, in order; 0 reads all.
          labelled: Whether references are read too.

        Returns:
          The examples.

        Raises:
          DataError: The source is malformed; names file and line.
        """

    @abc.abstractmethod
    def inputs(self, texts: Any, pairs: Any = None) -> Any:
        """Returns what a caller hands in for prediction as examples without references.

        Args:
          texts: What ``Model.predict`` takes.
          pairs: Second texts, contexts or choices, or None.

        Raises:
          DataError: They are not of the form that the task needs.
        """

    @abc.abstractmethod
    def find_labels(self, examples: Any, setting: Setting, known: Sequence[str] = ()) -> tuple[tuple[str, ...], str]:
        """Returns label names in order and the problem type.

        Args:
          examples: Labelled examples.
          setting: May name labels and problem type.
          known: Names that the model brings along.

        Raises:
          ConfigError: They do not fit the task.
          DataError: They do not fit the examples.
        """

    @abc.abstractmethod
    def encode(self, tokenizer: Any, examples: Any, setting: Setting, *, labelled: bool = True) -> Encoded:
        """Tokenizes examples.

        Args:
          tokenizer: A tokenizer.
          examples: From ``read`` or ``inputs``.
          setting: Labels and lengths.
          labelled: Whether the features carry labels for a loss.

        Returns:
          What the network is run on.

        Raises:
          DataError: A label is unknown, or an example does not fit its text; names file and line.
        """

    @abc.abstractmethod
    def decode(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> list[Any]:
        """Returns a prediction per example.

        Args:
          encoded: What the network was run on.
          outputs: Its logits.
          setting: Labels and options.
        """

    @abc.abstractmethod
    def score(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> Scored:
        """Compares outputs with the references of the examples.

        Args:
          encoded: What the network was run on, with labels.
          outputs: Its logits.
          setting: Labels and options.

        Returns:
          Metrics, and what intervals and reports are made of.

        Raises:
          DataError: There are no references, or they do not belong to the outputs.
          TrainingError: An output is not finite.
        """

    @abc.abstractmethod
    def metric_names(self, setting: Setting) -> dict[str, bool]:
        """Returns the metrics of ``score``, the deciding one first, each with whether higher is better.

        Args:
          setting: Labels and problem type.
        """

    @abc.abstractmethod
    def describe(self, examples: Any, index: int, prediction: Any) -> dict[str, Any]:
        """Returns a prediction as plain values for one line of JSON.

        Args:
          examples: What was predicted.
          index: Number of the example.
          prediction: From ``decode``.
        """

    @abc.abstractmethod
    def lines(self, examples: Any, index: int, prediction: Any) -> Iterator[str]:
        """Yields lines of text that show a prediction to people.

        Args:
          examples: What was predicted.
          index: Number of the example.
          prediction: From ``decode``.
        """

    def decision(self, prediction: Any, setting: Setting) -> Any:
        """Returns what of a prediction two models agree on or not: its label, its tags, its answer, or a number.

        Args:
          prediction: From ``decode``.
          setting: Labels and problem type.
        """
        del setting
        return prediction.label

    def reads_lines(self, path: str, config: DataConfig) -> bool:
        """Returns whether a file to predict is taken as one text a line, or as a table of texts and second texts.

        Args:
          path: The file.
          config: May name its format.
        """
        del path, config
        return True

    def summary(self, encoded: Encoded, setting: Setting) -> dict[str, int]:
        """Returns how often each label occurs, in label order; nothing for tasks without.

        Args:
          encoded: Labelled examples.
          setting: Labels and problem type.
        """
        del encoded, setting
        return {}

    def texts(self, examples: Any) -> tuple[Sequence[str], ...]:
        """Returns the texts of examples: the first of each, then, in a list more, the second, and so on.

        Args:
          examples: The examples.
        """
        return (examples.texts,)

    def primary(self, setting: Setting, requested: str = "") -> tuple[str, bool]:
        """Returns the metric that chooses the best checkpoint, and whether higher is better.

        Args:
          setting: Labels and problem type.
          requested: Its name; empty takes the task's first.

        Raises:
          ConfigError: There is no such metric; names the nearest.
        """
        names = self.metric_names(setting)
        name = requested or next(iter(names))
        if name not in names:
            kind = f" ({setting.problem_type})" if setting.problem_type else ""
            raise ConfigError(
                f"train.metric is '{requested}', but the metrics of {self.name}{kind} are {', '.join(names)}."
                f"{nearest(requested, names)}"
            )
        return name, names[name]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities over the last axis, in float64.

    Args:
      logits: Scores.
    """
    logits = np.asarray(logits, np.float64)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def no_report() -> ClassificationReport | None:
    """Returns None: the task has no scores per label."""
    return None


def cut_texts(
    tokenizer: Any,
    texts: Sequence[str],
    firsts: Sequence[str] | None,
    setting: Setting,
    where: Where,
    stride: int | None = None,
) -> Windows:
    """Cuts texts into windows as the setting says.

    Args:
      tokenizer: A tokenizer.
      texts: The texts to be cut.
      firsts: A text that stands whole before every window of each, or None.
      setting: Lengths, and whether a text may be cut at all.
      where: Returns the place of a text for messages.
      stride: Tokens that neighbouring windows share; None takes what the task's options say.

    Raises:
      ConfigError: The tokenizer does not show its pieces, or windows would not move on.
      DataError: A text may not be cut, or leaves no room.
    """
    if stride is None and setting.options.stride != "quarter":
        stride = setting.options.stride
    windows = tokenize_windows(tokenizer, texts, firsts, max_length=setting.max_length, stride=stride, where=where)
    if setting.data.truncation == "error":
        refuse_cut(windows, setting.max_length, where)
    return windows


def one_line(text: str) -> str:
    """Returns a text without what would end a line or a field of one.

    Args:
      text: Any text.
    """
    return text.replace("\t", " ").replace("\n", " ").replace("\r", " ")
