"""Every name that code reads is defined: the type checker can not say so, since axes of jaxtyping look like names to it."""

import builtins
import symtable
from collections.abc import Iterator

import pytest

from tests.architecture.sources import Source, expect_none, parse, read_sources

ALWAYS = {*dir(builtins), "__file__", "__name__", "__doc__", "__package__", "__spec__", "__annotations__"}


def undefined_names(source: Source) -> Iterator[str]:
    """Returns the names of a file that are read and neither assigned, imported, nor built in."""
    module = symtable.symtable(source.text, source.path, "exec")
    defined = {
        symbol.get_name()
        for symbol in module.get_symbols()
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
    }
    for name in sorted(_globals_read(module, True) - defined - ALWAYS):
        yield f"{source.path} reads '{name}', which nothing defines"


def _globals_read(table: symtable.SymbolTable, is_module: bool) -> set[str]:
    found = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (is_module or s.is_global())}
    for child in table.get_children():
        found |= _globals_read(child, False)
    return found


@pytest.mark.parametrize("part", ["flaxbert", "benchmarks", "docs", "tests"])
def test_every_name_is_defined(part: str) -> None:
    expect_none(problem for source in read_sources(part) for problem in undefined_names(source))


def test_an_undefined_name_is_found() -> None:
    text = "import json\n\ndef f(x: 'batch length'):\n    y = lost(x)\n    return json.dumps(y)\n"
    assert list(undefined_names(parse(text, "a.py"))) == ["a.py reads 'lost', which nothing defines"]
