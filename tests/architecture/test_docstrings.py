"""Every public object says what it is, what it takes, what it returns and what it raises."""

import ast
import re
from collections.abc import Iterable, Iterator

import pytest

from tests.architecture.sources import (
    FunctionNode,
    Source,
    arguments,
    expect_none,
    last_name,
    parse,
    read_sources,
)

NO_VALUE = {"None", "NoReturn", "Never"}
UNDESCRIBED_DECORATORS = {"property", "cached_property", "setter", "overload", "override"}
"""A property is a value, described by its summary; the others are described where they come from."""

Described = ast.Module | ast.ClassDef | FunctionNode


def missing_descriptions(sources: Iterable[Source]) -> list[str]:
    """Returns what public docstrings lack: themselves, arguments, attributes, returns, exceptions."""
    sources = list(sources)
    methods = _documented_methods(sources)
    found = []
    for source in sources:
        found += [f"{source.path}: {problem}" for problem in _lacks(source.tree, "the module", set())]
        for node, owner in _public(source.tree):
            name = f"{owner.name}.{node.name}" if owner else node.name
            inherited = _inherits(owner, node.name, methods) if owner else False
            if not inherited:
                found += [f"{source.path}:{node.lineno} {problem}" for problem in _lacks(node, name, _tags(node))]
    return found


def _public(tree: ast.Module) -> Iterator[tuple[ast.ClassDef | FunctionNode, ast.ClassDef | None]]:
    for node in tree.body:
        if isinstance(node, FunctionNode | ast.ClassDef) and not node.name.startswith("_"):
            yield node, None
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, FunctionNode) and not member.name.startswith("_"):
                        yield member, node


def _tags(node: ast.ClassDef | FunctionNode) -> set[str]:
    return {last_name(decorator) for decorator in node.decorator_list}


def _documented_methods(sources: Iterable[Source]) -> dict[str, set[str]]:
    classes = [node for source in sources for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]
    return {
        node.name: {part.name for part in node.body if isinstance(part, FunctionNode) and ast.get_docstring(part)}
        for node in classes
    }


def _inherits(owner: ast.ClassDef, method: str, methods: dict[str, set[str]]) -> bool:
    return any(method in methods.get(last_name(base), set()) for base in owner.bases)


def _lacks(node: Described, name: str, tags: set[str]) -> Iterator[str]:
    text = ast.get_docstring(node)
    if not text:
        yield f"{name} has no docstring"
        return
    if isinstance(node, ast.ClassDef):
        if "dataclass" in tags:
            yield from _undescribed(text, "Attributes", _fields(node), name)
    elif isinstance(node, FunctionNode) and not tags & UNDESCRIBED_DECORATORS:
        yield from _undescribed(text, "Args", [argument.arg for argument in arguments(node)], name)
        if _returns_value(node) and not re.search(r"\b(Returns?|Yields?)\b", text):
            yield f"{name} does not say what it returns"
        if _raises(node) and not re.search(r"^Raises:", text, re.MULTILINE):
            yield f"{name} does not say what it raises"


def _undescribed(text: str, title: str, names: list[str], owner: str) -> Iterator[str]:
    if not names:
        return
    section = re.search(rf"^{title}:\n((?:[ ]+.*\n?|\n)*)", text, re.MULTILINE)
    described = re.findall(r"^ +\*{0,2}(\w+)(?: \(.*?\))?:", section[1] if section else "", re.MULTILINE)
    if title == "Args" and len(names) == 1 and re.search(rf"\b{names[0]}\b", text, re.IGNORECASE):
        return  # A sentence that speaks of the only argument by its name describes it.
    if missing := [name for name in names if name not in described]:
        yield f"{owner} does not describe {', '.join(missing)} under '{title}:'"


def _fields(node: ast.ClassDef) -> list[str]:
    targets = [part.target for part in node.body if isinstance(part, ast.AnnAssign) and not _is_class_field(part)]
    return [target.id for target in targets if isinstance(target, ast.Name) and not target.id.startswith("_")]


def _is_class_field(node: ast.AnnAssign) -> bool:
    return last_name(node.annotation) == "ClassVar"


def _returns_value(node: FunctionNode) -> bool:
    return node.returns is not None and ast.unparse(node.returns) not in NO_VALUE


def _raises(node: FunctionNode) -> bool:
    return any(isinstance(part, ast.Raise) and part.exc is not None for part in _own_nodes(node))


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, FunctionNode | ast.Lambda | ast.ClassDef):
            yield child
            yield from _own_nodes(child)


def test_public_objects_are_documented() -> None:
    expect_none(missing_descriptions(read_sources("flaxbert")))


def _problems(body: str) -> list[str]:
    return missing_descriptions([parse(f'"""Module."""\n{body}')])


@pytest.mark.parametrize(
    "body",
    [
        "def f() -> None: ...",
        "class A: ...",
        'class A:\n  """A."""\n  def f(self) -> None: ...',
        'def f(a: int) -> None:\n  """Does."""',
        'def f(a: int, b: int) -> None:\n  """Does.\n\n  Args:\n    a: One.\n  """',
        'def f() -> int:\n  """Counts."""',
        'def f() -> None:\n  """Checks."""\n  raise ValueError("bad")',
        'def f() -> None:\n  """Checks."""\n  if True:\n    raise ValueError("bad")',
        '@dataclasses.dataclass(frozen=True)\nclass A:\n  """A."""\n  size: int = 0',
        '@dataclass\nclass A:\n  """A.\n\n  Attributes:\n    size: One.\n  """\n  size: int\n  depth: int',
    ],
)
def test_a_missing_description_is_found(body: str) -> None:
    assert len(_problems(body)) == 1


def test_a_module_without_docstring_is_found() -> None:
    assert missing_descriptions([parse("x = 1")]) == ["flaxbert/snippet.py: the module has no docstring"]


@pytest.mark.parametrize(
    "body",
    [
        "def _f(a: int) -> int: ...",
        'def f(a: int) -> int:\n  """Doubles.\n\n  Args:\n    a: Number.\n\n  Returns:\n    Twice ``a``.\n  """',
        'def f() -> int:\n  """Returns one."""',
        'def f(text: str) -> int:\n  """Returns the number of words of a text."""',
        'def f(*names: str, **options: int) -> None:\n  """Does.\n\n  Args:\n    *names: Names.\n    **options: Numbers.\n  """',
        'class A:\n  """A."""\n  @property\n  def f(self) -> int:\n    """Size in bytes."""',
        '@dataclass\nclass A:\n  """A.\n\n  Attributes:\n    size: One.\n  """\n  size: int\n  kind: ClassVar[str] = ""',
        'class A:\n  """A."""\n  def f(self) -> None:\n    """Does."""\nclass B(A):\n  """B."""\n  def f(self) -> None: ...',
        'def f() -> None:\n  """Does."""\n  def g() -> None:\n    raise ValueError("bad")',
    ],
)
def test_a_full_description_passes(body: str) -> None:
    assert _problems(body) == []
