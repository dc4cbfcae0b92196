"""What tells the examples that a model was trained on from others: their digest, and how their inputs are distributed."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.data.scripts import shares_by_name
from flaxbert.data.tokenization import TokenizedExamples

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def fingerprint(
    features: TokenizedExamples,
    unknown_token_id: int | None,
    label_counts: Mapping[str, int],
    source: str,
    texts: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """Describes tokenized examples in a few numbers, fit for JSON.

    Args:
      features: The examples.
      unknown_token_id: Id of tokens that the vocabulary does not know; None where there is none.
      label_counts: Examples (words, where words have labels) by label.
      source: Where they come from, for people.
      texts: Texts of the examples; second texts, if any, are a list more.

    Returns:
      ``source``, ``num_examples``, ``num_tokens``, ``sha256`` of all ids and labels, quantiles of the ``lengths`` in tokens, ``unknown_rate`` among all
      tokens, ``truncated_rate`` among all examples, and the share of every label. With texts also the share of every script among their letters.
    """
    digest = hashlib.sha256()
    for array in (features.input_ids, features.offsets, features.labels):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    lengths, total = features.lengths, sum(label_counts.values())
    unknown = 0 if unknown_token_id is None else int(np.count_nonzero(features.input_ids == unknown_token_id))
    return {
        "source": source,
        "num_examples": len(features),
        "num_tokens": len(features.input_ids),
        "sha256": digest.hexdigest(),
        "lengths": {f"{quantile:g}": float(np.quantile(lengths, quantile)) for quantile in QUANTILES},
        "unknown_rate": unknown / max(1, len(features.input_ids)),
        "truncated_rate": features.num_truncated / max(1, len(features)),
        "labels": {label: count / total for label, count in label_counts.items()} if total else {},
        **({"scripts": shares_by_name(texts)} if texts else {}),
    }
