"""Models and a store of objects that tests of this folder share."""

import pathlib

import pytest

from flaxbert.model import load
from tests.object_store import object_store
from tests.weights.tiny import CONFIG, write_tiny


@pytest.fixture(scope="session")
def store():
    """The store; every test takes a prefix of its own in it."""
    with pytest.MonkeyPatch.context() as patch, object_store(patch) as running:
        yield running


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> list[pathlib.Path]:
    """Model folders that differ in their weights."""
    base = tmp_path_factory.mktemp("models")
    made = []
    for number in range(4):
        drawn = load(write_tiny(base / f"drawn{number}", config=CONFIG.replace(initializer_range=0.1 + number / 10)))
        made.append(drawn.save(base / f"model{number}"))
    return made
