"""The plugin that counts what was not run."""

import pathlib

import pytest

from tests.helpers import run_python
from tests.skip_ledger import unknown_reasons

PROGRAM = """
import pytest

@pytest.mark.skip(reason="{reason}")
def test_left_out(): pass

def test_run(): pass
"""

EXPECTED_FAILURE = "import pytest\n@pytest.mark.xfail(reason='later')\ndef test_x(): raise ValueError\n"
MODULE_LEFT_OUT = "import pytest\npytest.skip('no reason', allow_module_level=True)\n"


def run_suite(folder: pathlib.Path, text: str) -> tuple[int, str]:
    (folder / "test_sample.py").write_text(text, encoding="utf-8")
    arguments = [
        "-m",
        "pytest",
        "-p",
        "tests.skip_ledger",
        "-p",
        "no:cacheprovider",
        f"--rootdir={folder}",
        str(folder),
    ]
    result = run_python(arguments, folder=folder, environment={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    return result.returncode, result.stdout


def test_a_known_reason_is_counted_and_passes(tmp_path: pathlib.Path) -> None:
    code, output = run_suite(tmp_path, PROGRAM.format(reason="needs a GPU"))
    assert code == 0
    assert "   1  needs a GPU" in output


@pytest.mark.parametrize("reason", [pytest.param("flaky today", marks=pytest.mark.slow), "needs a GPU and luck"])
def test_an_unknown_reason_fails_the_run(tmp_path: pathlib.Path, reason: str) -> None:
    code, output = run_suite(tmp_path, PROGRAM.format(reason=reason))
    assert code == 1
    assert f"{reason}   <- not in tests/skip_ledger.py" in output


def test_an_expected_failure_counts_as_a_skip(tmp_path: pathlib.Path) -> None:
    code, output = run_suite(tmp_path, EXPECTED_FAILURE)
    assert code == 1
    assert "xfail: later" in output


@pytest.mark.slow
def test_a_module_that_is_left_out_counts(tmp_path: pathlib.Path) -> None:
    code, output = run_suite(tmp_path, MODULE_LEFT_OUT)
    assert code != 0
    assert "no reason" in output


def test_reasons_match_as_a_whole() -> None:
    assert unknown_reasons(["needs a GPU", "it needs a GPU", "needs FLAXBERT_TEST_DATA, the folder"]) == [
        "it needs a GPU"
    ]
