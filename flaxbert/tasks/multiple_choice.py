"""Multiple choice: which of a fixed number of choices suits a question."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flaxbert.config import DataConfig
from flaxbert.data.choices import Choices, check_choices, read_choices
from flaxbert.data.sources import as_list, as_texts, is_table_file
from flaxbert.data.tokenization import tokenize
from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation.alignment import align
from flaxbert.evaluation.metrics import mean_loss
from flaxbert.tasks.base import Encoded, Outputs, Scored, Setting, Task, no_report, one_line, softmax


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a model chooses.

    Attributes:
      index: Number of the choice, from 0.
      text: The choice.
      score: Its probability.
      scores: Probabilities of all choices in order.
    """

    index: int
    text: str
    score: float
    scores: tuple[float, ...]


class MultipleChoice(Task):
    """Which of a fixed number of choices suits a question."""

    name = "multiple-choice"
    names_labels = False

    def read(
        self, source: object, setting: Setting, *, split: str = "train", limit: int = 0, labelled: bool = True
    ) -> Choices:
        """See ``Task.read``."""
        return read_choices(source, setting.data, setting.options, split=split, limit=limit, labelled=labelled)

    def reads_lines(self, path: str, config: DataConfig) -> bool:
        """See ``Task.reads_lines``; a line of text holds no choices."""
        if not is_table_file(path):
            raise ConfigError(f"{path} is no table; questions with choices come as CSV, TSV, JSONL or Parquet.")
        return False

    def inputs(self, texts: Any, pairs: Any = None) -> Choices:
        """See ``Task.inputs``: questions, and a list of choices for each; one list of texts is for all."""
        questions = as_texts(texts)[0]
        several = as_list(pairs) if pairs is not None else []
        if several and all(isinstance(choice, str) for choice in several):
            several = [several] * len(questions)
        if len(several) != len(questions):
            raise DataError(
                f"There are {len(questions)} questions, but choices for {len(several)}; give a list for each."
            )
        choices = [as_list(entry) for entry in several]
        places = [f"input {index}" for index in range(len(questions))]
        check_choices(choices, places)
        return Choices(questions, None, choices, None, places, "inputs")

    def find_labels(self, examples: Any, setting: Setting, known: Sequence[str] = ()) -> tuple[tuple[str, ...], str]:
        """See ``Task.find_labels``."""
        return (), ""

    def encode(self, tokenizer: Any, examples: Any, setting: Setting, *, labelled: bool = True) -> Encoded:
        """See ``Task.encode``."""
        several = len(examples.choices[0]) if len(examples) else 1
        firsts, seconds = examples.pairs
        features = tokenize(
            tokenizer,
            firsts,
            seconds,
            max_length=setting.max_length,
            truncation=setting.data.truncation,
            where=lambda row: examples.where(row // several),
            warn=False,
        )
        features = dataclasses.replace(features, rows_per_example=several)
        if labelled and examples.answers is None:
            raise DataError(f"{examples.name}: the right choices are not known; name data.label_column.")
        return Encoded(examples, features.with_labels(examples.answers) if labelled else features)

    def decode(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> list[Choice]:
        """See ``Task.decode``."""
        predictions = []
        for choices, row in zip(encoded.examples.choices, outputs, strict=True):
            shares = softmax(row)
            best = int(shares.argmax())
            predictions.append(Choice(best, choices[best], float(shares[best]), tuple(shares.tolist())))
        return predictions

    def score(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> Scored:
        """See ``Task.score``."""
        if encoded.features.labels is None:
            raise DataError(
                "The right choices are not known, so that nothing can be measured; check data.label_column."
            )
        logits, predictions, truth = align("single_label", np.asarray(outputs), encoded.features.labels)
        metrics = {
            "accuracy": float(np.mean(predictions == truth)),
            "loss": mean_loss("single_label", logits, truth) or 0.0,
        }
        return Scored(metrics, (predictions, truth), {"accuracy": "accuracy"}, no_report)

    def metric_names(self, setting: Setting) -> dict[str, bool]:
        """See ``Task.metric_names``."""
        return {"accuracy": True, "loss": False}

    def decision(self, prediction: Choice, setting: Setting) -> int:
        """See ``Task.decision``."""
        return prediction.index

    def texts(self, examples: Any) -> tuple[Sequence[str], ...]:
        """See ``Task.texts``."""
        return examples.questions, [" ".join(several) for several in examples.choices]

    def describe(self, examples: Any, index: int, prediction: Any) -> dict[str, Any]:
        """See ``Task.describe``."""
        return {"question": examples.questions[index], **dataclasses.asdict(prediction)}

    def lines(self, examples: Any, index: int, prediction: Any) -> Iterator[str]:
        """See ``Task.lines``."""
        shown = one_line(prediction.text)
        yield f"{prediction.index}\t{prediction.score:.4f}\t{shown}\t{one_line(examples.questions[index])}"
