"""Texts with tagged words: from CoNLL files, tables of words and tags, and texts with spans of characters."""

import dataclasses
import itertools
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.config import DataConfig, TaskConfig
from flaxbert.data.entity_tags import Span, decode_tags, detect_scheme, find_fault, is_entity_tag
from flaxbert.data.peek import column_names, open_source
from flaxbert.data.readers import numbered_lines
from flaxbert.data.sources import as_list, read_table
from flaxbert.data.tables import Table, shorten
from flaxbert.errors import DataError, nearest

CONLL_ENDINGS = frozenset({".conll", ".iob", ".iob2", ".bio", ".txt"})
"""Endings of files that are read as CoNLL files unless told otherwise."""

_IDEOGRAPHS = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+(?:[^\w\s]+[^\W{_IDEOGRAPHS}]+)*|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class TaggedTexts:
    """Texts whose words are known, with their tags or entities.

    Attributes:
      texts: The texts; of words alone, joined by spaces.
      words: First character of every word, and the one after its last, by text: ``[words, 2]``.
      tags: Tags by text where words are labelled singly; else None.
      entities: Entities by text as spans of words; None where there are none to compare with.
      name: What was read.
      lines: Line of each text's words in the file, or of the text alone; empty where there are no lines.
      scheme: How the data writes entities: iob1, iob2, iobes, spans or tags.
    """

    texts: Sequence[str]
    words: Sequence[np.ndarray]
    tags: Sequence[Sequence[str]] | None
    entities: Sequence[Sequence[Span]] | None
    name: str
    lines: Sequence[Sequence[int]] = ()
    scheme: str = ""

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, index: int) -> str:
        """Returns file and line of an example.

        Args:
          index: Number of the example, from 0.
        """
        return f"{self.name}, line {self.lines[index][0]}" if self.lines else f"{self.name}, row {index}"

    def where_word(self, index: int, word: int) -> str:
        """Returns file and line of a word.

        Args:
          index: Number of the example, from 0.
          word: Number of the word in it.
        """
        if self.lines and len(self.lines[index]) > word:
            return f"{self.name}, line {self.lines[index][word]}"
        return f"{self.where(index)}, word {word}"

    def group_keys(self) -> Sequence[Hashable]:
        """Returns the texts: equal ones stay together when examples are held out."""
        return self.texts

    def select(self, indices: Int[np.ndarray, "chosen"]) -> "TaggedTexts":
        """Returns the examples at the given positions.

        Args:
          indices: Numbers of the examples, from 0.
        """
        chosen = indices.tolist()
        pick = lambda values: None if values is None else [values[index] for index in chosen]
        return dataclasses.replace(
            self,
            texts=pick(self.texts),
            words=pick(self.words),
            tags=pick(self.tags),
            entities=pick(self.entities),
            lines=pick(self.lines) if self.lines else (),
        )


def find_words(text: str, boundaries: Sequence[int] = ()) -> Int[np.ndarray, "words ends"]:
    """Returns the words of a text: runs of letters and digits, with marks between them inside; other marks; ideographs.

    Args:
      text: The text.
      boundaries: Characters at which a word with marks inside is parted, such as the ends of entities.

    Example:
      >>> find_words("U.K. (APC)").tolist()
      [[0, 3], [3, 4], [5, 6], [6, 9], [9, 10]]
    """
    spans: list[tuple[int, int]] = []
    cuts = sorted(set(boundaries))
    for match in _WORD.finditer(text):
        inside = [cut for cut in cuts if match.start() < cut < match.end()]
        inside = [cut for cut in inside if not (_is_letter(text[cut - 1]) and _is_letter(text[cut]))]
        ends = [match.start(), *inside, match.end()]
        spans += itertools.pairwise(ends)
    return np.array(spans, np.int64).reshape(-1, 2)


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_"


def join_words(words: Sequence[str]) -> tuple[str, Int[np.ndarray, "words ends"]]:
    """Returns words joined by spaces, and where each of them stands.

    Args:
      words: The words.
    """
    lengths = np.array([len(word) for word in words], np.int64)
    starts = np.cumsum(lengths + 1) - lengths - 1
    return " ".join(words), np.stack([starts, starts + lengths], axis=1).reshape(-1, 2)


def is_conll(source: object, config: DataConfig) -> bool:
    """Returns whether a source is a file with one word a line.

    Args:
      source: A path, a hub id, or an object.
      config: May name the format.
    """
    if config.format or not isinstance(source, str | Path):
        return config.format == "conll"
    path = Path(str(source).lower().removesuffix(".gz"))
    return path.suffix in CONLL_ENDINGS


