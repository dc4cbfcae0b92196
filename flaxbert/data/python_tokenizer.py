"""Where tokens stand in a text, for tokenizers that are written in Python and do not tell it, such as BERTweet's."""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Sequence
from typing import Any

from flaxbert.errors import ConfigError

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The tokens of a text, without special ones.

    Attributes:
      ids: Their ids.
      spans: First character of each and the one after its last. Where the tokenizer has rewritten a part of the text, the
        first of its tokens stands for the whole part and the others for nothing at its end.
    """

    ids: list[int]
    spans: list[Span]


@dataclasses.dataclass(frozen=True)
class PythonEncoding:
    """One window, with the attributes of an encoding of ``tokenizers`` that windows are made from.

    Attributes:
      ids: Token ids, special tokens included.
      type_ids: Token types.
      offsets: Where each token stands in its text; 0, 0 for special ones.
      sequence_ids: 0 for the first text, 1 for the second, None for special tokens.
    """

    ids: list[int]
    type_ids: list[int]
    offsets: list[Span]
    sequence_ids: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)


def require_pieces(tokenizer: Any) -> None:
    """Refuses a tokenizer whose tokens can not be found in a text.

    Args:
      tokenizer: A tokenizer that is not fast.

    Raises:
      ConfigError: It has no method that shows the tokens of a text, or none that adds the special ones.
    """
    needed = (
        "tokenize",
        "convert_tokens_to_ids",
        "build_inputs_with_special_tokens",
        "create_token_type_ids_from_sequences",
    )
    if not all(hasattr(tokenizer, name) for name in needed):
        raise ConfigError(
            f"The tokenizer {type(tokenizer).__name__} is not a fast one and lacks {', '.join(needed)}, so it can not be told "
            "where its tokens stand in a text."
        )


def text_pieces(tokenizer: Any, text: str) -> Pieces:
    """Tokenizes a text and finds every token in it.

    The tokens are those of the whole text. Each is assigned to the word between blanks whose own tokens are the same, and
    found inside the word by its characters.

    Args:
      tokenizer: A tokenizer of transformers that is written in Python.
      text: The text.

    Returns:
      The tokens, without special ones.
    """
    tokens: list[str] = tokenizer.tokenize(text)
    words = [match.span() for match in re.finditer(r"\S+", text)]
    owners = _owners(tokens, [tokenizer.tokenize(text[start:end]) for start, end in words])
    spans: list[Span] = []
    for word, group in itertools.groupby(zip(owners, tokens, strict=True), key=lambda pair: pair[0]):
        start, end = words[word]
        spans += [(start + a, start + b) for a, b in _inside(text[start:end], [token for _, token in group])]
    return Pieces(list(tokenizer.convert_tokens_to_ids(tokens)), spans)


def _owners(tokens: Sequence[str], alone: Sequence[Sequence[str]]) -> list[int]:
    """Returns the number of the word that each token belongs to, rising, given the tokens of every word alone."""
    flat = [(token, word) for word, several in enumerate(alone) for token in several]
    if [token for token, _ in flat] == list(tokens):
        return [word for _, word in flat]
    matcher = difflib.SequenceMatcher(None, [token for token, _ in flat], tokens, autojunk=False)
    owners: list[int] = []
    for _, start, end, first, after in matcher.get_opcodes():
        # Tokens that no word gives alone belong to the words whose tokens they replace, or to the one before.
        places = [min(start + step, end - 1) if end > start else start - 1 for step in range(after - first)]
        owners += [flat[max(place, 0)][1] if flat else 0 for place in places]
    return owners


def _inside(word: str, tokens: Sequence[str]) -> list[Span]:
    """Returns where the tokens of a word stand in it."""
    spans: list[Span] = []
    waiting, cursor = 0, 0
    for surface in [token.removesuffix("@@") for token in tokens]:
        place = word.find(surface, cursor) if surface else -1
        if place < 0:
            waiting += 1
            continue
        spans += _share(cursor, place, waiting)
        waiting, cursor = 0, place + len(surface)
        spans.append((place, cursor))
    return spans + _share(cursor, len(word), waiting)


def _share(start: int, end: int, count: int) -> list[Span]:
    return [(start, end), *[(end, end)] * (count - 1)] if count else []


def cut_pieces(tokenizer: Any, first: Pieces | None, text: Pieces, room: int, stride: int) -> list[PythonEncoding]:
    """Cuts a text into windows as the tokenizers library does it.

    Args:
      tokenizer: A tokenizer of transformers that is written in Python.
      first: What stands whole before every window, or None.
      text: What is cut.
      room: Tokens of the text that fit into a window.
      stride: Tokens that neighbouring windows share; less than ``room``.

    Returns:
      The windows; one for a text without tokens.
    """
    windows = []
    for start in range(0, max(len(text.ids) - stride, 1), room - stride):
        part = Pieces(text.ids[start : start + room], text.spans[start : start + room])
        windows.append(_assemble(tokenizer, [part] if first is None else [first, part]))
    return windows


def _assemble(tokenizer: Any, parts: Sequence[Pieces]) -> PythonEncoding:
    # Negative numbers show where the tokenizer puts the texts among its special tokens.
    template = tokenizer.build_inputs_with_special_tokens(*([-1 - number] for number in range(len(parts))))
    lists = [part.ids for part in parts]
    ids: list[int] = []
    offsets: list[Span] = []
    sequence_ids: list[int | None] = []
    for number in template:
        part = None if number >= 0 else parts[-1 - number]
        ids += [number] if part is None else part.ids
        offsets += [(0, 0)] if part is None else part.spans
        sequence_ids += [None] if part is None else [-1 - number] * len(part.ids)
    return PythonEncoding(ids, list(tokenizer.create_token_type_ids_from_sequences(*lists)), offsets, sequence_ids)
