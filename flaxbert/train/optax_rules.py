"""Update rules of optax behind the interface of our own: LAMB, Lion, Adafactor, Muon and StableAdamW."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from flaxbert.config import TrainConfig
from flaxbert.train.optimizer import Leaves, Optimizer, OptimizerState

OTHER = "other"
"""Kind of what a rule remembers beside arrays that are as large as a parameter."""

_MATRIX = re.compile(r"(.*\.)?encoder\..*kernel")
"""What Muon makes orthogonal: the matrices inside the blocks, not embeddings and heads (Jordan et al., 2024)."""


def _stable_scale(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Adam whose step on each array shrinks where its gradients outgrow their second moments (Wortsman et al., 2023, section 3.3)."""
    adam = optax.scale_by_adam(beta1, beta2, epsilon)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        changes, after = cast("tuple[Any, Any]", adam.update(updates, state, params))
        corrected = optax.tree.bias_correction(after.nu, beta2, after.count)

        def shrink(change: jax.Array, gradient: jax.Array, second: jax.Array) -> jax.Array:
            ratio = jnp.mean(gradient**2 / jnp.maximum(second, jnp.float32(epsilon**2)))
            return change / jnp.maximum(jnp.float32(1.0), jnp.sqrt(ratio))

        return jax.tree.map(shrink, changes, updates, corrected), after

    return optax.GradientTransformation(adam.init, update)


def _lamb(config: TrainConfig, decay: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(config.adam_beta1, config.adam_beta2, config.adam_epsilon),
        optax.add_decayed_weights(config.weight_decay, decay),
        optax.scale_by_trust_ratio(),
    )


def _lion(config: TrainConfig, decay: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_lion(config.adam_beta1, config.adam_beta2), optax.add_decayed_weights(config.weight_decay, decay)
    )


def _adafactor(config: TrainConfig, decay: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
        optax.add_decayed_weights(config.weight_decay, decay),
    )


def _stable_adamw(config: TrainConfig, decay: Any) -> optax.GradientTransformation:
    return optax.chain(
        _stable_scale(config.adam_beta1, config.adam_beta2, config.adam_epsilon),
        optax.add_decayed_weights(config.weight_decay, decay),
    )


def _muon(config: TrainConfig, decay: Any) -> optax.GradientTransformation:
    # The factor makes a step as large as Adam's usual one (Liu et al., 2025, section 2.2), so that one learning rate serves both.
    matrices = optax.chain(
        optax.contrib.scale_by_muon(beta=config.momentum or 0.95, weight_dimension_numbers=_dimensions),
        optax.stateless(lambda changes, _: jax.tree.map(lambda change: change * _adam_size(change.shape), changes)),
    )
    others = optax.scale_by_adam(config.adam_beta1, config.adam_beta2, config.adam_epsilon)

    def kinds(params: Mapping[str, Any]) -> dict[str, str]:
        return {
            name: "matrix" if leaf.ndim == 2 and _MATRIX.fullmatch(name) else "other" for name, leaf in params.items()
        }

    return optax.chain(
        optax.partition({"matrix": matrices, "other": others}, kinds),
        optax.add_decayed_weights(config.weight_decay, decay),
    )


def _dimensions(params: Any) -> Any:
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(0, 1), params)


def _adam_size(shape: tuple[int, ...]) -> jax.Array:
    return jnp.float32(0.2 * max(shape) ** 0.5)


RULES: dict[str, Callable[[TrainConfig, Any], optax.GradientTransformation]] = {
    "lamb": _lamb,
    "lion": _lion,
    "adafactor": _adafactor,
    "muon": _muon,
    "stable_adamw": _stable_adamw,
}
"""Builders ``(options, which parameters decay) -> direction of a step``, before the learning rate."""


