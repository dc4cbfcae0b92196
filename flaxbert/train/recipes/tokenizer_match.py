"""Whether two tokenizers give the same ids."""

from typing import Any

from flaxbert.data.tokenization import tokenize

_LONG = 4096
"""More tokens than any of the texts has."""

SAMPLE = (
    "A fine film, isn't it?",
    "ÜBER-größe naïve façade 1,234.56 €",
    "the quick brown fox jumps over the lazy dog 0123456789",
    "电影很好看。 Фильм хорош! 映画は面白い",
    "unaffable   antidisestablishmentarianism\t(re-)tokenization_of words/and#signs",
)
"""Texts whose ids are compared: accents, case, numbers, scripts, blanks and signs."""


def difference_of_tokenizers(first: Any, second: Any) -> str:
    """Returns how two tokenizers differ, or an empty text where they give the same ids.

    Args:
      first: A fast tokenizer of transformers, or None.
      second: Another one.
    """
    if first is None or second is None:
        return "" if first is second else "only one of them has a tokenizer"
    if first is second:
        return ""
    own, theirs = first.get_vocab(), second.get_vocab()
    if own != theirs:
        word = next((word for word in own if theirs.get(word) != own[word]), None)
        if word is None:
            word = next(word for word in theirs if word not in own)
        return (
            f"{len(own)} and {len(theirs)} pieces, and '{word}' is {own.get(word, 'in none')} in the first and "
            f"{theirs.get(word, 'in none')} in the second"
        )
    for text in SAMPLE:
        ids = [tokenize(tokenizer, [text], max_length=_LONG).input_ids.tolist() for tokenizer in (first, second)]
        if ids[0] != ids[1]:
            return f"the same pieces, but other ids for {text!r}"
    return ""
