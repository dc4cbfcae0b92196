"""AdamW, Adam and SGD as one fused pass over the parameters.

The updates are written out leaf by leaf instead of as an optax chain: on CPU, XLA then reads and writes every array once.
For 110 M parameters on two cores a chain takes 0.33 s and 438 MB of scratch, this form 0.15 s and 6 MB, with clipping and
the guard against steps that are not finite included. The numbers are those of ``torch.optim``.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxbert.config import OptimizerName
from flaxbert.core.rules import Rule, match_rules
from flaxbert.train.schedules import Schedule

Leaves = dict[str, jax.Array]
"""Arrays by flat part name."""

DECAY_RULES: tuple[Rule[bool], ...] = (
    Rule(r"(.*\.)?bias(@.*)?", False, optional=True),
    Rule(r"(.*\.)?norm\.scale(@.*)?", False, optional=True),
    Rule(r".*@(scores|step|input_step)", False, optional=True),
    Rule(r".*", True, optional=True),
)
"""Which parameters weight decay shrinks: all but biases, norms, scores of pruning and steps of rounding."""

NORM_EPSILON = 1e-6
"""Added to the norm that gradients are divided by when they are clipped, as torch does."""

NORM_ROWS = 16
"""Rows whose squares are added up at once on CPU; 8 to 64 are equally fast."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers.

    Attributes:
      count: Updates that were applied; skipped steps do not count.
      moments: Running averages by kind (``first`` and ``second``, or ``momentum``), each by parameter name, float32.
    """

    count: Any
    moments: Any


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An update rule with its schedule, clipping and decay.

    Attributes:
      name: adamw (Loshchilov and Hutter, 2019: decay beside the gradient), adam (Kingma and Ba, 2015) or sgd with
        momentum; the latter two add the decay to the gradient, as torch does.
      schedule: Learning rate by step.
      weight_decay: Decay per step, times the learning rate.
      max_grad_norm: Gradients are scaled down to this global norm; 0 does not clip.
      beta1: Decay of the first moment.
      beta2: Decay of the second moment.
      epsilon: Added to the root of the second moment.
      momentum: Momentum of sgd.
      decay_rules: Which parameters decay, by name.
    """

    name: OptimizerName
    schedule: Schedule
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    momentum: float = 0.9
    decay_rules: tuple[Rule[bool], ...] = DECAY_RULES

    @property
    def moment_names(self) -> tuple[str, ...]:
        """Kinds of running averages that the rule keeps."""
        if self.name == "sgd":
            return ("momentum",) if self.momentum else ()
        return ("first", "second")

    def init(self, trainable: Mapping[str, Any]) -> OptimizerState:
        """Returns the state before the first update: everything zero, in float32.

        Args:
          trainable: Parameters by part name.
        """
        moments = {
            kind: {name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in trainable.items()}
            for kind in self.moment_names
        }
        return OptimizerState(count=jnp.zeros((), jnp.int32), moments=moments)

    def decays(self, names: Mapping[str, Any]) -> dict[str, float]:
        """Returns the weight decay of every parameter.

        Args:
          names: Parameters by part name.

        Raises:
          RuleError: A rule of one's own matches no parameter.
        """
        matched = match_rules(list(names), self.decay_rules, purpose="weight decay")
        return {name: self.weight_decay if decays else 0.0 for name, decays in matched.items()}

    def clip_factor(self, norm: Float[Array, ""]) -> Float[Array, ""]:
        """Returns what gradients of a global norm are multiplied by, ``min(1, max_grad_norm / (norm + 1e-6))``."""
        if self.max_grad_norm <= 0:
            return jnp.ones((), jnp.float32)
        return jnp.minimum(jnp.float32(1.0), jnp.float32(self.max_grad_norm) / (norm + jnp.float32(NORM_EPSILON)))

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
        """Takes one step.

        Args:
          trainable: float32 parameters.
          state: State of the optimizer over them.
          gradients: Gradients of the same names and shapes.
          learning_rate: Step size.
          gradient_factor: What the gradients are multiplied by first (clipping, loss scale and batch weight in one).
          apply: Whether the step is taken; otherwise parameters and state come back as they are.

        Returns:
          New parameters and state.
        """
        rule = self._sgd if self.name == "sgd" else self._adam
        count = jnp.where(apply, state.count + jnp.int32(1), state.count)
        leaf_update = rule(state.count + jnp.int32(1), learning_rate)
        updated: Leaves = {}
        moments: dict[str, Leaves] = {kind: {} for kind in self.moment_names}
        for name, decay in self.decays(trainable).items():
            before = (trainable[name], *(state.moments[kind][name] for kind in self.moment_names))
            gradient = gradients[name].astype(jnp.float32) * gradient_factor
            updated[name], *after = leaf_update(gradient, decay, apply, *before)
            for kind, moment in zip(self.moment_names, after, strict=True):
                moments[kind][name] = moment
        return updated, OptimizerState(count=count, moments=moments)

    def last_update(self, trainable: Leaves, state: OptimizerState, learning_rate: Float[Array, ""]) -> Leaves | None:
        """Returns what the last applied step added to the parameters, worked out from what it left behind.

        A step is ``new = old * shrink - change`` with a change that follows from the moments after it, hence
        ``new - old = -(learning_rate * decay * new + change) / shrink``.

        Args:
          trainable: Parameters after the step.
          state: State after it.
          learning_rate: Its step size.

        Returns:
          Arrays by name; None for a rule whose state does not tell.
        """
        if not self.moment_names:
            return None
        change_of = self._adam_change(state.count, learning_rate)
        added: Leaves = {}
        for name, decay in self.decays(trainable).items():
            moments = [state.moments[kind][name] for kind in self.moment_names]
            if self.name == "sgd":
                added[name] = -learning_rate * moments[0]
                continue
            decayed = learning_rate * jnp.float32(decay if self.name == "adamw" else 0.0)
            added[name] = -(decayed * trainable[name] + change_of(*moments)) / (jnp.float32(1.0) - decayed)
        return added

    def _adam_change(self, count: Int[Array, ""], learning_rate: Float[Array, ""]) -> Callable[..., jax.Array]:
        # 1 - beta**count, exact also where beta is close to 1: the logarithm is taken in double precision.
        steps = count.astype(jnp.float32)
        first_correction = -jnp.expm1(steps * jnp.float32(math.log(self.beta1))) if self.beta1 else jnp.float32(1.0)
        second_correction = -jnp.expm1(steps * jnp.float32(math.log(self.beta2))) if self.beta2 else jnp.float32(1.0)
        step_size = learning_rate / first_correction
        root_factor = jax.lax.rsqrt(second_correction)
        return lambda first, second: step_size * first / (jnp.sqrt(second) * root_factor + jnp.float32(self.epsilon))

    def _adam(self, count: Int[Array, ""], learning_rate: Float[Array, ""]) -> Callable[..., tuple[jax.Array, ...]]:
        change_of = self._adam_change(count, learning_rate)
        decoupled = self.name == "adamw"

        def update(
            gradient: jax.Array, decay: float, apply: jax.Array, leaf: jax.Array, *moments: jax.Array
        ) -> tuple[jax.Array, ...]:
            if decay and not decoupled:
                gradient = gradient + jnp.float32(decay) * leaf
            first = jnp.float32(self.beta1) * moments[0] + jnp.float32(1.0 - self.beta1) * gradient
            second = jnp.float32(self.beta2) * moments[1] + jnp.float32(1.0 - self.beta2) * gradient * gradient
            # The new leaf is computed from the moments as they are written: from the old ones, XLA would copy those.
            first, second = jnp.where(apply, first, moments[0]), jnp.where(apply, second, moments[1])
            shrink = jnp.float32(1.0) - learning_rate * jnp.float32(decay if decoupled else 0.0)
            return jnp.where(apply, leaf * shrink - change_of(first, second), leaf), first, second

        return update

    def _sgd(self, count: Int[Array, ""], learning_rate: Float[Array, ""]) -> Callable[..., tuple[jax.Array, ...]]:
        del count

        def update(
            gradient: jax.Array, decay: float, apply: jax.Array, leaf: jax.Array, *moments: jax.Array
        ) -> tuple[jax.Array, ...]:
            if decay:
                gradient = gradient + jnp.float32(decay) * leaf
            if not moments:
                return (jnp.where(apply, leaf - learning_rate * gradient, leaf),)
            momentum = jnp.where(apply, jnp.float32(self.momentum) * moments[0] + gradient, moments[0])
            return jnp.where(apply, leaf - learning_rate * momentum, leaf), momentum

        return update


