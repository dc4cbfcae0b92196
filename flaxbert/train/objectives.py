"""What pre-training learns: hidden words, and whether two texts belong together."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxbert.config import IGNORED_LABEL
from flaxbert.errors import ShapeError
from flaxbert.train.losses import cross_entropy, logistic_losses

PAIR_WEIGHTS, TOKEN_WEIGHTS = "pair_weights", "token_weights"
"""Entries of a batch: what the loss of each pair, and of each token that may be replaced, counts beside that of one hidden word."""


@dataclasses.dataclass(frozen=True)
class PretrainingLoss:
    """The mean loss of the hidden words, plus the weighted mean losses of pairs (Devlin et al., 2019, section 3.1) and of replaced tokens
    (Clark et al., 2020, section 2).

    All means are over the whole batch, however it is cut into micro batches or spread over devices: ``weigh`` sets weights so that the
    sum of all losses over the number of hidden words is the sum of the means.

    Attributes:
      pair_weight: Factor of the loss of pairs; 0 where there are none.
      replaced_weight: Factor of the loss of replaced tokens; 0 where there are none.
    """

    pair_weight: float = 0.0
    replaced_weight: float = 0.0

    def weigh(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a whole batch with the weight of every pair.

        Args:
          batch: With ``labels`` and, where pairs count, ``pair_labels``.
        """
        weighed = dict(batch)
        words = jnp.sum((batch["labels"] != IGNORED_LABEL).astype(jnp.float32))
        if self.pair_weight:
            known = (batch["pair_labels"] != IGNORED_LABEL).astype(jnp.float32)
            weighed[PAIR_WEIGHTS] = known * _ratio(self.pair_weight, words, known)
        if self.replaced_weight:
            real = (batch["segment_ids"] > 0).astype(jnp.float32)
            weighed[TOKEN_WEIGHTS] = real * _ratio(self.replaced_weight, words, real)
        return weighed

    def __call__(self, output: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Returns the weighted sum of losses and the number of hidden words.

        Args:
          output: A ``ModelOutput`` with scores of the hidden places and, where pairs count, of the pairs.
          batch: Its batch, weighed.

        Raises:
          ShapeError: The batch lacks labels.
        """
        needed = ["labels"]
        needed += ["pair_labels", PAIR_WEIGHTS] if self.pair_weight else []
        needed += [TOKEN_WEIGHTS] if self.replaced_weight else []
        missing = [name for name in needed if name not in batch]
        if missing:
            raise ShapeError(
                f"The batch has no {', '.join(missing)}, which pre-training needs; it has {sorted(batch)}."
            )
        losses, weights = cross_entropy(output.logits.astype(jnp.float32), batch["labels"])
        total = jnp.sum(losses)
        if self.pair_weight:
            scores = output.next_sentence_logits.astype(jnp.float32)
            pair_losses, _ = cross_entropy(scores, batch["pair_labels"])
            total = total + jnp.sum(pair_losses * batch[PAIR_WEIGHTS])
        if self.replaced_weight:
            replaced = _replaced_losses(output)
            total = total + jnp.sum(replaced * batch[TOKEN_WEIGHTS])
        return total, jnp.sum(weights)


def _ratio(weight: float, words: jax.Array, others: jax.Array) -> jax.Array:
    return jnp.float32(weight) * words / jnp.maximum(jnp.sum(others), jnp.float32(1.0))


def _replaced_losses(output: Any) -> jax.Array:
    return logistic_losses(output.replaced_logits.astype(jnp.float32), output.replaced.astype(jnp.float32))


def pretraining_counts(output: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the sums behind the metrics of a batch: losses and right answers of hidden words and pairs, with their numbers.

    Args:
      output: A ``ModelOutput``.
      batch: Its batch; rows whose ``example_weight`` is 0 fill it up and have no labels.
    """
    found: dict[str, jax.Array] = {}
    parts = {"masked_lm": (output.logits, batch["labels"])}
    if output.next_sentence_logits is not None and "pair_labels" in batch:
        parts["pair"] = (output.next_sentence_logits, batch["pair_labels"])
    for name, (logits, labels) in parts.items():
        losses, known = cross_entropy(logits.astype(jnp.float32), labels)
        right = (jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels).astype(jnp.float32) * known
        found |= {f"{name}_loss": jnp.sum(losses), f"{name}_right": jnp.sum(right), f"{name}_count": jnp.sum(known)}
    if getattr(output, "replaced_logits", None) is not None:
        real = (batch["segment_ids"] > 0).astype(jnp.float32) * batch["example_weight"][:, None]
        said = (output.replaced_logits > 0).astype(output.replaced.dtype)
        found |= {
            "replaced_loss": jnp.sum(_replaced_losses(output) * real),
            "replaced_right": jnp.sum((said == output.replaced).astype(jnp.float32) * real),
            "replaced_count": jnp.sum(real),
            "replaced_changed": jnp.sum(output.replaced.astype(jnp.float32) * real),
            "replaced_found": jnp.sum((said * output.replaced).astype(jnp.float32) * real),
        }
    return found
