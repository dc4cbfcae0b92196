"""What a server computes of a model: the functions that its routes need, each a program of named inputs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxbert.errors import ConfigError
from flaxbert.inference import Postprocess, logits_of, pool_side_by_side
from flaxbert.model import Model
from flaxbert.retrieval import word_weights
from flaxbert.tasks.registry import find_task

VECTORS, TOKENS, LOGITS, MASKED, SPARSE = "vectors", "tokens", "logits", "masked", "sparse"
"""Names of functions: pooled vectors, vectors of tokens, scores of the head, scores of words at masked places, weights of words."""

POOL_MASK = "pool_mask"
"""Input that is 1 for the tokens that are pooled, those of a prompt left out."""

NUM_SLOTS = 4
"""Masked places that one row answers; a text with more is computed in several rows."""

EMBEDDING_TASKS = frozenset({"sentence-similarity", "feature-extraction"})
MASK_TASKS = frozenset({"fill-mask", "pretraining"})


@dataclasses.dataclass(frozen=True)
class PoolByMask:
    """Pools the vectors of the tokens that ``POOL_MASK`` names; equal ones share a program.

    Attributes:
      modes: Pooling modes as ``nn.heads.pool`` names them, side by side.
    """

    modes: tuple[str, ...]

    def __call__(self, output: Any, params: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        """Returns the vectors of a forward pass.

        Args:
          output: What the network returned.
          params: Parameter tree.
          batch: The batch.
        """
        del params
        return pool_side_by_side(output.last_hidden_state, batch[POOL_MASK], self.modes)


def hidden_of(output: Any, params: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """Returns the vectors of all tokens.

    Args:
      output: What the network returned.
      params: Parameter tree.
      batch: The batch.
    """
    return output.last_hidden_state.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Function:
    """One program of a model.

    Attributes:
      name: Its name.
      inputs: Names of its inputs; all integers, ``[rows, length]`` but ``masked_positions``, which is ``[rows, slots]``.
      postprocess: What it returns of the network's output.
      keep_length: Whether it returns something for every token.
    """

    name: str
    inputs: tuple[str, ...]
    postprocess: Postprocess
    keep_length: bool = False

    @property
    def identity(self) -> str:
        """What it computes, in words that are the same in every process."""
        pooling = (
            self.postprocess
            if isinstance(self.postprocess, PoolByMask)
            else getattr(self.postprocess, "__qualname__", "")
        )
        return f"{self.name} {self.inputs} {pooling}"

    def example(self, num_rows: int, length: int) -> dict[str, np.ndarray]:
        """Returns a batch of a shape, for compiling.

        Args:
          num_rows: Its rows.
          length: Tokens of each.
        """
        shapes = {name: (num_rows, NUM_SLOTS if name == "masked_positions" else length) for name in self.inputs}
        ones = ("attention_mask", POOL_MASK)
        return {name: np.full(shape, int(name in ones), np.int32) for name, shape in shapes.items()}


def functions_of(model: Model, sparse: bool = False) -> dict[str, Function]:
    """Returns the functions that a server offers of a model, by name.

    Args:
      model: The model.
      sparse: Whether a masked language model weighs words for search (SPLADE) instead of filling masks.

    Raises:
      ConfigError: No route serves its task.
    """
    tokens = ("input_ids", "attention_mask")
    if model.config.type_vocab_size > 1:
        tokens += ("token_type_ids",)
    if model.task in EMBEDDING_TASKS:
        modes = model.pooling.modes if model.pooling is not None else ("mean",)
        found = [
            Function(VECTORS, (*tokens, POOL_MASK), PoolByMask(tuple(modes))),
            Function(TOKENS, tokens, hidden_of, True),
        ]
    elif model.task == "late-interaction":
        found = [Function(TOKENS, tokens, logits_of, True)]
    elif model.task in MASK_TASKS:
        masked = Function(MASKED, (*tokens, "masked_positions"), logits_of)
        found = [Function(SPARSE, tokens, word_weights)] if sparse else [masked]
    else:
        task = find_task(model.task)
        if task is None or model.task == "multiple-choice":
            raise ConfigError(f"A model for '{model.task}' can not be served: no route answers for it.")
        inputs = (*tokens, "entity_mask") if model.task == "relation-classification" else tokens
        found = [Function(LOGITS, inputs, logits_of, task.scores_tokens)]
    return {function.name: function for function in found}