def read_tagged(
    source: object,
    config: DataConfig,
    options: TaskConfig,
    *,
    split: str = "train",
    limit: int = 0,
    labelled: bool = True,
) -> TaggedTexts:
    """Reads texts with tagged words.

    Args:
      source: A CoNLL file, or a table (file, folder, hub id, object) of words with tags or of texts with spans.
      config: Format, encoding, renaming of labels.
      options: Columns and scheme.
      split: Split of a hub data set or of a folder that holds several.
      limit: Most texts to read, in order; 0 reads all.
      labelled: Whether tags are read.

    Returns:
      The texts, with entities unless words are labelled singly.

    Raises:
      DataError: The source is malformed, a tag is of no scheme, or a span does not lie on words; names file and line.
    """
    if is_conll(source, config):
        return _from_words(*_read_conll(Path(str(source)), config, options, limit, labelled), config, options)
    source = open_source(source, config, split)
    names = column_names(source, config)
    tokens = options.token_column or ("tokens" if "tokens" in names else "")
    spans = options.span_column or next((name for name in ("entities", "spans") if name in names), "")
    if tokens and not options.span_column:
        tag = options.tag_column or next((name for name in ("ner_tags", "tags", "labels") if name in names), "ner_tags")
        table = read_table(source, [tokens, *([tag] if labelled else [])], config, split=split, limit=limit)
        sentences = [[str(word) for word in as_list(words)] for words in table.columns[tokens]]
        found = _named_tags(table, tag) if labelled else None
        return _from_words(table.name, sentences, found, _rows(table), config, options)
    wanted = [config.text_column, *([spans or "entities"] if labelled else [])]
    table = read_table(source, wanted, config, split=split, limit=limit)
    return _from_spans(table, config, wanted[1] if labelled else "")


def _rows(table: Table) -> list[list[int]]:
    return [] if table.lines is None else [[line] for line in table.lines]


def _named_tags(table: Table, column: str) -> list[list[str]]:
    """Returns tags as text; class numbers get the names that the data set declares."""
    names = table.class_names.get(column, ())
    found = []
    for row, values in enumerate(table.columns[column]):
        if isinstance(values, str) or not hasattr(values, "__iter__"):
            raise DataError(f"{table.where(row)}: column {column!r} holds {shorten(values)}, not a list of tags.")
        tags = as_list(values)
        if names and all(isinstance(tag, int) for tag in tags):
            wrong = [tag for tag in tags if not 0 <= tag < len(names)]
            if wrong:
                raise DataError(f"{table.where(row)}: the class number {wrong[0]} is not in 0 to {len(names) - 1}.")
            tags = [names[tag] for tag in tags]
        found.append([str(tag) for tag in tags])
    return found


Sentences = tuple[str, list[list[str]], list[list[str]] | None, list[list[int]]]


