"""Search with encoders: reranking by a cross-encoder, sparse vectors (SPLADE) and late interaction (ColBERT)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from flaxbert import inference
from flaxbert.errors import ConfigError
from flaxbert.model import Model


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One text in the order of a cross-encoder.

    Attributes:
      index: Its place among the texts that were handed in, from 0.
      score: How well it answers the query, after the model's activation.
      text: The text.
    """

    index: int
    score: float
    text: str


@dataclasses.dataclass(frozen=True)
class SparseVector:
    """Weights of the words of the vocabulary that a text is about; all others have weight 0.

    Attributes:
      indices: Token ids, rising.
      values: Their weights, above 0.
    """

    indices: Int[np.ndarray, "entries"]
    values: Float[np.ndarray, "entries"]

    def dot(self, other: "SparseVector") -> float:
        """Returns the inner product with another vector.

        Args:
          other: The other vector.
        """
        _, mine, theirs = np.intersect1d(self.indices, other.indices, assume_unique=True, return_indices=True)
        return float(self.values[mine] @ other.values[theirs])

    def words(self, tokenizer: Any, most: int = 10) -> list[tuple[str, float]]:
        """Returns the words with the largest weights, largest first; ``[id]`` for ids without a word.

        Args:
          tokenizer: The model's tokenizer.
          most: Number of words.
        """
        order = np.argsort(-self.values, kind="stable")[:most]
        ids = self.indices[order].tolist()
        names = [name or f"[{number}]" for name, number in zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True)]
        return list(zip(names, self.values[order].tolist(), strict=True))


def _require(model: Model, task: str, purpose: str) -> None:
    if model.task != task:
        raise ConfigError(
            f"{purpose} takes a model for '{task}', but this one is for '{model.task}'; load it with task='{task}'."
        )


def _activation_name(extra: Mapping[str, Any]) -> str:
    newer = extra.get("sentence_transformers")
    declared = newer.get("activation_fn") if isinstance(newer, Mapping) else None
    return str(declared or extra.get("sbert_ce_default_activation_function") or "Sigmoid").rsplit(".", 1)[-1]


def activate_scores(extra: Mapping[str, Any], scores: Float[np.ndarray, "pairs"]) -> Float[np.ndarray, "pairs"]:
    """Returns the scores of a cross-encoder after the activation that its folder names.

    Args:
      extra: Further keys of the model's ``config.json``.
      scores: Its logits.

    Raises:
      ConfigError: The activation is not known.
    """
    name = _activation_name(extra)
    if name == "Sigmoid":
        return 1.0 / (1.0 + np.exp(-scores))
    if name != "Identity":
        raise ConfigError(f"The model's activation is {name}; rerank knows Sigmoid and Identity.")
    return scores


def rerank(
    model: Model,
    query: str,
    texts: Sequence[str],
    *,
    top_k: int = 0,
    batch_size: int = 32,
    max_length: int | None = None,
) -> list[Ranked]:
    """Orders texts by how well they answer a query, reading each together with the query.

    Args:
      model: A cross-encoder: sequence classification with one output.
      query: The query.
      texts: The texts.
      top_k: Number of texts to return; 0 for all.
      batch_size: Most pairs computed together.
      max_length: Most tokens of a pair; None: the model's maximum.

    Returns:
      The texts, best first; equal scores in the order in which they came.

    Raises:
      ConfigError: The model is no cross-encoder, or its activation is not known.

    Example:
      >>> rerank(load("cross-encoder/ms-marco-MiniLM-L6-v2"), "who wrote it", ["a", "b"])  # doctest: +SKIP
    """
    _require(model, "sequence-classification", "rerank")
    if model.config.num_labels != 1:
        raise ConfigError(f"rerank takes a model with one output, but this one has {model.config.num_labels} labels.")
    rows = model.run_texts([query] * len(texts), list(texts), inference.logits_of, batch_size, max_length)
    scores = activate_scores(model.config.extra, np.asarray(rows, np.float64).reshape(-1))
    order = np.argsort(-scores, kind="stable")[: top_k or None]
    return [Ranked(int(index), float(scores[index]), texts[int(index)]) for index in order]


def word_weights(output: Any, params: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """Returns the weights of the words of the vocabulary: ``max over tokens of log(1 + relu(logits))`` (Formal et al., 2021).

    Args:
      output: What the network returned.
      params: Parameter tree.
      batch: The batch.
    """
    weights = jnp.log1p(jnp.maximum(output.logits, jnp.float32(0.0)))
    return jnp.max(weights * batch["attention_mask"][:, :, None].astype(jnp.float32), axis=1)


def encode_sparse(
    model: Model, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
) -> list[SparseVector]:
    """Turns texts into weights of vocabulary words: ``max over tokens of log(1 + relu(logits))`` (Formal et al., 2021).

    Args:
      model: A masked language model trained for it (SPLADE).
      texts: The texts.
      batch_size: Most texts computed together.
      max_length: Most tokens of a text; None: the model's maximum.

    Returns:
      One vector per text.

    Raises:
      ConfigError: The model has no masked language head.
    """
    _require(model, "fill-mask", "encode_sparse")
    vectors = []
    for row in model.run_texts(list(texts), None, word_weights, batch_size, max_length):
        indices = np.flatnonzero(row > 0)
        vectors.append(SparseVector(indices, np.asarray(row[indices], np.float32)))
    return vectors


def encode_tokens(
    model: Model, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
) -> list[Float[np.ndarray, "_ projected"]]:
    """Turns texts into a vector of length 1 for each token, special tokens included (Khattab and Zaharia, 2020).

    Args:
      model: A model for late-interaction.
      texts: The texts, with the markers that the model was trained with.
      batch_size: Most texts computed together.
      max_length: Most tokens of a text; None: the model's maximum.

    Returns:
      float32 vectors per text.

    Raises:
      ConfigError: The model has no projection for late interaction.
    """
    _require(model, "late-interaction", "encode_tokens")
    return model.run_texts(list(texts), None, inference.logits_of, batch_size, max_length, keep_length=True)


def late_interaction(
    queries: Sequence[Float[np.ndarray, "_ projected"]], texts: Sequence[Float[np.ndarray, "_ projected"]]
) -> Float[np.ndarray, "queries texts"]:
    """Scores texts for queries: for each token of the query its best match in the text, summed.

    Args:
      queries: Token vectors per query.
      texts: Token vectors per text.

    Returns:
      float32 scores.
    """
    scores = np.zeros((len(queries), len(texts)), np.float32)
    for column, text in enumerate(texts):
        for row, query in enumerate(queries):
            scores[row, column] = (query @ text.T).max(axis=1).sum()
    return scores
