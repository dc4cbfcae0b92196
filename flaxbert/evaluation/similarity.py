"""How well a sentence encoder's similarities agree with people's scores of pairs, as in STS-B."""

import numpy as np
from jaxtyping import Float

from flaxbert.config import DataConfig
from flaxbert.data.columns import LabelSet, encode_labels, read_examples
from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation.metrics import METRICS
from flaxbert.evaluation.score import Judged
from flaxbert.model import Model
from flaxbert.tasks.base import Scored, no_report

CORRELATIONS = ("spearman", "pearson")
"""Metrics of similarities: their own size means nothing, so only what does not depend on it."""


def similarity(
    first: Float[np.ndarray, "pairs embed"], second: Float[np.ndarray, "pairs embed"], name: str = "cosine"
) -> Float[np.ndarray, "pairs"]:
    """Returns how near the vectors of each pair are; more is nearer.

    Args:
      first: First vectors.
      second: Second vectors.
      name: cosine (also where empty), dot, euclidean or manhattan, as sentence-transformers names them.

    Raises:
      ConfigError: The name is not known.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if name == "dot":
        return np.sum(first * second, axis=1)
    if name == "euclidean":
        return -np.linalg.norm(first - second, axis=1)
    if name == "manhattan":
        return -np.abs(first - second).sum(axis=1)
    if name not in ("", "cosine"):
        raise ConfigError(
            f"The model's similarity is '{name}'; pairs are compared by cosine, dot, euclidean or manhattan."
        )
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.sum(first * second, axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)


def judge_pairs(model: Model, config: DataConfig, source: object, *, batch_size: int = 32) -> Judged:
    """Embeds pairs of texts and correlates their similarities with the pairs' scores.

    Args:
      model: A sentence encoder.
      config: Columns of first text, second text and score.
      source: File, folder, hub id, or an object that ``data.sources`` reads.
      batch_size: Most texts computed together.

    Returns:
      Spearman's and Pearson's correlation, rows for intervals, and the similarities.

    Raises:
      ConfigError: No column of second texts is named, or the model's similarity is not known.
      DataError: The examples are malformed, or a score is no number.
    """
    if not config.text_pair_column:
        raise ConfigError(
            "A sentence encoder is measured on pairs of texts with a score; name the column of the second texts with "
            "--data.text_pair_column (and --data.text_column, --data.label_column)."
        )
    limit = config.max_validation_examples
    examples = read_examples(source, config, split=config.validation_split, limit=limit)
    scores = encode_labels(examples, LabelSet(("score",)), "regression", config).astype(np.float64)
    if not len(scores) or examples.pairs is None:
        raise DataError(f"{examples.name} holds no pair of texts.")
    length = min(config.max_length or model.max_length, model.max_length)
    vectors = [
        model.encode(list(texts), batch_size=batch_size, max_length=length)
        for texts in (examples.texts, examples.pairs)
    ]
    first, second = vectors
    found = similarity(first, second, "" if model.pooling is None else model.pooling.similarity)
    metrics = {name: METRICS["regression"][name].function(found, scores) for name in CORRELATIONS}
    scored = Scored(metrics, (found, scores), {name: name for name in CORRELATIONS}, no_report)
    return Judged(len(scores), CORRELATIONS[0], True, scored, tuple(found.tolist()), tuple(examples.texts))
