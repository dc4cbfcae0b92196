"""The floating point operations that training needs: of what is real, not of padding, and not of what is computed twice."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from flaxbert.architecture import TASK_HEADS, ModelConfig
from flaxbert.config import IGNORED_LABEL
from flaxbert.families import get_family

BACKWARD_PASSES = 2.0
"""A backward pass multiplies twice as much as the forward pass before it."""


@dataclasses.dataclass(frozen=True)
class NetworkWork:
    """How much one network multiplies.

    Counted are the products of the layers, of the projection of narrow embeddings, and of heads over tokens. Look-ups, norms, pooler and
    classifier are left out, and frozen layers count as if trained. A window counts as the pairs that it shows, packed texts as
    texts of their own.

    Attributes:
      config: Architecture.
      task: Canonical task name.
      first_token_only: Whether the last layer computes what comes after its attention for one token of each text.
      trained: Whether there is a backward pass.
    """

    config: ModelConfig
    task: str
    first_token_only: bool = False
    trained: bool = True

    def forward(self, lengths: Num[np.ndarray, "texts"], num_predicted: float) -> float:
        """Returns the multiplications (each with its addition) of a forward pass.

        Args:
          lengths: Real tokens of each text.
          num_predicted: Hidden words, which a masked language head predicts.
        """
        if not len(lengths):
            return 0.0
        config, tokens = self.config, float(lengths.sum())
        layers = get_family(config.family).layer_work(config, self.task)
        last = float(len(lengths)) if self.first_token_only else tokens
        total = sum(layer.forward(lengths, tokens) for layer in layers[:-1]) + layers[-1].forward(lengths, last)
        if config.embedding_width != config.hidden_size:
            total += tokens * config.embedding_width * config.hidden_size
        heads, width = TASK_HEADS[self.task], config.embedding_width
        if "masked_lm" in heads:
            total += num_predicted * (config.hidden_size * width + width * config.vocab_size)
        if "replaced_token" in heads:
            total += tokens * config.hidden_size * (config.hidden_size + 1.0)
        return total

    def training_flops(self, lengths: Num[np.ndarray, "texts"], num_predicted: float = 0.0) -> float:
        """Returns the operations of forward and backward pass, two for every multiplication.

        Args:
          lengths: Real tokens of each text.
          num_predicted: Hidden words.

        Example:
          >>> round(NetworkWork(ModelConfig(), "fill-mask").training_flops(np.array([128]), 0.15 * 128) / 128e9, 3)
          0.545
        """
        backward = BACKWARD_PASSES if self.trained else 0.0
        return 2.0 * (1.0 + backward) * self.forward(lengths, num_predicted)


def text_lengths(batch: Mapping[str, Any]) -> Num[np.ndarray, "texts"]:
    """Returns the real tokens of every text of a batch; rows that only fill it up are left out.

    Args:
      batch: Arrays of the host, with ``segment_ids`` (packed), ``attention_mask`` or neither, which means that all is real.
    """
    real = np.ones(len(batch["input_ids"]), bool)
    if batch.get("example_weight") is not None:
        real = np.asarray(batch["example_weight"]) > 0
    if batch.get("segment_ids") is not None:
        segments = np.asarray(batch["segment_ids"])[real].astype(np.int64)
        if not segments.size:
            return np.zeros(0, np.int64)
        size = int(segments.max()) + 1
        places = np.arange(len(segments), dtype=np.int64)[:, None] * size + segments
        counts = np.bincount(places.ravel(), minlength=len(segments) * size).reshape(len(segments), size)[:, 1:]
        return counts[counts > 0]
    if batch.get("attention_mask") is not None:
        return (np.asarray(batch["attention_mask"])[real] > 0).sum(axis=-1).ravel()
    ids = np.asarray(batch["input_ids"])[real]
    return np.full(ids[..., 0].size, ids.shape[-1], np.int64)


def batch_flops(networks: Sequence[NetworkWork], batch: Mapping[str, Any]) -> float:
    """Returns the operations of a training step over a batch.

    Args:
      networks: What is trained together.
      batch: Arrays of the host.
    """
    lengths, predicted = text_lengths(batch), 0.0
    if batch.get("masked_positions") is not None:
        predicted = float((np.asarray(batch["labels"]) != IGNORED_LABEL).sum())
    return sum(network.training_flops(lengths, predicted) for network in networks)
