"""What every operation takes and gives."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flaxbert.config import TaskConfig
from flaxbert.data.tokenization import TokenizedExamples, tokenize
from flaxbert.errors import DataError
from flaxbert.model import Model
from flaxbert.serve.drift_windows import Outcome
from flaxbert.serve.errors import RequestError
from flaxbert.serve.functions import Function
from flaxbert.serve.rows import Row, rows_of
from flaxbert.serve.tokenizers import TokenizerPool
from flaxbert.tasks.base import Setting, setting_of


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A loaded model, as operations see it.

    Attributes:
      model: The model; its parameters may lie in an engine only.
      functions: What the engine computes of it, by name.
      tokenizers: Its tokenizer, once for each thread.
      max_length: Most tokens of a row.
    """

    model: Model
    functions: dict[str, Function]
    tokenizers: TokenizerPool
    max_length: int

    def require(self, function: str, purpose: str) -> None:
        """Refuses a request that the model can not answer.

        Args:
          function: Name of the function that is needed.
          purpose: What it is needed for.

        Raises:
          RequestError: The model has no such function.
        """
        if function not in self.functions:
            raise RequestError("backend", f"The model is for {self.model.task}, which does not give {purpose}.")

    def setting(self, options: TaskConfig = TaskConfig()) -> Setting:
        """Returns what the functions of its task depend on.

        Args:
          options: What the task needs.
        """
        return setting_of(self.model.config, options, self.max_length)


@dataclasses.dataclass(frozen=True)
class Truncation:
    """What happens to texts that are too long.

    Attributes:
      allowed: Whether they are cut; else they are refused.
      side: Which end is cut.
    """

    allowed: bool = False
    side: str = "right"


Columns = tuple[Sequence[str], ...]
"""Texts of several inputs; second texts, if any, are a list more."""


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """A request as rows of tokens.

    Attributes:
      function: What is computed of them.
      rows: The rows.
      finish: Makes the answer of their results.
      texts: The texts of its inputs; empty where they are token ids.
      outcome: What an answer says of the texts, for those who watch the model; None where nothing of it tells how sure the model is.
    """

    function: str
    rows: Sequence[Row]
    finish: Callable[[Sequence[np.ndarray]], Any]
    texts: Columns = ()
    outcome: Callable[[Any], Outcome] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(row.length for row in self.rows)

    @property
    def num_characters(self) -> int:
        """Characters of all texts."""
        return sum(len(text) for several in self.texts for text in several)


def encode(
    subject: Subject, texts: Sequence[str], pairs: Sequence[str] | None, truncation: Truncation
) -> TokenizedExamples:
    """Tokenizes the texts of a request.

    Args:
      subject: The model.
      texts: Texts, none of them empty.
      pairs: Second texts, or None.
      truncation: What happens to texts that are too long.

    Returns:
      The tokens.

    Raises:
      RequestError: A text is empty, too long, or the tokenizer refuses it.
    """
    for index, text in enumerate(texts):
        if not text and not (pairs is not None and pairs[index]):
            raise RequestError("validation", f"Input {index} is empty.")
    try:
        with subject.tokenizers.borrow(truncation.side) as tokenizer:
            features = tokenize(tokenizer, texts, pairs, max_length=subject.max_length, warn=False)
    except DataError as error:
        raise RequestError("tokenizer", str(error)) from error
    if features.num_truncated and not truncation.allowed:
        place = int(np.flatnonzero(features.truncated)[0])
        raise RequestError(
            "validation",
            f"Input {place} has more than {subject.max_length} tokens; shorten it, or ask for it to be cut (truncate: true).",
        )
    return features


def encode_task(subject: Subject, examples: Any, options: TaskConfig = TaskConfig()) -> tuple[Any, list[Row]]:
    """Returns the examples of the model's task as the task encodes them, and their rows.

    Args:
      subject: The model.
      examples: From the task's ``inputs``.
      options: What the task needs.

    Raises:
      RequestError: The examples do not fit the task.
    """
    from flaxbert.tasks.registry import get_task

    try:
        with subject.tokenizers.borrow() as tokenizer:
            encoded = get_task(subject.model.task).encode(tokenizer, examples, subject.setting(options), labelled=False)
    except ValueError as error:  # of flaxbert.errors
        raise RequestError("tokenizer", str(error)) from error
    return encoded, rows_of(encoded.features)


def columns_of(*texts: Sequence[str] | None) -> Columns:
    """Returns lists of texts without those that are not there.

    Args:
      *texts: Lists, or None.
    """
    return tuple(several for several in texts if several is not None)
