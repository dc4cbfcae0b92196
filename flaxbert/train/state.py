"""The state of training: what is trained, what stays, and everything a step needs to know of the steps before it."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from flaxbert.config import FreezeRule
from flaxbert.core.arrays import Params, TypedArray, is_quantized
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.sharding import param_shardings, replicated
from flaxbert.core.trees import STACKED, flatten_names, flatten_parts, leaf_kinds, unflatten_parts
from flaxbert.errors import RuleError
from flaxbert.train.guard import new_guard_state
from flaxbert.train.optimizer import Optimizer, OptimizerState

NO_BAD_STEP = -1
"""Value of ``first_bad_step`` while no step was one too many."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a training step reads and writes.

    Attributes:
      step: Steps taken, skipped ones included, int32.
      trainable: float32 arrays that receive gradients, by ``name`` or ``name@part``.
      frozen: All other stored arrays: frozen by rule, integer codes and their scales, masks.
      optimizer: State of the optimizer over ``trainable``.
      learning_rate_factor: What the schedule's learning rate is multiplied by (reduction on plateau), float32.
      loss_scale: Factor of the loss before differentiation, 1 unless training in float16, float32.
      finite_steps: Finite steps since the loss scale last changed, int32.
      first_bad_step: The first step at which the run can not go on (``StepGuard``), -1 without one, int32.
      guard: Recent losses and gradient norms, and the number of steps that were left out.
    """

    step: Any
    trainable: Any
    frozen: Any
    optimizer: Any
    learning_rate_factor: Any
    loss_scale: Any
    finite_steps: Any
    first_bad_step: Any
    guard: Any

    def replace(self, **changes: Any) -> "TrainState":
        """Returns a copy with some fields changed.

        Args:
          changes: New values by field.
        """
        return dataclasses.replace(self, **changes)


def join_params(state: TrainState, kinds: Mapping[str, str]) -> Params:
    """Returns the parameter tree of a state; the arrays are the state's own, not copies.

    Args:
      state: A training state, or its structure with specs or shapes in place of arrays.
      kinds: Kind of each typed leaf by name, from ``create_state``.
    """
    return unflatten_parts({**state.trainable, **state.frozen}, kinds)


def _numbered_names(name: str, leaf: Any) -> list[str]:
    marker = f".{STACKED}."
    if marker not in name:
        return [name]
    return [name.replace(marker, f".{index}.") for index in range(leaf.shape[0])]


def frozen_leaves(params: Mapping[str, Any], rules: Sequence[FreezeRule]) -> dict[str, bool]:
    """Decides which leaves the freeze rules keep as they are.

    Rules are written for numbered layers and mean the same for stacked ones, where all layers must agree.

    Args:
      params: Parameter tree, layers stacked or not.
      rules: Tried in order; leaves that no rule matches are trained.

    Returns:
      Whether each leaf is frozen, by leaf name.

    Raises:
      RuleError: A rule matches no leaf, or freezes some of the layers that are stacked in one array.
    """
    leaves = flatten_names(params)
    numbered = {name: _numbered_names(name, leaf) for name, leaf in leaves.items()}
    ordered = [Rule(rule.pattern, rule.frozen) for rule in rules]
    names = [name for group in numbered.values() for name in group]
    matched = match_rules(names, [*ordered, Rule(r".*", False, optional=True)], purpose="train.freeze")
    frozen: dict[str, bool] = {}
    for name, group in numbered.items():
        values = [matched[member] for member in group]
        if len(set(values)) > 1:
            index = values.index(True)
            pattern = next(rule.pattern for rule in rules if re.fullmatch(rule.pattern, group[index]))
            raise RuleError(
                f"The train.freeze rule '{pattern}' freezes '{group[index]}' but not "
                f"'{group[values.index(False)]}', and scanned layers share one array; freeze all layers or none, "
                "or train with unrolled layers (model.scan_layers: false)."
            )
        frozen[name] = values[0]
    return frozen


def _is_trainable(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def split_parts(params: Mapping[str, Any], rules: Sequence[FreezeRule]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits the stored arrays into those that are trained and those that are not.

    Integer arrays, masks and both parts of quantized leaves are never trained.

    Args:
      params: Parameter tree.
      rules: ``train.freeze``.

    Returns:
      Arrays to train and all others, both by part name.

    Raises:
      RuleError: A rule is not usable, or nothing is left to train.
    """
    frozen_by_rule = frozen_leaves(params, rules)
    trainable: dict[str, Any] = {}
    frozen: dict[str, Any] = {}
    for name, leaf in flatten_names(params).items():
        fixed = frozen_by_rule[name] or is_quantized(leaf)
        parts = leaf.stored_parts() if isinstance(leaf, TypedArray) else {"": leaf}
        for part, array in parts.items():
            target = frozen if fixed or not _is_trainable(array) else trainable
            target[f"{name}@{part}" if part else name] = array
    if not trainable:
        patterns = ", ".join(f"'{rule.pattern}'" for rule in rules) or "none"
        raise RuleError(
            f"Nothing is left to train: all {len(frozen)} arrays are frozen, by the train.freeze rules ({patterns}) or "
            "because they are quantized. Remove a rule, or start from a model that is not quantized."
        )
    return trainable, frozen


