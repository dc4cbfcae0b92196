"""Activation functions by the names that checkpoints use."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxbert.core.reductions import compute_once
from flaxbert.errors import ConfigError, nearest

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


@jax.custom_vjp
def gelu_erf(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x * Phi(x)`` with the exact normal distribution, float32 inside (Hendrycks and Gimpel, 2016).

    The backward pass keeps only the input: on CPU a float32 intermediate per layer would cost more than computing it anew.

    Args:
      inputs: Activations.

    Returns:
      The activations, in the type of the inputs.
    """
    values = inputs.astype(jnp.float32)
    return compute_once((values * (0.5 + 0.5 * lax.erf(values * math.sqrt(0.5)))).astype(inputs.dtype))


def _gelu_forward(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu_erf(inputs), inputs


def _gelu_backward(inputs: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    # The barrier stops XLA from keeping the forward pass's erf for this use.
    values = lax.optimization_barrier(inputs).astype(jnp.float32)
    density = jnp.exp(-0.5 * values * values) * (1.0 / math.sqrt(2.0 * math.pi))
    slope = 0.5 + 0.5 * lax.erf(values * math.sqrt(0.5)) + values * density
    return (compute_once((cotangent.astype(jnp.float32) * slope).astype(inputs.dtype)),)


gelu_erf.defvjp(_gelu_forward, _gelu_backward)


def gelu_tanh(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """The tanh approximation of GELU (Hendrycks and Gimpel, 2016, section 2).

    Args:
      inputs: Activations.

    Returns:
      The activations.
    """
    return jax.nn.gelu(inputs, approximate=True)


def gelu_quick(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x * sigmoid(1.702 x)``.

    Args:
      inputs: Activations.

    Returns:
      The activations.
    """
    return inputs * jax.nn.sigmoid(jnp.asarray(1.702, inputs.dtype) * inputs)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu_erf,
    "gelu_python": gelu_erf,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": gelu_quick,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda inputs: inputs,
}
"""Activations by the name in ``hidden_act``."""


def get_activation(name: str) -> Activation:
    """Returns an activation by name.

    Args:
      name: A key of ``ACTIVATIONS``.

    Raises:
      ConfigError: The name is unknown; lists the nearest.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"Unknown activation '{name}'; known are {', '.join(ACTIVATIONS)}.{nearest(name, ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]
