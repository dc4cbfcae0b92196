"""Precision policy: in which type parameters are stored and matrix products are computed."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from flaxbert.errors import ConfigError, nearest

_COMPUTE_TYPES: dict[str, Any] = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
}


@dataclasses.dataclass(frozen=True)
class Precision:
    """The types of one run; parameters, norms, softmax and losses stay in float32.

    Attributes:
      name: float32, bfloat16 or float16: the type of activations and of the operands of matrix products.
    """

    name: str = "float32"

    def __post_init__(self) -> None:
        if self.name not in _COMPUTE_TYPES:
            raise ConfigError(
                f"Unknown precision '{self.name}'; choose one of {', '.join(_COMPUTE_TYPES)}."
                + nearest(self.name, _COMPUTE_TYPES)
            )

    @property
    def compute_dtype(self) -> Any:
        """Type of activations and of the operands of matrix products."""
        return _COMPUTE_TYPES[self.name]

    @property
    def needs_loss_scale(self) -> bool:
        """Whether gradients underflow without a scaled loss (float16 only)."""
        return self.name == "float16"
