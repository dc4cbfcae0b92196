"""What never appears in the repository."""

import ast
import pathlib
import re
from collections.abc import Iterable, Iterator

import pytest

from tests.architecture.sources import Source, expect_none, parse, read_sources
from tests.helpers import ROOT

TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".cfg", ".txt", ".json", ""}
TEXT_FOLDERS = ("flaxbert", "tests", "benchmarks", "docs", "configs", "tpu_scripts", ".ci")

# The marks are put together here, so that this file does not hold what it looks for.
LEFT_OVER_MARK = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK")) + r")\b")
MACHINE_PATH = re.compile(r"(?<![\w.$}~/-])/(?:root|work|home/(?!somebody\b)[a-z]\w*|Users/\w+|opt/pypi\S*)(?:/|\b)")
INDEX_OPTION = re.compile("--(?:(?:extra-)?index-" + "url|find-" + "links|trusted-" + "host)")


def forbidden_syntax(sources: Iterable[Source]) -> list[str]:
    """Returns asserts, swallowed errors, unfinished functions and postponed annotations, with file and line."""
    found = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.stmt | ast.ExceptHandler) and (problem := _problem(node)):
                found.append(f"{source.path}:{node.lineno} {problem}")
    return found


def _problem(node: ast.AST) -> str:
    match node:
        case ast.Assert():
            return "assert, which python -O removes; raise an error that says how to mend it"
        case ast.ExceptHandler(type=None):
            return "bare except"
        case ast.ExceptHandler(type=ast.Name(id="Exception" | "BaseException"), body=body):
            quiet = all(isinstance(part, ast.Pass | ast.Continue) for part in body)
            return "error swallowed" if quiet else ""
        case ast.Raise(exc=ast.Name(id=name) | ast.Call(func=ast.Name(id=name))) if name == "NotImplemented" + "Error":
            return f"raises {name}"
        case ast.ImportFrom(module="__future__"):
            return "postponed annotations, which jaxtyping can not check"
    return ""


def forbidden_text(name: str, text: str) -> list[str]:
    """Returns left-over marks, paths of one machine and options of one package index, with file and line."""
    kinds = (
        (LEFT_OVER_MARK, "left-over mark"),
        (MACHINE_PATH, "path of one machine"),
        (INDEX_OPTION, "index of one machine"),
    )
    return [
        f"{name}:{number} {kind} {match[0]}"
        for number, line in enumerate(text.splitlines(), start=1)
        for pattern, kind in kinds
        for match in pattern.finditer(line)
    ]


def text_files(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the text files of the repository: those at the top and those in its folders."""
    top = (path for path in root.iterdir() if path.is_file())
    below = (path for folder in TEXT_FOLDERS for path in (root / folder).rglob("*") if path.is_file())
    for path in (*top, *below):
        if path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts:
            yield path


def test_syntax_is_clean() -> None:
    expect_none(forbidden_syntax(read_sources()))


def test_texts_are_clean() -> None:
    expect_none(
        problem
        for path in text_files(ROOT)
        for problem in forbidden_text(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize(
    "text",
    [
        "assert x > 0",
        "try:\n  f()\nexcept:\n  g()",
        "try:\n  f()\nexcept Exception:\n  pass",
        "for x in y:\n  try:\n    f()\n  except BaseException:\n    continue",
        "raise NotImplemented" + "Error",
        "def f():\n  raise NotImplemented" + "Error('later')",
        "from __future__ import annotations",
    ],
)
def test_forbidden_syntax_is_found(text: str) -> None:
    assert len(forbidden_syntax([parse(text)])) == 1


@pytest.mark.parametrize(
    "text", ["try:\n  f()\nexcept OSError:\n  pass", "try:\n  f()\nexcept Exception as e:\n  log(e)\n  raise"]
)
def test_honest_error_handling_passes(text: str) -> None:
    assert forbidden_syntax([parse(text)]) == []


@pytest.mark.parametrize(
    "line",
    [
        "# TO" + "DO later",
        "# fix this: FIX" + "ME",
        "path = '/wo" + "rk/main'",
        "see /ro" + "ot/.cache",
        "cd /ho" + "me/anna/x",
        "pip install --extra-index-" + "url u",
    ],
)
def test_forbidden_text_is_found(line: str) -> None:
    assert len(forbidden_text("a.md", line)) == 1


@pytest.mark.parametrize(
    "line",
    ["a mastodon", "../shared/data", "runs/work/x", "~/.cache/flaxbert", "/tmp/x", "/home/somebody/x", "${HOME}/work"],
)
def test_harmless_text_passes(line: str) -> None:
    assert forbidden_text("a.md", line) == []
