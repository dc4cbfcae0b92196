"""The student before distillation: layers of the teacher, a narrower model fitted to it, or new weights."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.config import StudentConfig
from flaxbert.core import axes
from flaxbert.core.arrays import Params, materialize
from flaxbert.core.trees import flatten_names, is_stacked, map_leaves, unflatten_names, unstack_layers
from flaxbert.data.batches import evaluation_batches
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError
from flaxbert.families import get_family
from flaxbert.families.graph import abstract_params, forward, graph_definition, initialize_params
from flaxbert.model import Model
from flaxbert.nn.activations import get_activation
from flaxbert.nn.embeddings import sinusoids
from flaxbert.train.narrowing import Activations, Narrowed, Narrowing, check_can_narrow, fit

CALIBRATION_BATCH_SIZE = 64
"""Texts that the teacher is run on together."""

FEW_SAMPLES_RIDGE = 1e-2
"""Ridge of fits to whole texts, of which there are far fewer than tokens."""

_READS_POOLED = frozenset({"classifier", "next_sentence", "sentence_order"})
"""Heads that read what the pooler makes of the first token, where there is one."""

ORIGIN_FILE = "student.json"
"""What a student was made of, in its folder."""


@dataclasses.dataclass(frozen=True)
class StudentOrigin:
    """What a student was made of.

    Attributes:
      layers: The teacher's layer, from 0, of each layer; empty where none was used.
      heads: The teacher's heads that each layer's heads come from; empty: all, in order, or none.
    """

    layers: tuple[int, ...] = ()
    heads: tuple[tuple[int, ...], ...] = ()

    def to_json(self) -> str:
        """Returns the origin as a JSON document."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "StudentOrigin":
        """Returns the origin that a document describes.

        Args:
          text: From ``to_json``.
        """
        read = json.loads(text)
        return cls(tuple(read["layers"]), tuple(tuple(heads) for heads in read["heads"]))


def spread_layers(num_student: int, num_teacher: int) -> tuple[int, ...]:
    """Returns a layer of the teacher, from 0, for each of the student: evenly spread, the last for the last (Jiao et al., 2020, section 3.1).

    Args:
      num_student: Layers of the student.
      num_teacher: Layers of the teacher.
    """
    return tuple(math.ceil((layer + 1) * num_teacher / num_student) - 1 for layer in range(num_student))


def source_layers(config: StudentConfig, num_teacher: int) -> tuple[int, ...]:
    """Returns which layers of the teacher, from 0, the student has.

    Args:
      config: The student.
      num_teacher: Layers of the teacher.

    Raises:
      ConfigError: There are no such layers.
    """
    if config.layers:
        wrong = [layer for layer in config.layers if not 0 <= layer < num_teacher]
        if wrong:
            raise ConfigError(
                f"student.layers names layer {wrong[0]}, but the teacher has the layers 0 to {num_teacher - 1}."
            )
        return tuple(config.layers)
    if config.every:
        return tuple(range(0, num_teacher, config.every))
    if config.num_layers > num_teacher and config.init != "random":
        raise ConfigError(
            f"student.num_layers is {config.num_layers}, but the teacher has {num_teacher} layers to make them of; "
            "take fewer, or student.init random."
        )
    return spread_layers(config.num_layers or num_teacher, num_teacher)


def student_architecture(config: StudentConfig, teacher: ModelConfig, layers: tuple[int, ...]) -> ModelConfig:
    """Returns the architecture of a student that is made of a teacher.

    Args:
      config: Its sizes.
      teacher: Architecture of the teacher.
      layers: The teacher's layer of each of its layers.

    Raises:
      ConfigError: The sizes do not fit together, or the way it is made keeps the teacher's.
    """
    width = config.hidden_size or teacher.hidden_size
    heads = config.num_attention_heads
    if not heads:
        heads = teacher.num_attention_heads if width % teacher.head_dim else width // teacher.head_dim
    inner = config.intermediate_size or max(1, round(teacher.intermediate_size * width / teacher.hidden_size))
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": inner}
    changed = {name: size for name, size in sizes.items() if size != getattr(teacher, name)}
    if changed and config.init == "teacher_layers":
        name, size = next(iter(changed.items()))
        raise ConfigError(
            f"student.{name} is {size}, but student.init teacher_layers keeps the teacher's {getattr(teacher, name)}; "
            "use student.init sliced or random."
        )
    if config.init == "sliced":
        wider = [name for name, size in sizes.items() if size > getattr(teacher, name)]
        if wider:
            name = wider[0]
            raise ConfigError(
                f"student.{name} is {sizes[name]}, more than the teacher's {getattr(teacher, name)}, of which a sliced student is a part."
            )
    made = teacher.replace(num_hidden_layers=len(layers), **sizes)
    if config.init == "sliced" and made.head_dim > teacher.head_dim:
        raise ConfigError(
            f"Heads of a sliced student may not be wider than the teacher's: {width} by {heads} heads is {made.head_dim}, the teacher's "
            f"are {teacher.head_dim}; set student.num_attention_heads to {math.ceil(width / teacher.head_dim)} or more."
        )
    options = teacher.options
    if hasattr(options, "layer_types") and hasattr(options, "kinds"):  # layers of several kinds keep theirs
        kinds = options.kinds(teacher.num_hidden_layers)
        made = made.replace(options=dataclasses.replace(options, layer_types=tuple(kinds[layer] for layer in layers)))
    return made


