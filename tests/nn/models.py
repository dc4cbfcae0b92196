"""Small models and batches for the tests of networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.trees import map_leaves, stack_layers
from flaxbert.families import get_family
from flaxbert.families.graph import abstract_params, forward, graph_definition
from flaxbert.nn.disentangled_attention import DisentangledOptions

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

_SCORES = {"relative_attention": True, "score_types": ("c2p", "p2c")}
_SECOND = {"position_buckets": 4, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3}
OWN = {
    "deberta": {"options": DisentangledOptions(**_SCORES)},
    "deberta-v2": {"options": DisentangledOptions(**_SCORES, **_SECOND)},
}
"""What families that switch their own mathematics off by default are given."""


def small_config(family="bert", task="sequence-classification", **changes):
    """A small architecture of a family, read from the family's own file so that its own defaults hold."""
    entry = get_family(family)
    sizes = {name: value for name, value in {**SMALL, **OWN.get(family, {}), **changes}.items() if name != "num_labels"}
    written = entry.config_to_json(ModelConfig(family=family, **sizes), task)
    read = entry.config_from_json({key: value for key, value in written.items() if key != "pad_token_id"})
    offset = read.position_offset and {"max_position_embeddings": read.max_position_embeddings + read.position_offset}
    return read.replace(
        pad_token_id=read.pad_token_id if read.pad_token_id < sizes["vocab_size"] else 0,
        labels=(),
        num_labels=1 if task == "multiple-choice" else {**SMALL, **changes}["num_labels"],
        type_vocab_size=changes.get("type_vocab_size", read.type_vocab_size),
        **(offset or {}),
    )


@functools.lru_cache(maxsize=32)
def _params(config, task):
    """Random leaves of the size of new weights, biases and norms away from their start; nothing is compiled for them."""
    generator = np.random.default_rng(0)

    def draw(name, leaf):
        noise = generator.standard_normal(leaf.shape)
        if leaf.ndim > 1:
            return jnp.asarray(config.initializer_range * np.clip(noise, -2, 2), leaf.dtype)
        return jnp.asarray((1.0 if name.endswith("scale") else 0.0) + 0.1 * noise, leaf.dtype)

    return map_leaves(draw, abstract_params(config, task))


def small_params(config, task="sequence-classification", scanned=False):
    """New weights with biases and norms away from their start; the same for equal arguments."""
    return stack_layers(_params(config, task)) if scanned else _params(config, task)


def small_batch(config, lengths=(7, 12, 3, 12), seed=0, task=""):
    """Rows of the given numbers of real tokens, padded on the right, with what the task needs beside them."""
    generator = np.random.default_rng(seed)
    length = max(*lengths, 4)
    mask = (np.arange(length) < np.asarray(lengths)[:, None]).astype(np.int32)
    ids = generator.integers(2, config.vocab_size, mask.shape).astype(np.int32)
    types = generator.integers(0, max(config.type_vocab_size, 1), mask.shape).astype(np.int32)
    batch = {
        "input_ids": np.where(mask == 1, ids, config.pad_token_id).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": types,
    }
    if task == "relation-classification":
        batch["entity_mask"] = np.tile([0, 1, 2, *[0] * (length - 3)], (len(lengths), 1)).astype(np.int32)
    if task == "multiple-choice":
        batch = {name: rows.reshape(-1, 2, length) for name, rows in batch.items()}
    return batch


@functools.partial(jax.jit, static_argnames=("config", "task", "execution", "keep_hidden"))
def run(
    params, batch, dropout_key=None, *, config, task="sequence-classification", execution=Execution(), keep_hidden=False
):
    """The compiled forward pass."""
    graphdef = graph_definition(config, task, execution)
    return forward(graphdef, params, batch, dropout_key=dropout_key, keep_hidden=keep_hidden)
