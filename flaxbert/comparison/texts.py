"""What models are run on where no labelled examples are needed: texts, and batches of a given size."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxbert.config import DataConfig
from flaxbert.data.batches import collate
from flaxbert.data.tokenization import TokenizedExamples, tokenize
from flaxbert.evaluation.predict import read_texts
from flaxbert.families.graph import INPUT_NAMES
from flaxbert.model import Model

FIRST_TOKEN = 5
"""Ids below this are mostly special tokens; drawn ids begin here where no tokenizer says which are."""


def make_texts(tokenizer: Any, num_texts: int, num_tokens: int, seed: int = 0) -> list[str]:
    """Returns texts of words drawn from a tokenizer's vocabulary, of different lengths.

    Args:
      tokenizer: A tokenizer of transformers.
      num_texts: Number of texts.
      num_tokens: Drawn tokens of the longest; the shortest has half of them.
      seed: Seed of the draw.
    """
    special = set(tokenizer.all_special_ids)
    known = np.array([number for number in range(len(tokenizer)) if number not in special])
    random = np.random.default_rng(seed)
    lengths = random.integers(max(1, num_tokens // 2), num_tokens + 1, num_texts)
    texts = [tokenizer.decode(random.choice(known, length).tolist()) for length in lengths]
    return [text if text.strip() else "." for text in texts]


def texts_for(
    tokenizer: Any, file: str, config: DataConfig, known: Sequence[str], num_texts: int, num_tokens: int, seed: int
) -> list[str]:
    """Returns the texts of a file, else those of labelled examples, else made-up ones.

    Args:
      tokenizer: As for ``make_texts``.
      file: File of texts; empty takes others.
      config: Column of the texts in a table.
      known: Texts of labelled examples; empty makes texts.
      num_texts: Most texts.
      num_tokens: As for ``make_texts``.
      seed: As for ``make_texts``.

    Raises:
      DataError: The file can not be read or holds no text.
    """
    if file:
        return read_texts((), file, config.text_column, "")[0][:num_texts]
    return list(known[:num_texts]) or make_texts(tokenizer, num_texts, num_tokens, seed)


def random_examples(model: Model, num_texts: int, num_tokens: int, seed: int) -> TokenizedExamples:
    """Returns rows of drawn ids, for a model without tokenizer.

    Args:
      model: The model.
      num_texts: Number of rows.
      num_tokens: Tokens of the longest.
      seed: Seed of the draw.
    """
    random, vocabulary = np.random.default_rng(seed), model.config.vocab_size
    lengths = random.integers(max(1, num_tokens // 2), num_tokens + 1, num_texts)
    ids = random.integers(min(FIRST_TOKEN, vocabulary - 1), vocabulary, int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    cut = np.zeros(num_texts, bool)
    return TokenizedExamples(ids, None, offsets, cut, pad_token_id=model.config.pad_token_id)


def tokenized(model: Model, texts: Sequence[str], max_length: int) -> TokenizedExamples:
    """Returns texts as a model reads them.

    Args:
      model: A model with a tokenizer.
      texts: The texts.
      max_length: Most tokens of one.
    """
    return tokenize(model.tokenizer, list(texts), max_length=max_length, warn=False)


def padded_batch(task: str, examples: TokenizedExamples) -> dict[str, np.ndarray]:
    """Returns all examples as one batch, as the network of a task takes it.

    Args:
      task: Canonical task name.
      examples: Texts as tokens.
    """
    rows = np.arange(len(examples.lengths))
    batch = collate(examples, rows, int(examples.lengths.max()))
    return fit_task(task, {name: array for name, array in batch.items() if name in INPUT_NAMES})


def full_batch(model: Model, examples: TokenizedExamples, num_rows: int, length: int) -> dict[str, np.ndarray]:
    """Returns a batch without padding: every row has exactly ``length`` tokens, cut out of the texts one after the other.

    Args:
      model: The model.
      examples: Texts as its tokens, with special tokens around each.
      num_rows: Rows of the batch.
      length: Tokens of a row, special ones included; at least 3.
    """
    bounds = zip(examples.offsets[:-1], examples.offsets[1:], strict=True)
    inner = [examples.input_ids[start + 1 : end - 1] for start, end in bounds]
    stream = np.concatenate(inner) if sum(map(len, inner)) else examples.input_ids
    first, last = examples.input_ids[0], examples.input_ids[examples.offsets[1] - 1]
    middle = np.resize(stream, (num_rows, length - 2))
    ends = [np.full((num_rows, 1), token, np.int32) for token in (first, last)]
    ids = np.concatenate([ends[0], middle, ends[1]], axis=1).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if model.config.type_vocab_size:
        batch["token_type_ids"] = np.zeros_like(ids)
    return fit_task(model.task, batch)


def fit_task(task: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a batch of single texts in the form that a task's network takes.

    Args:
      task: Canonical task name.
      batch: Inputs ``[rows, length]``.

    Returns:
      The batch; multiple choice gets one choice a row, relation classification two entities of one token.
    """
    if task == "multiple-choice":
        return {name: array[:, None] for name, array in batch.items()}
    if task == "relation-classification":
        mask = np.zeros_like(batch["input_ids"])
        mask[:, 0], mask[:, 1] = 1, 2
        return {**batch, "entity_mask": mask}
    return batch