def dense_params(model: Model) -> Params:
    """Returns the parameters of a model as plain float arrays on the host, with numbered layers.

    Args:
      model: Any model; quantized and sparse leaves are written out.
    """
    params = unstack_layers(model.params) if is_stacked(model.params) else model.params
    return map_leaves(lambda _, leaf: np.asarray(materialize(leaf)), params)


def _take_layers(params: Mapping[str, Any], layers: tuple[int, ...], family: str) -> Params:
    leaves = flatten_names(params)
    if not any(name.startswith("encoder.layers.") for name in leaves):
        raise ConfigError(
            f"The layers of {family} share their weights, so that there are none to choose from; use student.init random."
        )
    found = {name: leaf for name, leaf in leaves.items() if not name.startswith("encoder.layers.")}
    for own, theirs in enumerate(layers):
        prefix = f"encoder.layers.{theirs}."
        found |= {
            f"encoder.layers.{own}.{name[len(prefix) :]}": leaf
            for name, leaf in leaves.items()
            if name.startswith(prefix)
        }
    return unflatten_names(found)


def make_student(
    config: StudentConfig, teacher: Model, seed: int, examples: TokenizedExamples | None = None
) -> tuple[Model, StudentOrigin]:
    """Makes the student of a teacher.

    Args:
      config: How it is made.
      teacher: The teacher.
      seed: Seed of new weights.
      examples: Tokenized texts that a sliced student is fitted to.

    Returns:
      The student with the teacher's task, tokenizer and labels, and what it was made of.

    Raises:
      ConfigError: It can not be made like that.
    """
    layers = source_layers(config, teacher.config.num_hidden_layers)
    made = student_architecture(config, teacher.config, layers)
    plain = dataclasses.replace(teacher, config=made, execution=Execution(), account=None)
    if config.init == "random":
        params = jax.tree.map(np.asarray, initialize_params(made, teacher.task, seed))
        return plain.replace(params=params), StudentOrigin()
    params = dense_params(teacher)
    if config.init == "teacher_layers":
        return plain.replace(params=_take_layers(params, layers, made.family)), StudentOrigin(layers)
    check_can_narrow(list(flatten_names(params)), made.family)
    if examples is None:
        raise ConfigError("A sliced student is fitted to training examples, but none were given.")
    if made.embedding_size:
        raise ConfigError("student.init 'sliced' needs embeddings as wide as the layers; use teacher_layers or random.")
    activation = lambda values: np.asarray(get_activation(made.hidden_act)(jnp.asarray(values)))
    seen, logits = observe(teacher, params, examples)
    narrowed, basis = Narrowing(teacher.config, made, layers, activation, seed)(params, seen)
    student = _with_heads(plain, params, narrowed, basis, seen, logits)
    return plain.replace(params=student), StudentOrigin(layers, narrowed.heads)