def _read_conll(path: Path, config: DataConfig, options: TaskConfig, limit: int, labelled: bool) -> Sentences:
    """Reads a file with a word and its tag a line; returns name, words, tags and lines by sentence."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Give the path with data.train, data.validation or --input.")
    word_place, tag_place = int(options.token_column or 0), int(options.tag_column or -1)
    words: list[list[str]] = []
    tags: list[list[str]] = []
    lines: list[list[int]] = []
    width = 0
    for record in _conll_records(path, config):
        if record is None:
            if not words or words[-1]:
                if limit and len(words) == limit:
                    break
                words.append([])
                tags.append([])
                lines.append([])
            continue
        number, fields = record
        if labelled and (len(fields) < 2 or (width and len(fields) != width)):
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields, but {width or 'at least 2'} are expected: a word and its "
                "tag, by tabs or spaces. Mend the line, or name data.delimiter."
            )
        width = width or len(fields)
        if not -len(fields) <= word_place < len(fields) or (labelled and not -len(fields) <= tag_place < len(fields)):
            raise DataError(
                f"{path}, line {number}: there are {len(fields)} fields, not those of task.token_column and task.tag_column."
            )
        words[-1].append(fields[word_place])
        tags[-1].append(fields[tag_place])
        lines[-1].append(number)
    kept = [index for index, sentence in enumerate(words) if sentence]
    if not kept:
        raise DataError(f"{path}: the file holds no words.")
    pick = lambda values: [values[index] for index in kept]
    return str(path), pick(words), pick(tags) if labelled else None, pick(lines)


def _conll_records(path: Path, config: DataConfig) -> Iterator[tuple[int, list[str]] | None]:
    """Yields line number and fields of every word, and None where a sentence begins."""
    yield None
    for number, line in numbered_lines(path, config.encoding):
        stripped = line.strip()
        if not stripped or stripped.startswith("-DOCSTART-"):
            yield None
        elif re.match(r"# \S+ = |# \S+:", line):
            continue  # a comment of CoNLL-U; a word may well be '#'
        elif config.delimiter or "\t" in line:
            yield number, [field.strip() for field in line.split(config.delimiter or "\t")]
        else:
            yield number, stripped.split()


def _from_words(
    name: str,
    sentences: list[list[str]],
    tags: list[list[str]] | None,
    lines: list[list[int]],
    config: DataConfig,
    options: TaskConfig,
) -> TaggedTexts:
    joined = [join_words(sentence) for sentence in sentences]
    plain = TaggedTexts([text for text, _ in joined], [spans for _, spans in joined], None, None, name, lines)
    for index, sentence in enumerate(sentences):
        if not sentence or not all(word.strip() for word in sentence):
            raise DataError(f"{plain.where(index)}: there is an empty word, or none; remove it.")
        if tags is not None and len(tags[index]) != len(sentence):
            raise DataError(
                f"{plain.where(index)}: there are {len(sentence)} words, but {len(tags[index])} tags; give one for each."
            )
    if tags is None:
        return plain
    if config.label_map:
        tags = [[config.label_map.get(tag, tag) for tag in sentence] for sentence in tags]
    if options.tag_scheme == "tags":
        return dataclasses.replace(plain, tags=tags, scheme="tags")
    _check_tags(plain, tags)
    scheme = options.tag_scheme or detect_scheme(tags)
    if options.tag_scheme:
        _check_scheme(plain, tags, scheme)
    return dataclasses.replace(plain, entities=[decode_tags(sentence) for sentence in tags], scheme=scheme)


def _check_tags(plain: TaggedTexts, tags: Sequence[Sequence[str]]) -> None:
    known = {tag for sentence in tags for tag in sentence if is_entity_tag(tag)}
    for index, sentence in enumerate(tags):
        for word, tag in enumerate(sentence):
            if tag not in known:
                raise DataError(
                    f"{plain.where_word(index, word)}: {tag!r} is no tag of an entity, such as O, B-PER or I-PER."
                    f"{nearest(tag, known)} Mend it, rename it with data.label_map, name the column with task.tag_column, or "
                    "set task.tag_scheme: tags if words have labels of their own."
                )


def _check_scheme(plain: TaggedTexts, tags: Sequence[Sequence[str]], scheme: str) -> None:
    for index, sentence in enumerate(tags):
        fault = find_fault(sentence, scheme)
        if fault is not None:
            raise DataError(
                f"{plain.where_word(index, fault[0])}: {fault[1]}, but task.tag_scheme is {scheme}. Mend the tag, or leave "
                "task.tag_scheme empty to read the file as conlleval does."
            )


def _from_spans(table: Table, config: DataConfig, column: str) -> TaggedTexts:
    texts = list(table.columns[config.text_column])
    words, entities = [], []
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"{table.where(row)}: the text in column {config.text_column!r} is {shorten(text)}, not a text."
            )
        found = _read_spans(table, row, text, column, config) if column else []
        words.append(find_words(text, [end for _, *ends in found for end in ends]))
        entities.append([_on_words(table, row, text, words[-1], span) for span in found])
        ordered = sorted(entities[-1], key=lambda span: span[1])
        for (first, _, end), (second, start, _) in itertools.pairwise(ordered):
            if start < end:
                raise DataError(f"{table.where(row)}: the entities {first!r} and {second!r} overlap; keep one of them.")
    return TaggedTexts(texts, words, None, entities if column else None, table.name, _rows(table), "spans")


def _read_spans(table: Table, row: int, text: str, column: str, config: DataConfig) -> list[Span]:
    spans: list[Span] = []
    for entry in as_list(table.columns[column][row] or []):
        try:
            if isinstance(entry, Mapping):
                label = entry["label"] if "label" in entry else entry["type"]
                start, end = int(entry["start"]), int(entry["end"])
            else:
                start, end, label = int(entry[0]), int(entry[1]), entry[2]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"{table.where(row)}: {shorten(entry)} is no span; give {{start, end, label}} in characters, or such a list."
            ) from error
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise DataError(
                f"{table.where(row)}: the span {start} to {end} is not in the text of {len(text)} characters."
            )
        while text[start].isspace():
            start += 1
        while text[end - 1].isspace():
            end -= 1
        spans.append((config.label_map.get(str(label), str(label)), start, end))
    return spans


def _on_words(table: Table, row: int, text: str, words: Any, span: Span) -> Span:
    label, start, end = span
    first, last = np.flatnonzero(words[:, 0] == start), np.flatnonzero(words[:, 1] == end)
    if not len(first) or not len(last):
        around = text[max(0, start - 10) : end + 10]
        raise DataError(
            f"{table.where(row)}: the span {start} to {end} ({text[start:end]!r}, {label}) begins or ends inside a word of "
            f"{around!r}; move it to the word's border."
        )
    return label, int(first[0]), int(last[0]) + 1
