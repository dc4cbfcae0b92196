"""The direction of imports: each part of the house knows only those below it."""

from collections.abc import Sequence

import pytest

from tests.architecture.import_graph import (
    Graph,
    build_graph,
    find_cycles,
    imported_names,
    longest_chain,
    reachable,
)
from tests.architecture.sources import Source, expect_none, parse, read_sources

TIERS: tuple[tuple[str, ...], ...] = (
    ("errors", "core.axes", "core.digests", "core.files"),
    ("config", "architecture", "core", "client"),
    ("nn",),
    (
        "families",
        "evaluation.alignment",
        "evaluation.answers",
        "evaluation.bootstrap",
        "evaluation.entities",
        "evaluation.metrics",
        "evaluation.relations",
        "evaluation.report",
    ),
    ("weights",),
    ("tasks", "model", "inference"),
    (
        "train",
        "evaluation",
        "compression",
        "comparison",
        "retrieval",
        "serve",
        "registry",
        "cluster",
        "planning",
        "export",
    ),
    ("cli", "__init__", "__main__"),
)
"""The parts of flaxbert from the bottom to the top. A part may import lower tiers, itself, and what PEERS allows."""

PEERS: dict[str, frozenset[str]] = {
    "core": frozenset({"config"}),
    "architecture": frozenset({"config"}),
    "core.axes": frozenset({"errors"}),
    "core.digests": frozenset({"errors"}),
    "inference": frozenset(),
    "evaluation.metrics": frozenset({"evaluation.alignment"}),
    "evaluation.bootstrap": frozenset({"evaluation.metrics"}),
    "evaluation.entities": frozenset({"evaluation.report"}),
    "evaluation.relations": frozenset({"evaluation.report"}),
    "evaluation.report": frozenset({"evaluation.alignment", "evaluation.metrics", "evaluation.bootstrap"}),
    "model": frozenset({"inference", "tasks"}),
    "train": frozenset({"evaluation", "registry"}),
    "compression": frozenset({"train", "evaluation"}),
    "planning": frozenset({"train", "evaluation"}),
    "comparison": frozenset({"train", "evaluation"}),
    "serve": frozenset({"registry", "retrieval", "export"}),
    "cluster": frozenset({"train", "serve"}),
    "export": frozenset({"evaluation"}),
    "__main__": frozenset({"cli"}),
    "cli": frozenset({"__init__"}),
}
"""Parts of the same tier that a part may import."""

ASIDE: dict[str, frozenset[str]] = {
    "data": frozenset({"errors", "config", "core.digests", "core.files"}),
    "transforms": frozenset({"errors", "config", "architecture", "core", "core.axes"}),
    "core.sharding": frozenset({"errors", "config", "core", "core.axes"}),
}
"""Parts that stand beside the tiers and may import these parts alone."""

USERS_OF_ASIDE: dict[str, int] = {"data": 5, "transforms": 5, "core.sharding": 1}
"""The lowest tier (its place in TIERS) whose parts may import the parts that stand aside."""

FORBIDDEN_REACH: dict[str, tuple[str, ...]] = {
    "transforms": ("flaxbert.nn",),
    "core": ("flaxbert.nn", "flaxbert.families"),
    "serve": ("flaxbert.train",),
    "data": ("flaxbert.core.runtime", "flaxbert.core.arrays", "flaxbert.nn", "flaxbert.model", "flaxbert.train"),
    "tasks": ("flaxbert.nn", "flaxbert.model", "flaxbert.train"),
}
"""What a part must not even bring with it through others."""

FORBIDDEN_LIBRARIES: dict[str, tuple[str, ...]] = {
    "serve": ("optax",),
    "data": ("optax", "flax", "orbax"),
}
"""Libraries that a part never imports, not even inside functions."""

FORBIDDEN_AT_IMPORT: dict[str, tuple[str, ...]] = {
    "tasks": ("jax", "grain", "sklearn", "scipy"),
    "data": ("jax", "grain"),
    "cluster": ("ray",),
    "client": ("jax", "flax", "optax", "orbax", "grain", "datasets", "transformers", "sklearn", "matplotlib"),
    "cli": ("jax", "flax", "optax", "orbax", "grain", "datasets", "transformers", "sklearn", "matplotlib"),
    "__init__": ("jax", "flax", "optax", "orbax", "grain", "datasets", "transformers", "sklearn", "matplotlib"),
    "__main__": ("jax", "flax"),
}
"""Libraries that a part imports inside functions only; grain imports jax."""

