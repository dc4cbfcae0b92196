"""A small BERT, random batches and steps over it, for the tests of training."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.config import MeshConfig, TrainConfig
from flaxbert.core.contraction import contract, take
from flaxbert.core.sharding import build_mesh, place_batch
from flaxbert.core.trees import flatten_names, map_leaves, stack_layers
from flaxbert.families import get_family
from flaxbert.families.graph import abstract_params, forward, graph_definition
from flaxbert.nn.dropout import dropout
from flaxbert.nn.network import ModelOutput
from flaxbert.train.losses import loss_for
from flaxbert.train.optimizer import Optimizer
from flaxbert.train.optimizers import make_optimizer
from flaxbert.train.state import TrainState, create_state, state_shardings
from flaxbert.train.step import make_train_step

QUICK = {"xla_backend_optimization_level": 0}
"""Halves the time of compilation; for networks this small the speed of the code does not matter."""

TASK = "sequence-classification"

CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=8,
    intermediate_size=64,
    max_position_embeddings=32,
    num_labels=3,
    hidden_dropout_rate=0.0,
    attention_dropout_rate=0.0,
)

DROPOUT_CONFIG = CONFIG.replace(hidden_dropout_rate=0.2, attention_dropout_rate=0.2)


def make_batch(rows: int = 16, length: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch with padding and uneven example weights, the last row only filling it."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, length + 1, rows)
    mask = (np.arange(length)[None] < lengths[:, None]).astype(np.int32)
    weights = random.uniform(0.5, 2.0, rows).astype(np.float32)
    weights[-1] = 0.0
    return {
        "input_ids": (random.integers(1, CONFIG.vocab_size, (rows, length)) * mask).astype(np.int32),
        "attention_mask": mask,
        "labels": random.integers(0, CONFIG.num_labels, rows).astype(np.int32),
        "example_weight": weights,
    }


def bag_of_words(params: Any, batch: Any, dropout_key: Any = None) -> ModelOutput:
    """A model that compiles in no time: a classifier over the mean of word vectors, with dropout."""
    vectors = take(params["embeddings"]["word"]["embedding"], batch["input_ids"])
    mask = batch["attention_mask"].astype(jnp.float32)[..., None]
    pooled = dropout(jnp.sum(vectors * mask, axis=1) / jnp.sum(mask, axis=1), dropout_key, 0.2)
    products = contract(pooled, params["classifier"]["kernel"])
    return ModelOutput(logits=products + params["classifier"]["bias"])


def bag_of_words_params() -> Any:
    """Weights of ``bag_of_words``."""
    random = np.random.default_rng(3)
    table = random.normal(scale=0.1, size=(CONFIG.vocab_size, 8)).astype(np.float32)
    kernel = random.normal(scale=0.1, size=(8, CONFIG.num_labels)).astype(np.float32)
    return {
        "embeddings": {"word": {"embedding": table}},
        "classifier": {"kernel": kernel, "bias": np.zeros(CONFIG.num_labels, np.float32)},
    }


def make_forward(config: ModelConfig = CONFIG, execution: Execution = Execution()) -> Any:
    """The forward pass of the small BERT."""
    return functools.partial(forward, graph_definition(config, TASK, execution))


def make_params(config: ModelConfig = CONFIG, stacked: bool = False) -> Any:
    """Weights of the small BERT, the same at every call."""
    random = np.random.default_rng(0)

    def draw(name: str, leaf: Any) -> np.ndarray:
        drawn = random.normal(scale=0.05, size=leaf.shape).astype(np.float32)
        return drawn + np.float32(1.0) if name.endswith("norm.scale") else drawn

    params = map_leaves(draw, abstract_params(config, TASK))
    return stack_layers(params) if stacked else params


def tiny_optimizer(**changes: Any) -> Optimizer:
    """AdamW with a schedule over 20 steps."""
    return make_optimizer(TrainConfig(**{"learning_rate": 1e-2, "warmup_rate": 0.0, **changes}), 20)


def leaf_axes(params: Any) -> dict[str, tuple[str, ...]]:
    """Axis names of the small BERT's leaves."""
    return get_family("bert").parameter_axes(list(flatten_names(params)))


def run_steps(
    num_steps: int = 4,
    *,
    config: ModelConfig = CONFIG,
    mesh_config: MeshConfig | None = None,
    devices: Any = None,
    accumulation_steps: int = 1,
    stacked: bool = False,
    remat: Any = "none",
    dropout_seed: int | None = None,
    rows: int = 16,
    process_rows: slice = slice(None),
) -> tuple[TrainState, list[float], TrainState | None]:
    """Trains the small BERT; returns the state, the losses and, with a mesh, the shardings."""
    execution = Execution(scan_layers=stacked, remat=remat)
    params, optimizer = make_params(config, stacked), tiny_optimizer(max_grad_norm=0.5)
    axes = leaf_axes(params)
    mesh = None if mesh_config is None else build_mesh(mesh_config, devices)
    state, kinds = create_state(params, (), optimizer, leaf_axes=axes, mesh=mesh)
    shardings = None if mesh is None else state_shardings(state, axes, mesh, kinds)
    step = make_train_step(
        make_forward(config, execution),
        loss_for(TASK),
        optimizer,
        kinds,
        accumulation_steps,
        shardings=shardings,
        mesh=mesh,
    )
    key = None if dropout_seed is None else jax.random.key(dropout_seed)
    losses, compiled = [], None
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        for index in range(num_steps):
            batch: Any = {name: array[process_rows] for name, array in make_batch(rows=rows, seed=index).items()}
            batch = batch if mesh is None else place_batch(batch, mesh)
            compiled = compiled or step.lower(state, batch, key).compile(QUICK)
            state, metrics = compiled(state, batch, key)
            losses.append(float(metrics.loss_sum) / float(metrics.weight))
    return state, losses, shardings
