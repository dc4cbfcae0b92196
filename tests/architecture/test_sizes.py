"""Files and functions stay short enough to be read at once."""

from collections.abc import Iterable, Mapping

import pytest

from tests.architecture.sources import Source, expect_none, functions, parse, read_sources

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60

EXCEPTIONS: dict[str, str] = {}
"""Paths, or ``path:function``, that may be longer, each with its reason."""


def too_long(sources: Iterable[Source]) -> dict[str, int]:
    """Returns files and functions over their limit with their lines; docstrings and decorators' targets count too."""
    found = {}
    for source in sources:
        if (num_lines := source.text.count("\n") + 1) > MOST_LINES_OF_A_FILE:
            found[source.path] = num_lines
        for node in functions(source.tree):
            if (num_lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION:
                found[f"{source.path}:{node.name}"] = num_lines
    return found


def judge(found: Mapping[str, int], exceptions: Mapping[str, str]) -> list[str]:
    """Returns what is too long without a reason, and exceptions that nothing needs any more."""
    lengthy = [f"{place} has {num_lines} lines" for place, num_lines in found.items() if place not in exceptions]
    return lengthy + [f"{place} is short enough: remove its exception" for place in exceptions if place not in found]


def test_files_and_functions_are_short() -> None:
    expect_none(judge(too_long(read_sources()), EXCEPTIONS))


def test_every_exception_has_a_reason() -> None:
    assert all(len(reason) > 20 for reason in EXCEPTIONS.values())


@pytest.mark.parametrize(("num_lines", "is_found"), [(399, False), (400, True)])
def test_a_long_file_is_found(num_lines: int, is_found: bool) -> None:
    assert bool(too_long([parse("x = 1\n" * num_lines)])) is is_found


@pytest.mark.parametrize(("num_lines", "is_found"), [(59, False), (60, True)])
def test_a_long_function_is_found_even_inside_a_class(num_lines: int, is_found: bool) -> None:
    source = parse("class A:\n  async def f(self) -> None:\n" + "    x = 1\n" * num_lines)
    assert too_long([source]) == ({"flaxbert/snippet.py:f": num_lines + 1} if is_found else {})


def test_exceptions_excuse_and_go_stale() -> None:
    assert judge({"a.py": 500}, {"a.py": "generated table"}) == []
    assert judge({}, {"a.py": "generated table"}) == ["a.py is short enough: remove its exception"]
