"""Documents beside the arrays."""

import json

import numpy as np
import pytest

from flaxbert.errors import CheckpointError
from flaxbert.train.version_documents import encode_json, software_versions


def test_documents_come_back_as_they_were_and_numpy_numbers_plain():
    document = {"a": [1, 0.1, None, True, "ü"], "b": {"c": np.float32(0.5), "d": np.int64(2**60), "e": np.bool_(True)}}
    encoded = encode_json(document, "x")
    assert encoded.endswith(b"\n")
    assert json.loads(encoded) == {"a": [1, 0.1, None, True, "ü"], "b": {"c": 0.5, "d": 2**60, "e": True}}


@pytest.mark.parametrize("value", [{1, 2}, b"x", np.ones(2), object()])
def test_anything_else_is_an_error_that_shows_the_value(value):
    with pytest.raises(CheckpointError, match=rf"The host document .* of type {type(value).__name__}"):
        encode_json({"value": value}, "The host document")


def test_circles_are_an_error():
    circle: dict = {}
    circle["self"] = circle
    with pytest.raises(CheckpointError, match="Circular"):
        encode_json(circle, "x")


def test_software_names_python_and_jax():
    found = software_versions()
    assert found["python"].count(".") == 2
    assert found["jax"][0].isdigit()
    assert "orbax-checkpoint" in found
