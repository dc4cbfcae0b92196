"""Tokens of texts and texts of tokens; nothing is computed."""

from collections.abc import Sequence
from typing import Any

from flaxbert.serve.errors import RequestError
from flaxbert.serve.operations.work import Subject


def tokenize_texts(
    subject: Subject, texts: Sequence[str], *, add_special_tokens: bool = True, lead: str = ""
) -> list[list[dict[str, Any]]]:
    """Returns the tokens of texts, not truncated.

    Args:
      subject: The model.
      texts: The texts.
      add_special_tokens: Whether special tokens are added.
      lead: Prompt before every text.

    Returns:
      For each text, a list of ``{"id", "text", "special", "start", "stop"}``; special tokens have no place.

    Raises:
      RequestError: The tokenizer does not tell where tokens stand.
    """
    with subject.tokenizers.borrow() as tokenizer:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise RequestError("backend", "The model's tokenizer does not show where tokens stand.")
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch([lead + text for text in texts], add_special_tokens=add_special_tokens)
    return [
        [
            {
                "id": number,
                "text": token if special else (lead + text)[start:end],
                "special": bool(special),
                "start": None if special else start,
                "stop": None if special else end,
            }
            for number, token, special, (start, end) in zip(
                encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
            )
        ]
        for text, encoding in zip(texts, encodings, strict=True)
    ]


def decode_ids(subject: Subject, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
    """Returns the texts of token ids.

    Args:
      subject: The model.
      ids: Token ids of each text.
      skip_special_tokens: Whether special tokens are left out.

    Raises:
      RequestError: An id is none of the vocabulary.
    """
    limit = subject.model.config.vocab_size
    for place, several in enumerate(ids):
        if any(not 0 <= number < limit for number in several):
            raise RequestError("validation", f"Input {place} holds a token id outside of 0 to {limit - 1}.")
    with subject.tokenizers.borrow() as tokenizer:
        return [tokenizer.decode(list(several), skip_special_tokens=skip_special_tokens) for several in ids]