def _place(array: Any, dtype: Any, sharding: NamedSharding | None, copy: bool) -> jax.Array:
    if jax.process_count() > 1 and sharding is not None:
        host = np.asarray(array, dtype)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
    if array.dtype != dtype:
        array, copy = array.astype(dtype), False
    return jax.device_put(array, sharding, may_alias=None if not copy else False)


def _fresh_state(optimizer: Optimizer, trainable: Mapping[str, Any], loss_scale: float) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable={},
        frozen={},
        optimizer=optimizer.init(trainable),
        learning_rate_factor=jnp.ones((), jnp.float32),
        loss_scale=jnp.full((), loss_scale, jnp.float32),
        finite_steps=jnp.zeros((), jnp.int32),
        first_bad_step=jnp.full((), NO_BAD_STEP, jnp.int32),
        guard=new_guard_state(),
    )


def create_state(
    params: Mapping[str, Any],
    freeze: Sequence[FreezeRule],
    optimizer: Optimizer,
    *,
    leaf_axes: Mapping[str, Sequence[str]] | None = None,
    mesh: Mesh | None = None,
    loss_scale: float = 1.0,
    copy: bool = True,
) -> tuple[TrainState, dict[str, str]]:
    """Builds the state before the first step, placed on the devices.

    Args:
      params: Parameter tree, as ``Model.params`` holds it.
      freeze: ``train.freeze``.
      optimizer: The optimizer that will update it.
      leaf_axes: Axis names by leaf name; needed with a mesh.
      mesh: Mesh over which the state is split; None keeps it on the default device.
      loss_scale: First loss scale; 1 unless training in float16.
      copy: Whether to copy the arrays. A training step overwrites the arrays of its state, so only say False when
        nobody reads ``params`` afterwards.

    Returns:
      The state, and the kinds of typed leaves that ``join_params`` needs.

    Raises:
      RuleError: A freeze rule is not usable, or nothing is left to train.
      MeshError: A leaf can not be split over the mesh.
    """
    trainable, frozen = split_parts(params, freeze)
    kinds = leaf_kinds(params)

    # JAX keeps what it compiled alive, so it must only see shapes, never the arrays.
    shapes = {name: jax.ShapeDtypeStruct(array.shape, jnp.float32) for name, array in trainable.items()}
    fresh = functools.partial(_fresh_state, optimizer, shapes, loss_scale)
    structure = jax.eval_shape(fresh).replace(trainable=trainable, frozen=frozen)
    shardings = None if mesh is None else state_shardings(structure, leaf_axes or {}, mesh, kinds)
    state = jax.jit(fresh, out_shardings=shardings and shardings.replace(trainable={}, frozen={}))()

    def place(name: str, array: Any, group: str) -> jax.Array:
        dtype = jnp.float32 if group == "trainable" else array.dtype
        return _place(array, dtype, None if shardings is None else getattr(shardings, group)[name], copy)

    state = state.replace(
        trainable={name: place(name, array, "trainable") for name, array in trainable.items()},
        frozen={name: place(name, array, "frozen") for name, array in frozen.items()},
    )
    return state, kinds


def _shape(state: TrainState, name: str) -> tuple[int, ...] | None:
    return state.trainable[name].shape if name in state.trainable else None


def state_shardings(
    state: TrainState, leaf_axes: Mapping[str, Sequence[str]], mesh: Mesh, kinds: Mapping[str, str]
) -> TrainState:
    """Returns how every array of a state is split over a mesh.

    Optimizer moments follow their parameter; scalars and what a rule keeps otherwise are whole on every device.

    Args:
      state: A state, or its structure with shapes.
      leaf_axes: Axis names by leaf name, from the family.
      mesh: The mesh.
      kinds: Kind of each typed leaf by name.

    Returns:
      The structure of the state with a ``NamedSharding`` per array.

    Raises:
      MeshError: A leaf has no axis names or can not be split.
    """
    by_part = flatten_parts(param_shardings(join_params(state, kinds), leaf_axes, mesh))
    whole = replicated(mesh)
    moments = {
        kind: {
            name: by_part.get(name, whole) if leaf.shape == _shape(state, name) else whole
            for name, leaf in leaves.items()
        }
        for kind, leaves in state.optimizer.moments.items()
    }
    return TrainState(
        step=whole,
        trainable={name: by_part[name] for name in state.trainable},
        frozen={name: by_part[name] for name in state.frozen},
        optimizer=OptimizerState(count=whole, moments=moments),
        learning_rate_factor=whole,
        loss_scale=whole,
        finite_steps=whole,
        first_bad_step=whole,
        guard=jax.tree.map(lambda _: whole, state.guard),
    )
