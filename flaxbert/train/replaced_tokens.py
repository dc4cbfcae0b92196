"""Replaced token detection: a small network fills in hidden words, and another says which words were changed (Clark et al., 2020).

The parameters of both are one tree, ``generator`` and ``discriminator``. They can share their embeddings: *tied* ones belong to both;
*disentangled* ones are the generator's, and the discriminator adds a table of its own (zero for new weights), through which alone its
gradients go (He et al., 2023, section 3).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config import IGNORED_LABEL
from flaxbert.core.arrays import Params
from flaxbert.core.traced_mesh import rows_before
from flaxbert.errors import ConfigError
from flaxbert.train.losses import Forward

EmbeddingSharing = Literal["none", "tied", "disentangled"]

GENERATOR, DISCRIMINATOR = "generator", "discriminator"

_PROJECTION = "project"
"""What brings embeddings to the width of the blocks; each network has its own."""

_SAMPLING = 0x5A3
_EVALUATION_SEED = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReplacedTokenOutput:
    """What both networks say of a batch.

    Attributes:
      logits: Generator's scores of the hidden words, ``[batch, slots, vocab]``.
      replaced_logits: Discriminator's scores, above 0 for words that were changed, ``[batch, length]``.
      replaced: 1 where a word was changed, else 0, ``[batch, length]``.
      next_sentence_logits: None.
    """

    logits: Any
    replaced_logits: Any
    replaced: Any
    next_sentence_logits: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class ReplacedTokenForward:
    """Both networks as one function of one tree of parameters.

    Attributes:
      generator: ``forward(params, batch, dropout_key=...)`` of the masked language model.
      discriminator: The same of the network that scores every token.
      sharing: What they share of their embeddings.
    """

    generator: Forward
    discriminator: Forward
    sharing: EmbeddingSharing = "tied"

    def split(self, params: Mapping[str, Any]) -> tuple[Params, Params]:
        """Returns the whole trees of generator and discriminator.

        Args:
          params: The tree of both.
        """
        generator, discriminator = dict(params[GENERATOR]), dict(params[DISCRIMINATOR])
        if self.sharing == "tied":
            shared = {name: leaf for name, leaf in discriminator["embeddings"].items() if name != _PROJECTION}
            generator["embeddings"] = {**shared, **generator.get("embeddings", {})}
        if self.sharing == "disentangled":
            embeddings = dict(discriminator["embeddings"])
            shared = jax.lax.stop_gradient(generator["embeddings"]["word"]["embedding"])
            embeddings["word"] = {"embedding": shared + embeddings["word"]["embedding"]}
            discriminator["embeddings"] = embeddings
        return generator, discriminator

    def __call__(self, params: Any, batch: Mapping[str, Any], *, dropout_key: Any = None) -> ReplacedTokenOutput:
        """Runs both networks.

        Args:
          params: The tree of both.
          batch: Rows with ``masked_positions`` and ``labels``.
          dropout_key: Key of dropout and of the words that the generator draws; None draws always the same and drops nothing.
        """
        generator, discriminator = self.split(params)
        guessed = self.generator(generator, batch, dropout_key=dropout_key)
        key = jax.random.key(_EVALUATION_SEED) if dropout_key is None else dropout_key
        scores = jax.lax.stop_gradient(guessed.logits.astype(jnp.float32))
        drawn = _draw(jax.random.fold_in(key, _SAMPLING), scores).astype(batch["input_ids"].dtype)
        known = batch["labels"] != IGNORED_LABEL
        places = batch["masked_positions"]
        ids = batch["input_ids"]
        before = jnp.take_along_axis(ids, places, axis=1)
        rows = jnp.arange(ids.shape[0], dtype=places.dtype)[:, None]
        original = ids.at[rows, places].set(jnp.where(known, batch["labels"].astype(ids.dtype), before))
        changed = ids.at[rows, places].set(jnp.where(known, drawn, before))
        inputs = {name: array for name, array in batch.items() if name != "masked_positions"}
        found = self.discriminator(discriminator, {**inputs, "input_ids": changed}, dropout_key=dropout_key)
        return ReplacedTokenOutput(guessed.logits, found.logits, (changed != original).astype(jnp.int32))


def _draw(key: Any, scores: jax.Array) -> jax.Array:
    """Returns a word for every place, by its scores and by the number of its row in the whole batch."""
    numbers = jnp.asarray(rows_before(scores.shape[0]), jnp.uint32) + jnp.arange(scores.shape[0], dtype=jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
    return jax.vmap(jax.random.categorical)(keys, scores)


def _shared_names(params: Params, sharing: EmbeddingSharing) -> tuple[str, ...]:
    """Returns what both networks have of the embeddings."""
    if sharing == "disentangled":
        return ("word",)
    return tuple(name for name in params["embeddings"] if name != _PROJECTION) if sharing == "tied" else ()


def _check_tables(generator: Params, discriminator: Params) -> None:
    tables = [np.shape(tree["embeddings"]["word"]["embedding"]) for tree in (generator, discriminator)]
    if tables[0] != tables[1]:
        raise ConfigError(
            f"Generator and discriminator can not share embeddings of shapes {list(tables[0])} and {list(tables[1])}; give both one "
            "embedding_size, or set objective.sharing: none."
        )


def take_embeddings(params: Params, source: Params, sharing: EmbeddingSharing) -> Params:
    """Returns the parameters of one network with the embeddings of the other where they share them.

    Args:
      params: The network that takes.
      source: The network that gives.
      sharing: What they share.

    Raises:
      ConfigError: Their tables have different shapes.
    """
    if sharing == "none":
        return params
    _check_tables(params, source)
    taken = {name: source["embeddings"][name] for name in _shared_names(source, sharing)}
    return {**params, "embeddings": {**params["embeddings"], **taken}}


def same_embeddings(generator: Params, discriminator: Params) -> bool:
    """Returns whether tied embeddings would be the same numbers for both networks.

    Args:
      generator: Its parameters.
      discriminator: Its parameters.
    """
    for name in _shared_names(discriminator, "tied"):
        pair = [jax.tree.leaves(tree["embeddings"].get(name)) for tree in (generator, discriminator)]
        if len(pair[0]) != len(pair[1]) or not all(map(np.array_equal, *pair)):
            return False
    return True


def join(generator: Params, discriminator: Params, sharing: EmbeddingSharing) -> Params:
    """Returns the tree that is trained.

    Of tied embeddings the discriminator's are kept. Disentangled ones become the difference to the generator's.

    Args:
      generator: Parameters of the masked language model.
      discriminator: Parameters of the network that scores every token.
      sharing: What they share of their embeddings.

    Raises:
      ConfigError: The embeddings that are to be shared have different shapes.
    """
    if sharing == "none":
        return {GENERATOR: dict(generator), DISCRIMINATOR: dict(discriminator)}
    _check_tables(generator, discriminator)
    if sharing == "tied":
        shared = _shared_names(discriminator, sharing)
        own = {name: leaf for name, leaf in generator["embeddings"].items() if name not in shared}
        rest = {name: leaf for name, leaf in generator.items() if name != "embeddings"}
        return {GENERATOR: {**rest, "embeddings": own} if own else rest, DISCRIMINATOR: dict(discriminator)}
    embeddings = dict(discriminator["embeddings"])
    difference = embeddings["word"]["embedding"] - generator["embeddings"]["word"]["embedding"]
    embeddings["word"] = {"embedding": difference}
    return {GENERATOR: dict(generator), DISCRIMINATOR: {**discriminator, "embeddings": embeddings}}