def _sum_of_squares(array: jax.Array) -> jax.Array:
    return jnp.sum(array * array)


def _sum_of_squares_by_rows(array: jax.Array) -> jax.Array:
    # XLA's CPU backend writes the squares to memory before it sums them; a loop over blocks of rows does not.
    rows = array.reshape(-1, array.shape[-1])
    num_blocks = rows.shape[0] // NORM_ROWS

    def add(index: jax.Array, sums: jax.Array) -> jax.Array:
        block = jax.lax.dynamic_slice_in_dim(rows, index * jnp.int32(NORM_ROWS), NORM_ROWS)
        return sums + block * block

    sums = jax.lax.fori_loop(0, num_blocks, add, jnp.zeros((NORM_ROWS, rows.shape[1]), jnp.float32))
    return jnp.sum(sums) + _sum_of_squares(rows[num_blocks * NORM_ROWS :])


def global_norm(leaves: Mapping[str, jax.Array], sharded: bool = False) -> Float[Array, ""]:
    """Returns the Euclidean norm of all arrays together, in one pass over them.

    Args:
      leaves: Arrays by name.
      sharded: Whether they are split over devices; every device then adds up its own pieces.
    """
    total = jnp.zeros((), jnp.float32)
    for leaf in leaves.values():
        array = leaf.astype(jnp.float32)
        if sharded or array.ndim < 2 or array.size // array.shape[-1] <= NORM_ROWS:
            total = total + _sum_of_squares(array)
        else:
            total = total + jax.lax.platform_dependent(array, cpu=_sum_of_squares_by_rows, default=_sum_of_squares)
    return jnp.sqrt(total)
