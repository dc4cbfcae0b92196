"""Texts with two marked entities and the relation between them, such as those of SemEval-2010 task 8."""

import dataclasses
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from flaxbert.config import DataConfig
from flaxbert.data.columns import read_examples
from flaxbert.data.readers import numbered_lines
from flaxbert.data.tables import shorten
from flaxbert.errors import DataError

MARKS = ("$", "#")
"""What stands on both sides of the first and of the second entity in R-BERT (Wu and He, 2019)."""

_TAG = re.compile(r"\s*<(/?)(e[12])>\s*")
_NUMBERED = re.compile(r"(\d+)\t(.*)")


@dataclasses.dataclass(frozen=True)
class Relations:
    """Texts, each with two entities.

    Attributes:
      texts: The texts as the tokenizer takes them, without tags.
      marked: The texts as they were read, with tags.
      entities: First character of both entities and the one after their last, ``[examples, 2, 2]``; symbols around them count.
      names: Names of the two entities.
      raw_labels: Relations by name; None where they are not known.
      places: Where each was read.
      name: What was read.
      symbols: Whether symbols stand around the entities in the texts.
    """

    texts: Sequence[str]
    marked: Sequence[str]
    entities: Int[np.ndarray, "examples entities ends"]
    names: Sequence[tuple[str, str]]
    raw_labels: Sequence[str] | None
    places: Sequence[str]
    name: str
    symbols: bool = True

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, index: int) -> str:
        """Returns file and line of an example.

        Args:
          index: Number of the example, from 0.
        """
        return self.places[index]

    def group_keys(self) -> Sequence[Hashable]:
        """Returns the texts: equal ones stay together when examples are held out."""
        return self.texts

    def select(self, indices: Int[np.ndarray, "chosen"]) -> "Relations":
        """Returns the examples at the given positions.

        Args:
          indices: Numbers of the examples, from 0.
        """
        chosen = indices.tolist()
        pick = lambda values: [values[index] for index in chosen]
        return dataclasses.replace(
            self,
            texts=pick(self.texts),
            marked=pick(self.marked),
            entities=self.entities[indices],
            names=pick(self.names),
            raw_labels=None if self.raw_labels is None else pick(self.raw_labels),
            places=pick(self.places),
        )


def parse_marked(text: str, symbols: bool, where: str) -> tuple[str, list[list[int]], tuple[str, str]]:
    """Takes the tags ``<e1>…</e1>`` and ``<e2>…</e2>`` out of a text.

    Args:
      text: The text with tags.
      symbols: Whether $ and # take their place.
      where: Place of the text for messages.

    Returns:
      The text, where its two entities stand, and their names.

    Raises:
      DataError: A tag is missing, repeated, or they cross.

    Example:
      >>> parse_marked("A <e1>cat</e1> sat on <e2>it</e2>.", False, "")
      ('A cat sat on it.', [[2, 5], [13, 15]], ('cat', 'it'))
    """
    found = [f"{slash}{name}" for slash, name in _TAG.findall(text)]
    if found not in (["e1", "/e1", "e2", "/e2"], ["e2", "/e2", "e1", "/e1"]):
        raise DataError(
            f"{where}: {shorten(text)} does not have both entities in tags, <e1>one</e1> and <e2>other</e2>; it has "
            f"{', '.join(f'<{tag}>' for tag in found) or 'none'}."
        )
    parts = re.split(r"</?e[12]>", text)
    before, first, between, second, after = parts
    order = (0, 1) if found[0] == "e1" else (1, 0)
    spans: dict[int, list[int]] = {}
    built = before
    for number, entity, rest in zip(order, (first, second), (between, after), strict=True):
        name = entity.strip()
        if not name:
            raise DataError(f"{where}: the entity <e{number + 1}> is empty.")
        built += entity[: len(entity) - len(entity.lstrip())]
        shown = f"{MARKS[number]} {name} {MARKS[number]}" if symbols else name
        spans[number] = [len(built), len(built) + len(shown)]
        built += shown + entity[len(entity.rstrip()) :] + rest
    names = (first.strip(), second.strip())
    return built, [spans[0], spans[1]], names if order == (0, 1) else (names[1], names[0])


def mark_all(
    texts: Sequence[str], labels: Sequence[str] | None, places: Sequence[str], name: str, symbols: bool
) -> Relations:
    """Returns examples from texts with tags.

    Args:
      texts: The texts.
      labels: Their relations, or None.
      places: Where each was read.
      name: What was read.
      symbols: As for ``parse_marked``.

    Raises:
      DataError: As for ``parse_marked``.
    """
    parsed = [parse_marked(text, symbols, place) for text, place in zip(texts, places, strict=True)]
    spans = np.array([entry[1] for entry in parsed], np.int64).reshape(-1, 2, 2)
    return Relations(
        [entry[0] for entry in parsed], texts, spans, [entry[2] for entry in parsed], labels, places, name, symbols
    )


def read_relations(
    source: object, config: DataConfig, *, symbols: bool, split: str = "train", limit: int = 0, labelled: bool = True
) -> Relations:
    """Reads texts with marked entities and their relations.

    Args:
      source: The original file of SemEval-2010 task 8 (format semeval), or a table of texts with tags and relations.
      config: Columns and format.
      symbols: As for ``parse_marked``.
      split: Split of a hub data set or of a folder that holds several.
      limit: Most examples to read, in order; 0 reads all.
      labelled: Whether relations are read.

    Returns:
      The texts with their entities.

    Raises:
      DataError: The source is malformed; names file and line.
    """
    if config.format == "semeval":
        rows = list(_semeval_rows(Path(str(source)), config))[: limit or None]
        if not rows:
            raise DataError(f"{source}: the file holds no sentences.")
        labels = [label for _, label, _ in rows] if labelled else None
        return mark_all([text for text, _, _ in rows], labels, [place for *_, place in rows], str(source), symbols)
    config = config if labelled else dataclasses.replace(config, label_column="")
    examples = read_examples(source, config, split=split, limit=limit)
    places = [examples.where(index) for index in range(len(examples))]
    raw = examples.raw_labels
    found = None if raw is None else [str(label) for label in raw]
    if found is not None and "" in found:
        raise DataError(f"{places[found.index('')]}: the relation is missing. Fill it in or remove the row.")
    return mark_all(examples.texts, found, places, examples.name, symbols)


def _semeval_rows(path: Path, config: DataConfig) -> Iterator[tuple[str, str, str]]:
    """Yields sentence, relation and place of the blocks of the original file: number and sentence, relation, comment."""
    pending = ""
    place = ""
    for number, line in numbered_lines(path, config.encoding):
        match = _NUMBERED.fullmatch(line)
        if match is not None:
            if pending:
                raise DataError(f"{place}: there is no relation in the line after the sentence.")
            place = f"{path}, line {number}"
            pending = match[2].strip().removeprefix('"').removesuffix('"')
        elif pending and line.strip():
            yield pending, line.strip(), place
            pending = ""
        elif line.strip() and not line.startswith("Comment:"):
            raise DataError(f"{path}, line {number}: {shorten(line)} is neither a numbered sentence nor its relation.")
    if pending:
        raise DataError(f"{place}: there is no relation in the line after the sentence.")
