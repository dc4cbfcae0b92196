"""A store of objects that tests of this folder share."""

import pytest

from tests.object_store import object_store


@pytest.fixture(scope="session")
def store():
    """The store; every test takes a prefix of its own in it."""
    with pytest.MonkeyPatch.context() as patch, object_store(patch) as running:
        yield running
