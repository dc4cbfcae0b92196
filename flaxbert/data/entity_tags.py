"""Entities as tags of words (IOB1, IOB2, IOBES and its names BIOES, BILOU) and as spans of words."""

import re
from collections.abc import Sequence

from flaxbert.errors import DataError

Span = tuple[str, int, int]
"""Label of an entity, its first word, and the one after its last."""

_TAG = re.compile(r"O|[BIESLUM]-.+")
_RENAMED = {"L": "E", "U": "S", "M": "I"}

FIRST_LETTERS: dict[str, str] = {"iob1": "IB", "iob2": "BI", "iobes": "BIES"}
"""The letters of each scheme."""


def is_entity_tag(tag: str) -> bool:
    """Returns whether a tag is O or a letter of a scheme with a label.

    Args:
      tag: For example ``B-PER``.
    """
    return _TAG.fullmatch(tag) is not None


def split_tag(tag: str) -> tuple[str, str]:
    """Returns the letter of a tag, in the words of IOBES, and its label; ``("O", "")`` for no entity.

    Args:
      tag: For example ``U-PER``.
    """
    letter, _, label = tag.partition("-")
    return _RENAMED.get(letter, letter), label


def scheme_of(names: Sequence[str]) -> str:
    """Returns the scheme that a tagger with these tags writes: iobes where it has ends or singles, else iob2.

    Args:
      names: Its tags.
    """
    return "iobes" if any(split_tag(name)[0] in ("E", "S") for name in names) else "iob2"


def decode_tags(tags: Sequence[str]) -> list[Span]:
    """Returns the entities of a sentence as conlleval and seqeval by default read them, whatever the scheme.

    An entity begins at B and S, after an end, and wherever the label changes, so that faulty sequences have entities too.

    Args:
      tags: One per word.

    Example:
      >>> decode_tags(["I-PER", "I-PER", "O", "B-LOC", "I-PER"])
      [('PER', 0, 2), ('LOC', 3, 4), ('PER', 4, 5)]
    """
    spans: list[Span] = []
    start, before, label_before = 0, "O", ""
    for index, tag in enumerate([*tags, "O"]):
        letter, label = split_tag(tag)
        changes = label != label_before
        if before != "O" and (before in "ES" or letter in "BSO" or changes):
            spans.append((label_before, start, index))
        if letter != "O" and (letter in "BS" or before in "ESO" or changes):
            start = index
        before, label_before = letter, label
    return spans


def decode_strict(tags: Sequence[str], scheme: str) -> list[Span]:
    """Returns the entities of a sentence that are written without a fault, as seqeval's strict mode does.

    Args:
      tags: One per word.
      scheme: iob1, iob2 or iobes.
    """
    parts = [split_tag(tag) for tag in tags]
    spans: list[Span] = []
    index = 0
    while index < len(parts):
        letter, label = parts[index]
        end = index + 1
        if not _starts(parts, index, scheme):
            index = end
            continue
        if scheme == "iobes":
            while letter == "B" and end < len(parts) and parts[end] == ("I", label):
                end += 1
            closed = letter == "S"
            if letter == "B" and end < len(parts) and parts[end] == ("E", label):
                closed, end = True, end + 1
        else:
            closed = True
            while end < len(parts) and parts[end] == ("I", label):
                end += 1
        if closed:
            spans.append((label, index, end))
        index = end
    return spans


def _starts(parts: Sequence[tuple[str, str]], index: int, scheme: str) -> bool:
    letter, label = parts[index]
    if scheme == "iob1":
        before = parts[index - 1] if index else ("O", "")
        return letter == "I" or (letter == "B" and before[1] == label)
    return letter in ("BS" if scheme == "iobes" else "B")


def find_fault(tags: Sequence[str], scheme: str) -> tuple[int, str] | None:
    """Returns the first word whose tag can not follow under a scheme, and why; None where all can.

    Args:
      tags: One per word.
      scheme: iob1, iob2 or iobes.
    """
    before = ("O", "")
    for index, tag in enumerate([*tags, "O"]):
        letter, label = split_tag(tag)
        shown = tag if index < len(tags) else "the end"
        inside = before[0] in "BI" and before[1] == label
        if letter != "O" and letter not in FIRST_LETTERS[scheme]:
            return index, f"the tag {tag!r} is none of {scheme}"
        if scheme == "iob2" and letter == "I" and not inside:
            return index, f"the tag {tag!r} continues no entity of its label"
        if scheme == "iob1" and letter == "B" and before[1] != label:
            return index, f"the tag {tag!r} follows no entity of its label, from which B would part it"
        if scheme == "iobes":
            if letter in "IE" and not inside:
                return index, f"the tag {tag!r} continues no entity of its label"
            if before[0] in "BI" and (letter not in "IE" or not inside):
                return min(index, len(tags) - 1), f"the entity {before[1]!r} is not ended before {shown}"
        before = (letter, label)
    return None


def detect_scheme(sentences: Sequence[Sequence[str]]) -> str:
    """Returns the scheme that tags seem to be written in.

    iobes where a tag has one of its letters; iob1 where some entity starts with I and no B stands after another label or
    none; else iob2.

    Args:
      sentences: Tags by sentence.
    """
    letters = {tag[:1] for tags in sentences for tag in tags}
    if letters & set("ESLU"):
        return "iobes"
    if any(find_fault(tags, "iob2") for tags in sentences) and not any(find_fault(tags, "iob1") for tags in sentences):
        return "iob1"
    return "iob2"


def encode_spans(spans: Sequence[Span], num_words: int, scheme: str) -> list[str]:
    """Returns the tags that stand for entities.

    Args:
      spans: Entities that do not overlap.
      num_words: Number of words.
      scheme: iob1, iob2 or iobes.

    Raises:
      DataError: Two entities overlap, or one lies outside the words.

    Example:
      >>> encode_spans([("PER", 1, 3)], 4, "iobes")
      ['O', 'B-PER', 'E-PER', 'O']
    """
    tags = ["O"] * num_words
    ordered = sorted(spans, key=lambda span: span[1])
    for place, (label, start, end) in enumerate(ordered):
        if not 0 <= start < end <= num_words:
            raise DataError(f"The entity {label!r} has the words {start} to {end}, but there are {num_words}.")
        if place and ordered[place - 1][2] > start:
            raise DataError(f"The entities {ordered[place - 1][0]!r} and {label!r} overlap at word {start}.")
        parts = [f"I-{label}"] * (end - start)
        if scheme == "iobes" and end - start == 1:
            parts = [f"S-{label}"]
        elif scheme == "iobes":
            parts[0], parts[-1] = f"B-{label}", f"E-{label}"
        elif scheme == "iob2" or (place and ordered[place - 1][0] == label and ordered[place - 1][2] == start):
            parts[0] = f"B-{label}"
        tags[start:end] = parts
    return tags


def tag_names(labels: Sequence[str], scheme: str) -> tuple[str, ...]:
    """Returns the tags of a scheme for some labels, O first.

    Args:
      labels: Labels of entities, in order.
      scheme: iob2 or iobes.
    """
    return ("O", *(f"{letter}-{label}" for label in labels for letter in FIRST_LETTERS[scheme]))
