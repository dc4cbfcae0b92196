"""Questions with texts that may hold their answers: SQuAD files of both versions, JSON lines, tables and objects."""

import contextlib
import dataclasses
import gzip
import json
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.config import DataConfig, TaskConfig
from flaxbert.data.peek import column_names, open_source
from flaxbert.data.readers import numbered_lines
from flaxbert.data.sources import as_list, read_table
from flaxbert.data.tables import shorten
from flaxbert.errors import DataError


@dataclasses.dataclass(frozen=True)
class GoldAnswer:
    """An answer as it stands in its text.

    Attributes:
      text: The answer.
      start: Its first character in the text.
    """

    text: str
    start: int


@dataclasses.dataclass(frozen=True)
class Questions:
    """Questions, each with a text.

    Attributes:
      ids: Name of each question, for predictions.
      questions: The questions.
      contexts: The text that each is asked of.
      answers: Possible answers of each, none where the text holds none; None where answers are not known.
      groups: Article of each question: examples are held out by it.
      places: Where each question was read.
      name: What was read.
    """

    ids: Sequence[str]
    questions: Sequence[str]
    contexts: Sequence[str]
    answers: Sequence[Sequence[GoldAnswer]] | None
    groups: Sequence[str]
    places: Sequence[str]
    name: str

    def __len__(self) -> int:
        return len(self.questions)

    def where(self, index: int) -> str:
        """Returns the place of a question.

        Args:
          index: Number of the example, from 0.
        """
        return self.places[index] if self.places else f"{self.name}, row {index}"

    def group_keys(self) -> Sequence[Hashable]:
        """Returns the articles: no article is on both sides when examples are held out."""
        return self.groups

    def select(self, indices: Int[np.ndarray, "chosen"]) -> "Questions":
        """Returns the questions at the given positions.

        Args:
          indices: Numbers of the examples, from 0.
        """
        chosen = indices.tolist()
        pick = lambda values: [values[index] for index in chosen]
        return Questions(
            ids=pick(self.ids),
            questions=pick(self.questions),
            contexts=pick(self.contexts),
            answers=None if self.answers is None else pick(self.answers),
            groups=pick(self.groups),
            places=pick(self.places) if self.places else (),
            name=self.name,
        )


Row = tuple[str, str, str, list[GoldAnswer], str, str]
"""Id, question, context, answers, article and place of a question."""


def is_squad(source: object, config: DataConfig) -> bool:
    """Returns whether a source is one JSON document in SQuAD's form rather than a table.

    Args:
      source: A path, a hub id, or an object.
      config: May name the format.

    Raises:
      DataError: The file can not be read.
    """
    if config.format or not isinstance(source, str | os.PathLike):
        return config.format == "squad"
    path = Path(source)
    if not path.name.lower().removesuffix(".gz").endswith(".json") or not path.is_file():
        return False
    with contextlib.closing(numbered_lines(path)) as lines:
        start = next((line.strip() for _, line in lines if line.strip()), "")
    if start in ("{", "["):
        return True
    return '"paragraphs"' in start or '"data"' in start[:200]


def read_questions(
    source: object,
    config: DataConfig,
    options: TaskConfig,
    *,
    split: str = "train",
    limit: int = 0,
    labelled: bool = True,
) -> Questions:
    """Reads questions with their texts and answers.

    Args:
      source: A JSON file of SQuAD, or a table (file, folder, hub id, object) with the columns of the options.
      config: Format and encoding.
      options: Names of the columns.
      split: Split of a hub data set or of a folder that holds several.
      limit: Most questions to read, in order; 0 reads all.
      labelled: Whether answers are read.

    Returns:
      The questions.

    Raises:
      DataError: The source is malformed, or an answer does not stand where it is said to; names file and place.
    """
    if is_squad(source, config):
        name, rows = str(source), list(_squad_rows(Path(str(source)), labelled))[: limit or None]
    else:
        name, rows = _table_rows(source, config, options, split, limit, labelled)
    if not rows:
        raise DataError(f"{name}: there are no questions.")
    ids, questions, contexts, answers, groups, places = (list(column) for column in zip(*rows, strict=True))
    for question, context, place in zip(questions, contexts, places, strict=True):
        for what, text in (("question", question), ("context", context)):
            if not isinstance(text, str) or not text.strip():
                raise DataError(
                    f"{place}: the {what} is {shorten(text)}, not a text. Fill it in or remove the question."
                )
    if labelled:
        for context, golds, place in zip(contexts, answers, places, strict=True):
            for gold in golds:
                _check_answer(context, gold, place)
    return Questions(ids, questions, contexts, answers if labelled else None, groups, places, name)