def _for_each_layer(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the rule for arrays that are stacks of layers, as if each layer had arrays of its own."""
    return optax.GradientTransformation(jax.vmap(rule.init), jax.vmap(rule.update))


def _by_group(
    groups: Mapping[int, Sequence[str]], rules: Mapping[int, optax.GradientTransformation]
) -> optax.GradientTransformation:
    """Returns one rule for all parameters, whose state has a part for each group."""

    def pick(arrays: Mapping[str, Any], number: int) -> dict[str, Any]:
        return {name: arrays[name] for name in groups[number]}

    def init(params: Any) -> Any:
        return {f"layers_{number}": rule.init(pick(params, number)) for number, rule in rules.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        changes: dict[str, Any] = {}
        after: dict[str, Any] = {}
        for number, rule in rules.items():
            part = f"layers_{number}"
            found, after[part] = rule.update(pick(updates, number), state[part], pick(params, number))
            changes |= cast("dict[str, Any]", found)
        return changes, after

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class OptaxOptimizer(Optimizer):
    """An update rule of optax with our schedule, clipping and decay.

    What a rule takes from whole arrays (LAMB's ratio of norms, the root mean squares of Adafactor and StableAdamW, Muon's matrices) it takes from
    each layer, also where layers are stacked.

    Attributes:
      config: Options of the rule.
      stacked: Names of the parameters that hold a stack of layers along their first axis.
    """

    config: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    stacked: frozenset[str] = frozenset()

    def _rule(self, trainable: Mapping[str, Any]) -> optax.GradientTransformation:
        decay = {name: value > 0 for name, value in self.decays(trainable).items()}
        groups: dict[int, list[str]] = {}
        for name, leaf in trainable.items():
            groups.setdefault(leaf.shape[0] if name in self.stacked else 0, []).append(name)
        rules = {}
        for num_layers, names in groups.items():
            rule = RULES[self.name](self.config, {name: decay[name] for name in names})
            rules[num_layers] = _for_each_layer(rule) if num_layers else rule
        return rules[0] if list(groups) == [0] else _by_group(groups, rules)

    def init(self, trainable: Mapping[str, Any]) -> OptimizerState:
        """See ``Optimizer.init``."""
        zeros = {name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in trainable.items()}
        with jax.numpy_dtype_promotion("standard"):
            state = self._rule(trainable).init(zeros)
        return OptimizerState(count=jnp.zeros((), jnp.int32), moments=_by_kind(state, zeros))

    def update(
        self,
        trainable: Leaves,
        state: OptimizerState,
        gradients: Leaves,
        *,
        learning_rate: Float[Array, ""],
        gradient_factor: Float[Array, ""],
        apply: Bool[Array, ""],
    ) -> tuple[Leaves, OptimizerState]:
        """See ``Optimizer.update``."""
        rule = self._rule(trainable)
        scaled = {name: gradients[name].astype(jnp.float32) * gradient_factor for name in trainable}
        # Not-a-number must not reach the rule's state, whose old value is taken back below by a choice.
        scaled = {name: jnp.where(apply, gradient, jnp.zeros_like(gradient)) for name, gradient in scaled.items()}
        with jax.numpy_dtype_promotion("standard"):
            structure = jax.eval_shape(rule.init, trainable)
            before = _from_kinds(structure, state.moments, trainable)
            changes, after = cast("tuple[Any, Any]", rule.update(scaled, before, trainable))
        kept = jax.tree.map(lambda new, old: jnp.where(apply, new, old), after, before)
        updated = {
            name: jnp.where(apply, leaf - learning_rate * changes[name].astype(jnp.float32), leaf)
            for name, leaf in trainable.items()
        }
        count = jnp.where(apply, state.count + jnp.int32(1), state.count)
        return updated, OptimizerState(count=count, moments=_by_kind(kept, trainable))

    def last_update(self, trainable: Leaves, state: OptimizerState, learning_rate: Float[Array, ""]) -> Leaves | None:
        """Returns None: the state of these rules does not tell."""
        del trainable, state, learning_rate
        return None


def _place(path: tuple[Any, ...], leaf: Any, params: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the kind and the name of an array in a rule's state."""
    last = path[-1]
    name = str(last.key) if isinstance(last, jax.tree_util.DictKey) else ""
    whole = jax.tree_util.keystr(path, simple=True, separator="/")
    if name in params and params[name].shape == leaf.shape:
        return jax.tree_util.keystr(path[:-1], simple=True, separator="/"), name
    return OTHER, whole


def _by_kind(state: Any, params: Mapping[str, Any]) -> dict[str, Leaves]:
    kinds: dict[str, Leaves] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        kind, name = _place(path, leaf, params)
        kinds.setdefault(kind, {})[name] = leaf
    return kinds


def _from_kinds(structure: Any, moments: Mapping[str, Leaves], params: Mapping[str, Any]) -> Any:
    def find(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        kind, name = _place(path, leaf, params)
        return moments[kind][name]

    return jax.tree_util.tree_map_with_path(find, structure)