LONGEST_CHAIN = 8
"""Most steps from the top of the house to its ground, and most modules that hang on each other inside one part."""


def part_of(module: str) -> str:
    """Returns the part of the house that a module belongs to, for example ``core`` for ``flaxbert.core.trees``."""
    words = module.split(".")[1:]
    if not words:
        return "__init__"
    dotted = ".".join(words[:2])
    return dotted if dotted in ASIDE or any(dotted in tier for tier in TIERS) else words[0]


def tier_of(part: str) -> int | None:
    """Returns the place of a part in TIERS, or None for those that stand aside."""
    return next((place for place, tier in enumerate(TIERS) if part in tier), None)


def may_import(importer: str, imported: str) -> bool:
    """Returns whether a part may import another."""
    if importer == imported:
        return True
    if importer in ASIDE:
        return imported in ASIDE[importer]
    tier = tier_of(importer)
    if tier is None:
        return False
    if imported in ASIDE:
        return tier >= USERS_OF_ASIDE[imported]
    below = tier_of(imported)
    return below is not None and (below < tier or imported in PEERS.get(importer, frozenset()))


def wrong_directions(graph: Graph) -> list[str]:
    """Returns the imports that go up or sideways, and modules that belong to no known part."""
    found = []
    for module, targets in sorted(graph.items()):
        part = part_of(module)
        if part not in ASIDE and tier_of(part) is None:
            found.append(f"{module} belongs to no part of the house; give '{part}' a place in TIERS or ASIDE")
            continue
        found += [f"{module} imports {target}" for target in sorted(targets) if not may_import(part, part_of(target))]
    return found


def forbidden_reach(graph: Graph) -> list[str]:
    """Returns the modules that bring with them what their part must stay free of."""
    return [
        f"{module} brings {target} with it"
        for module in sorted(graph)
        for prefix in FORBIDDEN_REACH.get(module.split(".")[1] if "." in module else "", ())
        for target in sorted(reachable(graph, module))
        if target == prefix or target.startswith(prefix + ".")
    ]


def forbidden_libraries(sources: Sequence[Source]) -> list[str]:
    """Returns the imports of libraries that a part must not import, ever or while it is itself imported."""
    found = []
    for source in sources:
        part = part_of(source.module).split(".")[0]
        ever = {name.split(".")[0] for name in imported_names(source)}
        at_import = {name.split(".")[0] for name in imported_names(source, only_at_import=True)}
        found += [f"{source.path} imports {name}" for name in FORBIDDEN_LIBRARIES.get(part, ()) if name in ever]
        found += [
            f"{source.path} imports {name} outside of functions"
            for name in FORBIDDEN_AT_IMPORT.get(part, ())
            if name in at_import
        ]
    return found


def between_parts(graph: Graph) -> Graph:
    """Returns the graph whose nodes are whole tiers, and the folders that stand aside."""

    def place(module: str) -> str:
        part = part_of(module).split(".")[0] if part_of(module) in ASIDE else part_of(module)
        return part if part in ASIDE else f"tier {tier_of(part)}"

    result: dict[str, frozenset[str]] = {}
    for module, targets in graph.items():
        start = place(module)
        result[start] = result.get(start, frozenset()) | {place(target) for target in targets} - {start}
    return result


def inside_part(graph: Graph, part: str) -> Graph:
    """Returns the graph of the modules of one part alone."""
    own = {module for module in graph if part_of(module).split(".")[0] == part}
    return {module: graph[module] & own for module in own}


def graph_of(**imports: str) -> Graph:
    """Returns the graph of a made-up house: keyword ``core__trees="nn.layers"`` is an import in flaxbert.core.trees."""
    names = {name.replace("__", "."): targets.split() for name, targets in imports.items()}
    modules = {*names, *(target for targets in names.values() for target in targets)}
    sources = [
        parse(
            "\n".join(f"import flaxbert.{target}" for target in names.get(name, [])),
            f"flaxbert/{name.replace('.', '/')}.py",
        )
        for name in sorted(modules)
    ]
    return build_graph(sources)


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read_sources("flaxbert")


@pytest.fixture(scope="module")
def graph(sources: list[Source]) -> Graph:
    return build_graph(sources)


def test_imports_go_down(graph: Graph) -> None:
    expect_none(wrong_directions(graph))


def test_no_import_cycles(graph: Graph) -> None:
    expect_none(" -> ".join(cycle) for cycle in find_cycles(graph))


