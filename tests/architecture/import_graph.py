"""Who imports whom inside flaxbert, read from the syntax trees; imports inside functions count like all others."""

import ast
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence

from tests.architecture.sources import Source

Graph = Mapping[str, frozenset[str]]


def absolute_target(source: Source, node: ast.ImportFrom) -> str:
    """Returns the dotted module that a ``from … import`` names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    parts = source.module.split(".")
    base = parts[: len(parts) - node.level + (1 if source.is_package else 0)]
    return ".".join([*base, *filter(None, [node.module])])


def imported_names(source: Source, *, only_at_import: bool = False) -> Iterator[str]:
    """Yields what a file imports as dotted names: ``a.b`` for ``import a.b``, ``a.b.c`` for ``from a.b import c``.

    Args:
      source: The file.
      only_at_import: Leave out what is imported inside functions.

    Yields:
      One name per imported thing.
    """
    for node in _walk(source.tree, enter_functions=not only_at_import):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            target = absolute_target(source, node)
            yield from (f"{target}.{alias.name}" for alias in node.names)


def _walk(tree: ast.AST, enter_functions: bool) -> Iterator[ast.AST]:
    """Yields every node below a tree, but what lies inside of functions where these are not entered."""
    waiting = [tree]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            yield child
            if enter_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                waiting.append(child)


def build_graph(sources: Sequence[Source]) -> Graph:
    """Returns for each module of ours the modules of ours that it imports; missing ones too, for pyright to complain."""
    modules = {source.module for source in sources}
    return {source.module: frozenset(_imported_modules(source, modules)) for source in sources}


def _imported_modules(source: Source, modules: Collection[str]) -> Iterator[str]:
    for name in imported_names(source):
        module = _longest_known(name, modules)
        if module and module != source.module and not ("." not in module and _reads_version_only(source, module)):
            yield module


def _reads_version_only(source: Source, package: str) -> bool:
    """Returns whether a file uses the package's own name for ``package.__version__`` alone, which every part may."""
    uses = [node for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)]
    attributes = {node.attr for node in uses if isinstance(node.value, ast.Name) and node.value.id == package}
    imported = {name.removeprefix(f"{package}.") for name in imported_names(source) if name.startswith(f"{package}.")}
    direct = {name for name in imported if "." not in name and name.startswith("__")}
    return bool(attributes | direct) and attributes | direct == {"__version__"}


def _longest_known(name: str, modules: Collection[str]) -> str | None:
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    known = next((prefix for prefix in prefixes if prefix in modules), None)
    is_missing = known is not None and "." not in known and len(parts) > len(known.split(".")) + 1
    return ".".join(parts[:-1]) if is_missing else known


def find_cycles(graph: Graph) -> list[list[str]]:
    """Returns import cycles, each as the modules along it and the first once more."""
    cycles, done = [], set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            cycles.append([*path[path.index(module) :], module])
            return
        if module in done:
            return
        for target in sorted(graph.get(module, ())):
            visit(target, (*path, module))
        done.add(module)

    for module in sorted(graph):
        visit(module, ())
    return cycles


def reachable(graph: Graph, start: str) -> set[str]:
    """Returns every module that importing ``start`` can bring with it."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph.get(waiting.pop(), frozenset()) - found
        found |= new
        waiting.extend(new)
    return found


def longest_chain(graph: Graph) -> list[str]:
    """Returns the longest chain of imports.

    Raises:
      ValueError: The graph has a cycle, so that there is no longest chain.
    """
    if cycles := find_cycles(graph):
        raise ValueError(f"There is no longest chain while there are cycles: {cycles}")

    @functools.cache
    def chain(module: str) -> tuple[str, ...]:
        below = max((chain(target) for target in sorted(graph.get(module, ()))), key=len, default=())
        return (module, *below)

    return list(max((chain(module) for module in graph), key=len, default=()))
