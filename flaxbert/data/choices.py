"""Questions with a fixed number of choices of which one is right."""

import dataclasses
import re
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.config import DataConfig, TaskConfig
from flaxbert.data.peek import column_names, open_source
from flaxbert.data.sources import as_list, read_table
from flaxbert.data.tables import Table, shorten
from flaxbert.errors import DataError

_NUMBERED = re.compile(r"(?:ending|choice|option|answer)_?(\d+)")


@dataclasses.dataclass(frozen=True)
class Choices:
    """Questions with choices.

    Attributes:
      questions: The questions, or beginnings of sentences.
      contexts: A text before each question; None where there are none.
      choices: The choices of each question, all of one number.
      answers: Number of the right choice; None where it is not known.
      places: Where each was read.
      name: What was read.
    """

    questions: Sequence[str]
    contexts: Sequence[str] | None
    choices: Sequence[Sequence[str]]
    answers: Int[np.ndarray, "examples"] | None
    places: Sequence[str]
    name: str

    def __len__(self) -> int:
        return len(self.questions)

    def where(self, index: int) -> str:
        """Returns file and line of an example.

        Args:
          index: Number of the example, from 0.
        """
        return self.places[index]

    def group_keys(self) -> Sequence[Hashable]:
        """Returns the contexts, or the questions: equal ones stay together when examples are held out."""
        return self.questions if self.contexts is None else self.contexts

    def select(self, indices: Int[np.ndarray, "chosen"]) -> "Choices":
        """Returns the examples at the given positions.

        Args:
          indices: Numbers of the examples, from 0.
        """
        chosen = indices.tolist()
        pick = lambda values: [values[index] for index in chosen]
        return Choices(
            questions=pick(self.questions),
            contexts=None if self.contexts is None else pick(self.contexts),
            choices=pick(self.choices),
            answers=None if self.answers is None else self.answers[indices],
            places=pick(self.places),
            name=self.name,
        )

    @property
    def pairs(self) -> tuple[list[str], list[str]]:
        """First and second text of every choice, question by question: (question, choice), or (context, question choice)."""
        firsts, seconds = [], []
        for index, (question, several) in enumerate(zip(self.questions, self.choices, strict=True)):
            for choice in several:
                firsts.append(question if self.contexts is None else self.contexts[index])
                seconds.append(choice if self.contexts is None else f"{question} {choice}".strip())
        return firsts, seconds


def check_choices(choices: Sequence[Sequence[str]], places: Sequence[str]) -> None:
    """Refuses choices that are no texts, fewer than two, or not as many for every question.

    Args:
      choices: Choices by question.
      places: Where each question was read.

    Raises:
      DataError: Names the first question at fault.
    """
    for several, place in zip(choices, places, strict=True):
        if len(several) < 2 or len(several) != len(choices[0]):
            raise DataError(
                f"{place}: there are {len(several)} choices, but {max(2, len(choices[0]))} are needed, as many for each "
                "question."
            )
        for choice in several:
            if not isinstance(choice, str) or not choice.strip():
                raise DataError(f"{place}: the choice {shorten(choice)} is not a text.")


def read_choices(
    source: object,
    config: DataConfig,
    options: TaskConfig,
    *,
    split: str = "train",
    limit: int = 0,
    labelled: bool = True,
) -> Choices:
    """Reads questions with choices.

    Args:
      source: A table: file, folder, hub id, or object.
      config: Format, and the column with the right choice: its number from 0, its letter from A, or the choice itself.
      options: Columns of questions, contexts and choices.
      split: Split of a hub data set or of a folder that holds several.
      limit: Most questions to read, in order; 0 reads all.
      labelled: Whether the right choices are read.

    Returns:
      The questions.

    Raises:
      DataError: The source is malformed; names file and line.
    """
    source = open_source(source, config, split)
    names = column_names(source, config)
    columns = list(options.choice_columns) or _find_choices(names)
    context = options.context_column if options.context_column in names else ""
    wanted = [options.question_column, *([context] if context else []), *columns]
    table = read_table(
        source, [*wanted, *([config.label_column] if labelled else [])], config, split=split, limit=limit
    )
    places = [table.where(row) for row in range(len(table))]
    for column in wanted[: 2 if context else 1]:
        for value, place in zip(table.columns[column], places, strict=True):
            if not isinstance(value, str) or (column != options.question_column and not value.strip()):
                raise DataError(f"{place}: column {column!r} holds {shorten(value)}, not a text.")
    if len(columns) == 1:
        choices = [_listed(value, place) for value, place in zip(table.columns[columns[0]], places, strict=True)]
    else:
        choices = [list(row) for row in zip(*(table.columns[column] for column in columns), strict=True)]
    check_choices(choices, places)
    answers = _answers(table, config.label_column, choices) if labelled else None
    contexts = list(table.columns[context]) if context else None
    return Choices(list(table.columns[options.question_column]), contexts, choices, answers, places, table.name)


def _listed(value: Any, place: str) -> list[Any]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise DataError(
            f"{place}: the choices are {shorten(value)}, not a list; name their columns with task.choice_columns."
        )
    return as_list(value)


def _find_choices(names: Sequence[str]) -> list[str]:
    numbered = sorted((int(match[1]), name) for name in names if (match := _NUMBERED.fullmatch(name)))
    if len(numbered) > 1:
        return [name for _, name in numbered]
    return [next((name for name in ("choices", "endings", "options") if name in names), "choices")]


def _answers(table: Table, column: str, choices: Sequence[Sequence[str]]) -> Int[np.ndarray, "examples"]:
    answers = []
    for row, (value, several) in enumerate(zip(table.columns[column], choices, strict=True)):
        text = str(value).strip()
        if text in several:
            answers.append(list(several).index(text))
            continue
        number = int(text) if text.isdecimal() else ord(text) - ord("A") if len(text) == 1 and text.isupper() else -1
        if not 0 <= number < len(several):
            raise DataError(
                f"{table.where(row)}: the right choice is {shorten(value)}, but must be a number from 0 to "
                f"{len(several) - 1}, a letter from A, or one of the choices."
            )
        answers.append(number)
    return np.array(answers, np.int32)
