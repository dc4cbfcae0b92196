"""What a masked language model puts in the place of masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxbert.serve.drift_windows import MOST_OF_A_REQUEST, Outcome
from flaxbert.serve.errors import RequestError
from flaxbert.serve.functions import MASKED, NUM_SLOTS
from flaxbert.serve.operations.work import Subject, Truncation, Work, columns_of, encode
from flaxbert.serve.rows import Row, rows_of
from flaxbert.tasks.base import softmax


def mask_rows(
    subject: Subject, texts: Sequence[str], truncation: Truncation
) -> tuple[list[Row], list[list[tuple[int, int, int]]]]:
    """Returns the rows of texts with masks, and where their masks are.

    Args:
      subject: The model.
      texts: The texts.
      truncation: What happens to texts that are too long.

    Returns:
      Rows, each with the places of up to ``NUM_SLOTS`` masks; and, for each text, row, slot and token of every mask.

    Raises:
      RequestError: A text has no mask.
    """
    subject.require(MASKED, "words for masks")
    features = encode(subject, texts, None, truncation)
    mask = subject.model.tokenizer.mask_token_id
    rows: list[Row] = []
    found: list[list[tuple[int, int, int]]] = []
    for place, row in enumerate(rows_of(features)):
        tokens = np.flatnonzero(row.values["input_ids"] == mask).tolist()
        if not tokens:
            raise RequestError(
                "validation",
                f"Input {place} has no mask; write {subject.model.tokenizer.mask_token} where a word is missing.",
            )
        where = []
        for start in range(0, len(tokens), NUM_SLOTS):
            part = tokens[start : start + NUM_SLOTS]
            where += [(len(rows), slot, token) for slot, token in enumerate(part)]
            slots = np.asarray(part + [part[0]] * (NUM_SLOTS - len(part)), np.int32)
            rows.append(Row(row.values, {"masked_positions": slots}))
        found.append(where)
    return rows, found


def _targets(subject: Subject, words: Sequence[str]) -> list[int]:
    numbers = []
    with subject.tokenizers.borrow() as tokenizer:
        for word in words:
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
            if not ids:
                raise RequestError("validation", f"The target {word!r} has no token.")
            numbers.append(int(ids[0]))
    return list(dict.fromkeys(numbers))


def fill_mask(
    subject: Subject,
    texts: Sequence[str],
    truncation: Truncation = Truncation(),
    *,
    top_k: int = 5,
    targets: Sequence[str] | None = None,
) -> Work:
    """The likeliest words for every mask.

    Args:
      subject: The model.
      texts: Texts with masks.
      truncation: What happens to texts that are too long.
      top_k: Words for each mask.
      targets: Only these words; of a word of several tokens its first.

    Returns:
      Work whose answer is, for each text and each of its masks, a list of ``{"score", "token", "token_str", "sequence"}``.

    Raises:
      RequestError: The model fills no masks, or a text has none.
    """
    if not 1 <= top_k <= subject.model.config.vocab_size:
        raise RequestError("validation", f"top_k is {top_k}, but must lie in 1 to {subject.model.config.vocab_size}.")
    rows, places = mask_rows(subject, texts, truncation)
    chosen = np.asarray(_targets(subject, targets), np.int64) if targets else None

    def words_of(
        results: Sequence[np.ndarray], tokenizer: Any, row: int, slot: int, token: int
    ) -> list[dict[str, Any]]:
        shares = softmax(results[row][slot])
        numbers = np.arange(len(shares)) if chosen is None else chosen
        best = numbers[np.argsort(-shares[numbers], kind="stable")[:top_k]]
        ids = rows[row].values["input_ids"]
        answers = []
        for number in best.tolist():
            filled = np.array(ids)
            filled[token] = number
            answers.append(
                {
                    "score": float(shares[number]),
                    "token": number,
                    "token_str": tokenizer.decode([number]),
                    "sequence": tokenizer.decode(filled.tolist(), skip_special_tokens=True),
                }
            )
        return answers

    def finish(results: Sequence[np.ndarray]) -> list[list[list[dict[str, Any]]]]:
        with subject.tokenizers.borrow() as tokenizer:
            return [[words_of(results, tokenizer, *place) for place in several] for several in places]

    def outcome(answer: list[list[list[dict[str, Any]]]]) -> Outcome:
        return Outcome((), [text[0][0]["score"] for text in answer[:MOST_OF_A_REQUEST]])  # of a text's first mask

    # Of targets that the client chose, a low score says nothing of the text.
    return Work(MASKED, rows, finish, columns_of(texts), None if targets else outcome)
