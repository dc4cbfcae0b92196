"""Reads the Python sources of the project as syntax trees; every rule works on these."""

import ast
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator

import pytest

from tests.helpers import ROOT

FOLDERS = ("flaxbert", "benchmarks", "docs", "tpu_scripts")
"""Where code that is no test lives."""

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Source:
    """One Python file.

    Attributes:
      path: Path from the root of the repository, with slashes.
      text: Content of the file.
      tree: Its syntax tree.
    """

    path: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """Dotted name of the module, for example ``flaxbert.core.trees``."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def is_package(self) -> bool:
        """Whether the file is the ``__init__`` of a folder."""
        return self.path.endswith("/__init__.py")


def parse(text: str, path: str = "flaxbert/snippet.py") -> Source:
    """Returns a source made of a text, for the tests of the rules themselves."""
    return Source(path, text, ast.parse(text))


@functools.cache
def read_source(path: pathlib.Path, root: pathlib.Path, modified_ns: int) -> Source:
    """Returns one file; it is parsed once for all rules, as long as it does not change."""
    del modified_ns
    return parse(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix())


def read_sources(*folders: str, root: pathlib.Path = ROOT) -> list[Source]:
    """Returns every Python file below the given folders, or below all that hold no tests, in order of their paths."""
    paths = sorted(path for folder in folders or FOLDERS for path in (root / folder).rglob("*.py"))
    return [read_source(path, root, path.stat().st_mtime_ns) for path in paths]


def functions(tree: ast.AST) -> Iterator[FunctionNode]:
    """Yields every function and method, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, FunctionNode):
            yield node


def arguments(node: FunctionNode) -> list[ast.arg]:
    """Returns all arguments of a function but the ``self`` or ``cls`` it starts with."""
    spec = node.args
    extra = [argument for argument in (spec.vararg, spec.kwarg) if argument is not None]
    named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *extra]
    return named[1:] if named and named[0].arg in {"self", "cls"} else named


def last_name(node: ast.AST) -> str:
    """Returns the last word of a dotted expression, for example ``dataclass`` of ``@dataclasses.dataclass(...)``."""
    if isinstance(node, ast.Call):
        return last_name(node.func)
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def expect_none(violations: Iterable[str]) -> None:
    """Fails the test with one line per violation, if there are any."""
    lines = list(violations)
    if lines:
        pytest.fail("\n".join([f"{len(lines)} violations:", *lines]), pytrace=False)