def _check_answer(context: str, gold: GoldAnswer, place: str) -> None:
    if not gold.text.strip():
        raise DataError(f"{place}: an answer is empty; leave all answers out where the text holds none.")
    found = context[gold.start : gold.start + len(gold.text)] if gold.start >= 0 else ""
    if found != gold.text:
        nearest = context.find(gold.text)
        hint = f" It stands at {nearest}." if nearest >= 0 else " The text does not hold it."
        raise DataError(
            f"{place}: the answer {shorten(gold.text)} is said to start at character {gold.start}, but there is "
            f"{shorten(found)}.{hint}"
        )


def _squad_rows(path: Path, labelled: bool) -> Iterator[Row]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        document = json.loads(content)
    except OSError as error:
        raise DataError(f"{path}: the file can not be read ({error.strerror or error}).") from error
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path}: the file is no JSON document ({error}); a file that was cut off must be copied again."
        ) from error
    try:
        for number, article in enumerate(document["data"]):
            title = str(article.get("title", number))
            for order, paragraph in enumerate(article["paragraphs"]):
                for entry in paragraph["qas"]:
                    place = f"{path}, article {title!r}, paragraph {order}, question {entry['id']}"
                    golds = _golds(entry.get("answers", []), place) if labelled else []
                    if entry.get("is_impossible"):
                        golds = []
                    yield str(entry["id"]), entry["question"], paragraph["context"], golds, title, place
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: the document is not in SQuAD's form (data, paragraphs, qas; missing or wrong: {error})."
        ) from error


def _golds(answers: Any, place: str) -> list[GoldAnswer]:
    """Returns answers given as one, as a list of ``{text, answer_start}``, or as two lists in one of these."""
    if not answers:
        return []
    try:
        if isinstance(answers, Mapping) and not isinstance(answers["text"], str):
            pairs = list(zip(as_list(answers["text"]), as_list(answers["answer_start"]), strict=True))
        else:
            several = [answers] if isinstance(answers, Mapping) else as_list(answers)
            pairs = [(entry["text"], entry["answer_start"]) for entry in several]
        return [GoldAnswer(str(text), int(start)) for text, start in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{place}: the answers {shorten(answers)} are not of the form {{text, answer_start}} or a list of that."
        ) from error


def _table_rows(
    source: object, config: DataConfig, options: TaskConfig, split: str, limit: int, labelled: bool
) -> tuple[str, list[Row]]:
    source = open_source(source, config, split)
    names = column_names(source, config)
    wanted = [options.question_column, options.context_column, *([options.answers_column] if labelled else [])]
    further = [name for name in ("id", "title") if name in names]
    table = read_table(source, [*wanted, *further], config, split=split, limit=limit)
    rows: list[Row] = []
    for row in range(len(table)):
        place = table.where(row)
        context = table.columns[options.context_column][row]
        golds = _golds(table.columns[options.answers_column][row], place) if labelled else []
        title = str(table.columns["title"][row]) if "title" in further else str(context)
        name = str(table.columns["id"][row]) if "id" in further else str(row)
        rows.append((name, table.columns[options.question_column][row], context, golds, title, place))
    return table.name, rows
