"""Which tokens begin a word, for vocabularies of every kind, without the text."""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from flaxbert.errors import ConfigError, DataError

Segmenter = Callable[[str], Sequence[str]]
"""Cuts a text into its words; what lies between words may be left out."""

_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2FA1F),  # Chinese characters
)
_UNSPACED = "[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in _RANGES) + "]"
"""Characters of scripts that put no blanks between words."""


@dataclasses.dataclass(frozen=True)
class WordTable:
    """What a vocabulary says of the borders of words.

    A token begins a word if it ``starts`` one or the token before ``ends`` one.

    Attributes:
      starts: Whether each token begins a word, whatever stands before it.
      ends: Whether each token is the last of its word, whatever comes after it.
      special: Whether each token is a special one, which belongs to no word.
    """

    starts: Bool[np.ndarray, "vocab"]
    ends: Bool[np.ndarray, "vocab"]
    special: Bool[np.ndarray, "vocab"]

    def word_starts(self, input_ids: Int[np.ndarray, "*batch length"]) -> Bool[np.ndarray, "*batch length"]:
        """Returns which tokens begin a word; the first of a row and special tokens do.

        Args:
          input_ids: Token ids.
        """
        found = self.starts[input_ids]
        found[..., 1:] |= self.ends[input_ids[..., :-1]]
        found[..., :1] = True
        return found


def word_table(tokenizer: Any, *, needs_words: bool = True) -> WordTable:
    """Reads the borders of words off a vocabulary.

    WordPiece marks tokens that go on with ``##``, byte pairs and unigrams mark those that begin with a sign for the blank, and
    BERTweet marks those after which the word goes on with ``@@``. Tokens of punctuation alone, and of scripts without blanks, are
    words of their own in all of them, as BERT's tokenizer has it.

    Args:
      tokenizer: A tokenizer of transformers.
      needs_words: Whether a vocabulary without marks is refused; otherwise every token is a word.

    Returns:
      The table, one entry for each id up to the largest.

    Raises:
      ConfigError: The vocabulary marks neither.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    size = max(vocabulary.values()) + 1
    starts, ends, special = (np.zeros(size, np.bool_) for _ in range(3))
    special[[number for number in tokenizer.all_special_ids if number is not None and number < size]] = True
    if not needs_words:
        return WordTable(~starts, ends, special)
    begins, finishes, surface = _marks(tokenizer, vocabulary)
    added = set(getattr(tokenizer, "added_tokens_decoder", {}))  # whole words that were put beside the vocabulary
    for token, number in vocabulary.items():
        alone = special[number] or number in added or _stands_alone(surface(token))
        starts[number] = alone or begins(token)
        ends[number] = alone or finishes(token)
    return WordTable(starts, ends, special)


def unspaced_tokens(tokenizer: Any) -> Bool[np.ndarray, "vocab"]:
    """Returns which tokens are characters of scripts that put no blanks between words, of which only a segmenter knows the words.

    Args:
      tokenizer: A tokenizer of transformers.

    Returns:
      One entry for each id up to the largest.

    Raises:
      ConfigError: The vocabulary does not mark words.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    found = np.zeros(max(vocabulary.values()) + 1, np.bool_)
    surface = _marks(tokenizer, vocabulary)[2]
    found[[number for token, number in vocabulary.items() if _is_unspaced(surface(token))]] = True
    return found


_Test = Callable[[str], bool]


def _marks(tokenizer: Any, vocabulary: dict[str, int]) -> tuple[_Test, _Test, Callable[[str], str]]:
    """Returns what begins a word, what ends one, and what a token looks like without its mark."""

    def never(token: str) -> bool:
        return False

    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    prefix = getattr(model, "continuing_subword_prefix", None)
    suffix = getattr(model, "end_of_word_suffix", None)
    if prefix:
        return lambda token: not token.startswith(prefix), never, lambda token: token.removeprefix(prefix)
    if suffix:
        return never, lambda token: token.endswith(suffix), lambda token: token.removesuffix(suffix)
    if model is None and any(token.endswith("@@") for token in vocabulary):
        return never, lambda token: not token.endswith("@@"), lambda token: token.removesuffix("@@")
    blank = next((sign for sign in ("Ġ", "▁") if any(token.startswith(sign) for token in vocabulary)), "")
    if blank:
        read = _bytes_as_text if blank == "Ġ" else str
        return lambda token: token.startswith(blank), never, lambda token: read(token.removeprefix(blank))
    raise ConfigError(
        f"The vocabulary of {type(tokenizer).__name__} marks neither where words begin nor where they go on, so whole words can "
        "not be masked; set masking.unit: token."
    )


def _stands_alone(text: str) -> bool:
    return _is_unspaced(text) or (bool(text) and all(unicodedata.category(sign)[0] in "PS" for sign in text))


def spaced_words(text: str) -> list[str]:
    """Returns the words between blanks; of scripts without blanks, every character.

    Args:
      text: The text.

    Example:
      >>> spaced_words("the 模型 x")
      ['the', '模', '型', 'x']
    """
    return re.sub(_UNSPACED, r" \g<0> ", text).split()


def _is_unspaced(text: str) -> bool:
    return re.fullmatch(f"{_UNSPACED}+", text) is not None


def _bytes_as_text(token: str) -> str:
    """Returns the text of a token of byte pairs, whose characters stand for bytes; empty for a part of a character."""
    try:
        return bytes(_BYTES[character] for character in token).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return ""


def _byte_characters() -> dict[str, int]:
    """Returns the byte that each character stands for in byte pairs (Radford et al., 2019): printable ones for themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_characters()


def segmented_starts(
    text: str, spans: Int[np.ndarray, "tokens ends"], segment: Segmenter
) -> Bool[np.ndarray, "tokens"]:
    """Returns which tokens of a text begin a word that a segmenter finds, such as a Chinese one.

    Args:
      text: The text.
      spans: First character and the one after the last of each token.
      segment: Cuts the text into words.

    Raises:
      DataError: The segmenter's words do not stand in the text one after the other.

    Example:
      >>> segmented_starts("模型训练", np.array([[0, 1], [1, 2], [2, 3], [3, 4]]), lambda text: ["模型", "训练"]).tolist()
      [True, False, True, False]
    """
    begins = np.zeros(len(text) + 1, np.bool_)
    position = 0
    for word in segment(text):
        found = text.find(word, position) if word else position
        if found < 0:
            raise DataError(
                f"The segmenter says '{word}' is the next word after '{text[max(0, position - 10) : position]}', but it does not "
                "come there; a segmenter must return parts of the text in their order."
            )
        begins[found] = True
        position = found + len(word)
        begins[position] = True
    starts = spans[:, 0]
    inside = np.cumsum(begins)  # number of borders up to each character
    before = np.concatenate([[-1], inside[np.maximum(spans[:-1, 1] - 1, 0)]]) if len(spans) else inside[:0]
    return inside[starts] > before
