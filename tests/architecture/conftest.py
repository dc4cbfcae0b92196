"""What the rules of this folder share."""

from collections.abc import Iterator

import pytest

from tests.architecture.sources import read_source


@pytest.fixture(scope="package", autouse=True)
def _forget_trees() -> Iterator[None]:
    """Lets go of the syntax trees after the last rule: other tests need the memory."""
    yield
    read_source.cache_clear()
