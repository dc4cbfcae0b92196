"""The tests do check shapes and types of what they call."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from flaxbert.config.quantization import QuantizationSpec
from flaxbert.core.integer_dot import integer_dot
from tests.lazy_checks import unchecked

CODES = jnp.ones((4, 2), jnp.int8)


def test_a_wrong_type_of_an_array_is_found() -> None:
    with pytest.raises(TypeCheckError):
        integer_dot(jnp.ones((3, 4), jnp.float32), CODES, 0)


def test_a_wrong_number_of_axes_is_found() -> None:
    with pytest.raises(TypeCheckError):
        integer_dot(jnp.ones((3, 4), jnp.int8), CODES[None], 0)


def test_a_wrong_field_of_a_dataclass_is_found() -> None:
    with pytest.raises(TypeCheckError):
        QuantizationSpec(bits="8")  # type: ignore[arg-type]


def test_measurements_call_functions_as_users_do() -> None:
    with unchecked():
        products = integer_dot(jnp.ones((3, 4), jnp.int8), CODES, 0)
    assert products.shape == (3, 2)
    with pytest.raises(TypeCheckError):
        integer_dot(jnp.ones((3, 4), jnp.float32), CODES, 0)
