"""Vectors: of texts, of their tokens, of the words that they are about, and how similar texts are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxbert.errors import ConfigError
from flaxbert.serve.errors import RequestError
from flaxbert.serve.functions import POOL_MASK, SPARSE, TOKENS, VECTORS
from flaxbert.serve.operations.work import Columns, Subject, Truncation, Work, columns_of, encode
from flaxbert.serve.rows import Row, rows_of
from flaxbert.weights.sentence_transformers import SentencePooling

Inputs = Sequence[str] | Sequence[Sequence[int]]
"""Texts, or token ids with special tokens."""


def _prompted(subject: Subject, name: str | None) -> tuple[str, int]:
    """Returns the prompt that stands before every text, and how many first tokens are not pooled."""
    pooling = subject.model.pooling or SentencePooling()
    try:
        lead = pooling.find_prompt(name)
    except ConfigError as error:
        raise RequestError("validation", str(error)) from error
    if not lead or pooling.include_prompt:
        return lead, 0
    with subject.tokenizers.borrow() as tokenizer:
        return lead, len(tokenizer(lead)["input_ids"]) - 1  # all but the closing special token


def _rows_of_ids(subject: Subject, inputs: Sequence[Sequence[int]], truncation: Truncation) -> list[Row]:
    rows = []
    for place, ids in enumerate(inputs):
        numbers = np.asarray(ids, np.int64)
        if not len(numbers):
            raise RequestError("validation", f"Input {place} is empty.")
        if numbers.min() < 0 or numbers.max() >= subject.model.config.vocab_size:
            raise RequestError(
                "validation",
                f"Input {place} holds a token id outside of 0 to {subject.model.config.vocab_size - 1}.",
            )
        if len(numbers) > subject.max_length:
            if not truncation.allowed:
                raise RequestError("validation", f"Input {place} has more than {subject.max_length} tokens.")
            numbers = numbers[: subject.max_length]
        rows.append(Row({"input_ids": numbers.astype(np.int32)}))
    return rows


def rows_of_inputs(
    subject: Subject, inputs: Inputs, truncation: Truncation, lead: str = ""
) -> tuple[list[Row], Columns]:
    """Returns the rows of texts or token ids, and the texts as ``Work`` takes them.

    Args:
      subject: The model.
      inputs: Texts, or token ids.
      truncation: What happens to inputs that are too long.
      lead: Prompt before every text.

    Raises:
      RequestError: An input is empty, too long, or no input of this model.
    """
    if inputs and not isinstance(inputs[0], str):
        return _rows_of_ids(subject, inputs, truncation), ()  # type: ignore[arg-type]
    texts = [str(text) for text in inputs]
    if lead:
        for place, text in enumerate(texts):
            if not text:
                raise RequestError("validation", f"Input {place} is empty.")
    features = encode(subject, [lead + text for text in texts], None, truncation)
    return rows_of(features), columns_of(texts)


def normalize_rows(vectors: np.ndarray) -> np.ndarray:
    """Returns float32 vectors of length 1.

    Args:
      vectors: One a row.
    """
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def embed(
    subject: Subject,
    inputs: Inputs,
    truncation: Truncation = Truncation(),
    *,
    prompt_name: str | None = None,
    normalize: bool = True,
    dimensions: int | None = None,
) -> Work:
    """Vectors of texts, as ``Model.encode`` makes them.

    Args:
      subject: The model.
      inputs: Texts, or token ids.
      truncation: What happens to texts that are too long.
      prompt_name: Name of a prompt of the model's folder.
      normalize: Whether vectors get length 1.
      dimensions: First entries to keep of each vector, for models that were trained for it; None keeps all.

    Returns:
      Work whose answer is float32 ``[texts, entries]``.

    Raises:
      RequestError: The model makes no vectors, or an argument does not fit it.
    """
    subject.require(VECTORS, "vectors of texts")
    pooling = subject.model.pooling or SentencePooling()
    width = pooling.output_size(subject.model.config.hidden_size)
    if dimensions is not None and not 1 <= dimensions <= width:
        raise RequestError("validation", f"dimensions is {dimensions}, but the model's vectors have 1 to {width}.")
    lead, num_skipped = _prompted(subject, prompt_name)
    rows, given = rows_of_inputs(subject, inputs, truncation, lead)
    pooled = [_with_pool_mask(row, num_skipped) for row in rows]

    def finish(results: Sequence[np.ndarray]) -> np.ndarray:
        vectors = pooling.apply_dense(np.stack(results))[:, :dimensions]
        return normalize_rows(vectors) if normalize else np.asarray(vectors, np.float32)

    return Work(VECTORS, pooled, finish, given)


def _with_pool_mask(row: Row, num_skipped: int) -> Row:
    mask = np.ones(row.length, np.int32)
    mask[:num_skipped] = 0
    return Row({**row.values, POOL_MASK: mask})


def embed_tokens(
    subject: Subject, inputs: Inputs, truncation: Truncation = Truncation(), *, prompt_name: str | None = None
) -> Work:
    """A vector for each token, special tokens included.

    Args:
      subject: The model.
      inputs: Texts, or token ids.
      truncation: What happens to texts that are too long.
      prompt_name: Name of a prompt of the model's folder.

    Returns:
      Work whose answer is a list of float32 ``[tokens, entries]``.

    Raises:
      RequestError: The model makes no vectors of tokens.
    """
    subject.require(TOKENS, "vectors of tokens")
    lead, _ = _prompted(subject, prompt_name)
    rows, given = rows_of_inputs(subject, inputs, truncation, lead)
    return Work(TOKENS, rows, list, given)


def embed_sparse(subject: Subject, inputs: Inputs, truncation: Truncation = Truncation()) -> Work:
    """Weights of the words that texts are about, as ``retrieval.encode_sparse`` gives them.

    Args:
      subject: The model.
      inputs: Texts, or token ids.
      truncation: What happens to texts that are too long.

    Returns:
      Work whose answer is, for each text, a list of ``{"index", "value"}``.

    Raises:
      RequestError: The model weighs no words.
    """
    subject.require(SPARSE, "weights of words")
    rows, given = rows_of_inputs(subject, inputs, truncation)

    def finish(results: Sequence[np.ndarray]) -> list[list[dict[str, Any]]]:
        answers = []
        for row in results:
            places = np.flatnonzero(row > 0)
            answers.append(
                [{"index": int(place), "value": float(value)} for place, value in zip(places, row[places], strict=True)]
            )
        return answers

    return Work(SPARSE, rows, finish, given)


def similarity(
    subject: Subject,
    source: str,
    sentences: Sequence[str],
    truncation: Truncation = Truncation(),
    *,
    prompt_name: str | None = None,
) -> Work:
    """Cosines of one text and others.

    Args:
      subject: The model.
      source: The one.
      sentences: The others.
      truncation: What happens to texts that are too long.
      prompt_name: Name of a prompt of the model's folder.

    Returns:
      Work whose answer is a list of numbers from -1 to 1.

    Raises:
      RequestError: The model makes no vectors.
    """
    work = embed(subject, [source, *sentences], truncation, prompt_name=prompt_name)

    def finish(results: Sequence[np.ndarray]) -> list[float]:
        vectors = work.finish(results)
        return [float(value) for value in vectors[1:] @ vectors[0]]

    return Work(work.function, work.rows, finish, work.texts)
