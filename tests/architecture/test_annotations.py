"""Every argument and every return value says its type."""

from collections.abc import Iterable

import pytest

from tests.architecture.sources import Source, arguments, expect_none, functions, parse, read_sources


def missing_annotations(sources: Iterable[Source]) -> list[str]:
    """Returns the arguments and returns without a type, in nested functions too."""
    found = []
    for source in sources:
        for node in functions(source.tree):
            place = f"{source.path}:{node.lineno} {node.name}"
            found += [f"{place}: {arg.arg} has no type" for arg in arguments(node) if arg.annotation is None]
            if node.returns is None:
                found.append(f"{place}: the return value has no type")
    return found


def test_everything_is_annotated() -> None:
    expect_none(missing_annotations(read_sources()))


@pytest.mark.parametrize(
    "text",
    [
        "def f(a) -> int: ...",
        "def f(a: int): ...",
        "def f(*parts) -> None: ...",
        "def f(*, key) -> None: ...",
        "def f(**options) -> None: ...",
        "def f(a, /) -> None: ...",
        "class A:\n  def f(self, a) -> None: ...",
        "def f() -> None:\n  def g(): ...",
    ],
)
def test_a_missing_type_is_found(text: str) -> None:
    assert len(missing_annotations([parse(text)])) == 1


def test_self_and_cls_need_no_type() -> None:
    text = "class A:\n  def f(self) -> None: ...\n  @classmethod\n  def g(cls, a: int) -> None: ..."
    assert missing_annotations([parse(text)]) == []