def observe(model: Model, params: Params, examples: TokenizedExamples) -> tuple[Activations, np.ndarray]:
    """Runs a model on texts and keeps what it computes.

    Args:
      model: The model.
      params: Its parameters as dense arrays, with numbered layers.
      examples: The texts.

    Returns:
      What is inside, of real tokens only, and the scores of the head, in the order of the batches.
    """
    graphdef = graph_definition(model.config, model.task, Execution())
    program = jax.jit(functools.partial(forward, graphdef, keep_hidden=True, keep_attention=True))
    masks, embedded, states, attention, logits = [], [], [], [], []
    leaves = flatten_names(params)
    for batch in evaluation_batches(examples, min(CALIBRATION_BATCH_SIZE, len(examples))):
        real = batch["example_index"] >= 0
        output = program(params, batch)
        mask = (batch["attention_mask"].reshape(-1, batch["attention_mask"].shape[-1]) > 0) & np.repeat(
            real, batch["attention_mask"].size // batch["attention_mask"].shape[-1] // len(real)
        )[:, None]
        masks.append(mask)
        flat = {name: batch[name].reshape(mask.shape) for name in ("input_ids", "token_type_ids")}
        embedded.append(_sum_rows(leaves, model.config, flat)[mask])
        states.append([np.asarray(hidden)[mask] for hidden in output.hidden_states])
        attention.append(
            [
                tuple(np.swapaxes(np.asarray(part), 1, 2)[mask] for part in (layer.query, layer.key, layer.value))
                for layer in output.attention
            ]
        )
        logits.append(np.asarray(output.logits)[real] if output.logits is not None else np.zeros((0,)))
    seen = Activations(
        masks,
        np.concatenate(embedded),
        [np.concatenate(parts) for parts in zip(*states, strict=True)],
        [
            tuple(np.concatenate(parts) for parts in zip(*layer, strict=True))  # type: ignore[misc]
            for layer in zip(*attention, strict=True)
        ],
    )
    return seen, np.concatenate(logits)


def _sum_rows(leaves: Mapping[str, np.ndarray], config: ModelConfig, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the sums of the tables' rows before the norm, as ``nn.embeddings.Embeddings.sum_rows``."""
    ids = batch["input_ids"]
    summed = leaves["embeddings.word.embedding"][ids]
    if config.type_vocab_size:
        summed = summed + leaves["embeddings.token_type.embedding"][batch["token_type_ids"]]
    if config.position_embedding == "none":
        return summed
    rows = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    if config.position_offset:
        real = ids != config.pad_token_id
        rows = np.cumsum(real, axis=1) * real + config.position_offset - 1
    learned = config.position_embedding == "learned"
    table = (
        leaves["embeddings.position.embedding"]
        if learned
        else sinusoids(config.max_position_embeddings, summed.shape[-1])
    )
    return summed + table[rows]


def _with_heads(
    student: Model, params: Params, narrowed: Narrowed, basis: np.ndarray, seen: Activations, logits: np.ndarray
) -> Params:
    """Returns the narrow encoder with heads that read the teacher's states out of the student's."""
    everything = flatten_names(params)
    leaves = {name: leaf for name, leaf in everything.items() if not name.startswith(("encoder.", "embeddings."))}
    found, by_name = flatten_names(narrowed.params), get_family(student.config.family).parameter_axes(list(everything))
    kernel, offset = fit(narrowed.states, seen.states[-1])
    pools = any(name in leaves for name in ("pooler.dense.kernel", "classifier_dense.kernel"))
    for name, leaf in leaves.items():
        module, _, part = name.rpartition(".")
        leaf_axes, value = by_name[name], leaf
        reads_states = not (pools and module in _READS_POOLED)
        if part == "kernel" and leaf_axes[0] == axes.EMBED and reads_states:
            value = kernel @ leaf
        elif part == "bias" and f"{module}.kernel" in leaves and reads_states:
            source = leaves[f"{module}.kernel"]
            value = leaf + offset @ source if len(source) == len(offset) else leaf
        found[name] = _turn(value, basis, leaf_axes)
    if "pooler.dense.kernel" in found and "classifier.kernel" in found:
        rows = zip(seen.by_row(narrowed.states), seen.masks, strict=True)
        first = np.concatenate([states[mask.any(axis=1), 0] for states, mask in rows])
        pooled = np.tanh(first @ found["pooler.dense.kernel"] + found["pooler.dense.bias"])
        found["classifier.kernel"], found["classifier.bias"] = fit(
            pooled, logits.reshape(len(pooled), -1), FEW_SAMPLES_RIDGE
        )
    expected = flatten_names(abstract_params(student.config, student.task))
    unfit = [name for name, leaf in expected.items() if name not in found or found[name].shape != leaf.shape]
    if unfit:
        raise ConfigError(
            f"student.init 'sliced' can not cut '{unfit[0]}', a head of the task {student.task}; use teacher_layers or random."
        )
    return unflatten_names({name: np.asarray(found[name], np.float32) for name in expected})


def _turn(leaf: np.ndarray, basis: np.ndarray, leaf_axes: tuple[str, ...]) -> np.ndarray:
    """Returns a leaf whose axes of the width of the teacher's residual stream are those of the student's."""
    for place, axis in enumerate(leaf_axes):
        if axis in (axes.EMBED, axes.POOLED, axes.PREDICTED) and leaf.shape[place] == len(basis):
            leaf = np.moveaxis(np.tensordot(leaf, basis, axes=(place, 0)), -1, place)
    return leaf