def test_parts_stay_free_of_what_they_must_not_know(graph: Graph) -> None:
    expect_none(forbidden_reach(graph))


def test_libraries_stay_where_they_belong(sources: list[Source]) -> None:
    expect_none(forbidden_libraries(sources))


def test_chain_between_parts_is_short(graph: Graph) -> None:
    assert len(longest_chain(between_parts(graph))) <= LONGEST_CHAIN


@pytest.mark.parametrize(
    "part",
    sorted({"core", "nn", "families", "weights", "train", "planning", "comparison", "data", "transforms", "cli"}),
)
def test_chain_inside_a_part_is_short(graph: Graph, part: str) -> None:
    assert len(longest_chain(inside_part(graph, part))) <= LONGEST_CHAIN


def test_graph_sees_every_module_of_the_tree(graph: Graph) -> None:
    assert {"flaxbert.errors", "flaxbert.core.trees"} <= set(graph)
    assert "flaxbert.errors" in graph["flaxbert.core.trees"]


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("core__trees", "nn.layers"),
        ("core__sharding", "nn.layers"),
        ("transforms__quantize", "nn.layers"),
        ("transforms__quantize", "model"),
        ("data__sources", "core.trees"),
        ("serve__engine", "train.step"),
        ("evaluation__metrics", "train.step"),
        ("nn__layers", "families.bert"),
        ("errors", "config"),
        ("model", "cli.main"),
        ("tasks__load", "model"),
        ("tasks__base", "evaluation.score"),
        ("evaluation__metrics", "tasks.base"),
        ("weights__load", "data.sources"),
        ("train__loop", "cluster.training"),
        ("unheard", "errors"),
    ],
)
def test_an_import_upwards_is_found(module: str, target: str) -> None:
    assert wrong_directions(graph_of(**{module: target}))


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("train__loop", "evaluation.evaluate"),
        ("model", "data.batches"),
        ("model", "tasks.registry"),
        ("tasks__base", "evaluation.report"),
        ("cli__main", "train.loop"),
        ("cluster__corpus", "train.loop"),
        ("core__runtime", "config"),
    ],
)
def test_an_import_downwards_is_not_found(module: str, target: str) -> None:
    assert wrong_directions(graph_of(**{module: target})) == []


def test_a_cycle_is_found_even_through_a_function() -> None:
    first = parse("def later():\n    from flaxbert.core import trees\n", "flaxbert/core/rules.py")
    second = parse("from .rules import match\n", "flaxbert/core/trees.py")
    cycles = find_cycles(build_graph([first, second]))
    assert cycles == [["flaxbert.core.rules", "flaxbert.core.trees", "flaxbert.core.rules"]]


def test_asking_for_the_version_is_no_import_of_the_whole() -> None:
    root = parse("import flaxbert.model\n", "flaxbert/__init__.py")
    version = parse("def f():\n  import flaxbert\n  return flaxbert.__version__\n", "flaxbert/train/manifest.py")
    other = parse("import flaxbert\nflaxbert.load('x')\n", "flaxbert/train/loop.py")
    graph = build_graph([root, version, other])
    assert graph["flaxbert.train.manifest"] == frozenset()
    assert wrong_directions({"flaxbert.train.loop": graph["flaxbert.train.loop"]}) == [
        "flaxbert.train.loop imports flaxbert"
    ]


def test_reach_through_others_is_found() -> None:
    found = forbidden_reach(graph_of(transforms__quantize="core.trees", core__trees="nn.layers"))
    assert "flaxbert.transforms.quantize brings flaxbert.nn.layers with it" in found


def test_a_library_in_the_wrong_part_is_found() -> None:
    served = parse("def run():\n    import optax\n", "flaxbert/serve/engine.py")
    read = parse("import jax.numpy as jnp\n", "flaxbert/data/batches.py")
    fine = parse("def run():\n    import jax\n", "flaxbert/data/batches.py")
    assert forbidden_libraries([served, read, fine]) == [
        "flaxbert/serve/engine.py imports optax",
        "flaxbert/data/batches.py imports jax outside of functions",
    ]


def test_the_longest_chain_is_found() -> None:
    graph = graph_of(nn__a="nn.b nn.c", nn__b="nn.c", nn__c="nn.d")
    assert longest_chain(graph) == [f"flaxbert.nn.{name}" for name in "abcd"]
    assert len(longest_chain(between_parts(graph))) == 1
