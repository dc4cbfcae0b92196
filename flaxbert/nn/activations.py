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

_END = 4.2
"""Where the polynomial below reaches 0 and 1, as which ``Phi`` counts from there on."""

_COEFFICIENTS = (
    0.39846587, -0.065528202, 0.0092982294, -0.00095065756, 6.6890705e-05, -3.0379323e-06, 7.9413423e-08, -9.0175366e-10,
)  # fmt: skip
"""Of ``(Phi(x) - 0.5) / x`` in powers of ``x**2``: the least largest error of ``x * Phi(x)``, 9e-5, found by weighted least squares."""


def _exact_phi(values: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * lax.erf(values * math.sqrt(0.5))


def _near_phi(values: jax.Array) -> jax.Array:
    """Returns the normal distribution by a polynomial; ``x`` times its error, 9e-5 at most, is below the rounding of bfloat16 results from 0.05 on."""
    inner = jnp.clip(values, -_END, _END)
    squares = inner * inner
    slope = jnp.full((), _COEFFICIENTS[-1], values.dtype)
    for coefficient in _COEFFICIENTS[-2::-1]:
        slope = slope * squares + jnp.float32(coefficient)
    return jnp.where(values > -_END, 0.5 + inner * slope, 0.0)


@jax.custom_vjp
def gelu_erf(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x * Phi(x)`` with the exact normal distribution, float32 inside (Hendrycks and Gimpel, 2016).

    The backward pass keeps only the input: on CPU a float32 intermediate per layer would cost more than computing it anew. Of
    bfloat16 inputs ``Phi`` is a polynomial on CPU, where erf took a twelfth of an int8 model's time.

    Args:
      inputs: Activations.

    Returns:
      The activations, in the type of the inputs.
    """
    values = inputs.astype(jnp.float32)
    if inputs.dtype == jnp.bfloat16:
        phi = lax.platform_dependent(values, cpu=_near_phi, default=_exact_phi)
    else:
        phi = _exact_phi(values)
    return compute_once((values * phi).astype(inputs.dtype))


def _gelu_forward(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu_erf(inputs), inputs


def _gelu_backward(inputs: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    # The barrier stops XLA from keeping the forward pass's erf for this use.
    values = lax.optimization_barrier(inputs).astype(jnp.float32)
    density = jnp.exp(-0.5 * values * values) * (1.0 / math.sqrt(2.0 * math.pi))
    slope = _exact_phi(values) + values * density
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
