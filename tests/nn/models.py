"""Small models and batches for the tests of networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.trees import map_leaves, stack_layers
from flaxbert.families.graph import forward, graph_definition, initialize_params

SMALL = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
    "num_labels": 3,
    "initializer_range": 0.2,
}


def small_config(**changes):
    return ModelConfig(**{**SMALL, **changes})


@functools.lru_cache(maxsize=32)
def _params(config, task):
    params = initialize_params(config, task, 0)
    generator = np.random.default_rng(0)
    move = lambda name, leaf: leaf + jnp.asarray(0.1 * generator.standard_normal(leaf.shape), leaf.dtype)
    return map_leaves(lambda name, leaf: leaf if leaf.ndim > 1 else move(name, leaf), params)


def small_params(config, task="sequence-classification", scanned=False):
    """New weights with biases and norms away from their start; the same for equal arguments."""
    return stack_layers(_params(config, task)) if scanned else _params(config, task)


def small_batch(config, lengths=(7, 12, 3, 12), seed=0):
    """Rows of the given numbers of real tokens, padded on the right."""
    generator = np.random.default_rng(seed)
    length = max(*lengths, 4)
    mask = (np.arange(length) < np.asarray(lengths)[:, None]).astype(np.int32)
    ids = generator.integers(1, config.vocab_size, mask.shape).astype(np.int32)
    types = generator.integers(0, max(config.type_vocab_size, 1), mask.shape).astype(np.int32)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types}


@functools.partial(jax.jit, static_argnames=("config", "task", "execution", "keep_hidden"))
def run(
    params, batch, dropout_key=None, *, config, task="sequence-classification", execution=Execution(), keep_hidden=False
):
    """The compiled forward pass."""
    graphdef = graph_definition(config, task, execution)
    return forward(graphdef, params, batch, dropout_key=dropout_key, keep_hidden=keep_hidden)
