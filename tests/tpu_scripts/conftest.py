"""Fixtures of the launchers' tests."""

import pathlib
import shutil
import sys

import pytest

from tests.tpu_scripts.cloud import Cloud


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> Cloud:
    return Cloud(tmp_path)


@pytest.fixture(scope="session")
def shellcheck() -> str:
    beside = pathlib.Path(sys.executable).parent / "shellcheck"
    found = str(beside) if beside.is_file() else shutil.which("shellcheck")
    if not found:
        pytest.skip("needs shellcheck")
    return found
