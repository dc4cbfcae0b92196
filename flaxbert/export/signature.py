"""What is exported of a model: which inputs it takes, which outputs it has, and the function between them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from flaxbert.architecture import TASK_HEADS
from flaxbert.core.arrays import is_typed
from flaxbert.core.trees import flatten_names, unflatten_names
from flaxbert.families.graph import forward, graph_definition
from flaxbert.model import Model
from flaxbert.nn.activations import get_activation
from flaxbert.nn.disentangled_attention import DisentangledOptions
from flaxbert.nn.heads import pool

SIZES = ("b", "s")
"""Symbolic sizes of the inputs: batch and length; with ``c`` choices between them for multiple choice."""

_ACTIVATIONS = {"Identity": "linear", "Tanh": "tanh", "ReLU": "relu", "Sigmoid": "sigmoid", "SiLU": "silu"}


@dataclasses.dataclass(frozen=True)
class Signature:
    """A model as a function of named inputs, ready to be traced.

    Attributes:
      model: The model, with layers that are unrolled and plain attention.
      inputs: Names of the inputs, in order.
      outputs: Names of the outputs, in order.
    """

    model: Model
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def sizes(self) -> tuple[Any, ...]:
        """Symbolic sizes of every input; a row has no more tokens than the model has positions."""
        names = ("b", "c", "s") if self.model.task == "multiple-choice" else SIZES
        limits = [f"{name} >= 1" for name in names] + [f"s <= {self.model.config.max_length}"]
        return tuple(jax_export.symbolic_shape(", ".join(names), constraints=limits))

    @property
    def leaf_names(self) -> tuple[str, ...]:
        """Names of the parameter leaves, in the order in which ``run`` takes them."""
        return tuple(flatten_names(self.model.params))

    def run(self, leaves: Sequence[Any], *inputs: Any) -> tuple[Any, ...]:
        """Returns the outputs for inputs; a pure function that can be traced.

        Args:
          leaves: Parameter leaves, in the order of ``leaf_names``.
          *inputs: Integer arrays, in the order of ``inputs``.
        """
        params = unflatten_names(dict(zip(self.leaf_names, leaves, strict=True)))
        batch = dict(zip(self.inputs, (jnp.asarray(array, jnp.int32) for array in inputs), strict=True))
        if self.model.config.options is not None and isinstance(self.model.config.options, DisentangledOptions):
            ids = batch["input_ids"]  # without positions, DeBERTa makes tables that are cut for one length
            length = ids.shape[-1]
            batch["position_ids"] = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), ids.shape)
        model = self.model
        output = forward(graph_definition(model.config, model.task, model.execution), params, batch)
        made = named_outputs(model, output, batch)
        return tuple(made[name] for name in self.outputs)

    def trace(self) -> Any:
        """Returns the closed jaxpr of ``run`` for symbolic sizes and dense float32 leaves."""
        leaves = [jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for leaf in flatten_names(self.model.params).values()]
        shape = jax.ShapeDtypeStruct(self.sizes, jnp.int32)
        traced = jax.jit(self.run, keep_unused=True).trace(leaves, *(shape for _ in self.inputs))
        return traced.jaxpr


def named_outputs(model: Model, output: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the outputs of a task under the names that stock exports give them.

    Args:
      model: The model.
      output: What its network returned.
      batch: What it was given.
    """
    if model.task == "question-answering":
        return {"start_logits": output.logits[..., 0], "end_logits": output.logits[..., 1]}
    if model.task == "pretraining":
        return {"prediction_logits": output.logits, "seq_relationship_logits": output.next_sentence_logits}
    if TASK_HEADS[model.task]:
        return {"logits": output.logits}
    made = {"last_hidden_state": output.last_hidden_state}
    if model.pooling is not None:
        made["sentence_embedding"] = sentence_vectors(model, output.last_hidden_state, batch["attention_mask"])
    elif output.pooled is not None:
        made["pooler_output"] = output.pooled
    return made


def sentence_vectors(model: Model, hidden: Any, mask: Any) -> Any:
    """Returns sentence vectors as the model's folder makes them: pooled, through its dense layers, normalised.

    Args:
      model: The model, which says how it pools.
      hidden: Token vectors, ``[batch, length, embed]``.
      mask: 1 for real tokens, ``[batch, length]``.
    """
    pooling = model.pooling
    if pooling is None:
        return hidden[:, 0]
    parts = [pool(hidden, mask, mode) for mode in pooling.modes]
    vectors = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
    for layer in pooling.dense:
        vectors = vectors @ jnp.asarray(layer.kernel)
        if layer.bias is not None:
            vectors = vectors + jnp.asarray(layer.bias)
        vectors = get_activation(_ACTIVATIONS[layer.activation])(vectors)
    if pooling.normalize:
        length = jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True))
        vectors = vectors / jnp.maximum(length, jnp.float32(1e-12))
    return vectors


def signature_of(model: Model) -> Signature:
    """Returns the signature that stock exports of the same task have.

    Args:
      model: The model; its layers are unrolled and its attention written out as plain products.
    """
    model = model.with_execution(precision="float32", attention="xla", scan_layers=False, remat="none")
    config = model.config
    inputs = ["input_ids", "attention_mask"]
    if config.type_vocab_size > 1:  # with one type there is nothing to say
        inputs.append("token_type_ids")
    if model.task == "relation-classification":
        inputs.append("entity_mask")
    signature = Signature(model, tuple(inputs), ())
    return dataclasses.replace(signature, outputs=_output_names(signature))


def _output_names(signature: Signature) -> tuple[str, ...]:
    model = signature.model
    shape = (2, 2, 4) if model.task == "multiple-choice" else (2, 4)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in signature.inputs}
    dense = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
    params = jax.tree.map(dense, model.params, is_leaf=is_typed)
    graph = graph_definition(model.config, model.task, model.execution)
    names: list[str] = []

    def note(params: Any, batch: Any) -> None:
        names.extend(named_outputs(model, forward(graph, params, batch), batch))

    jax.eval_shape(note, params, batch)
    return tuple(names)
