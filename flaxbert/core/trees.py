"""Parameter trees as named leaves: names, parts, maps, sizes, stacking.

A tree is a nested dictionary with string keys. A leaf's name joins the keys by dots:
``encoder.layers.0.attention.query.kernel``. A part of a typed leaf is addressed as ``name@part``.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.core.arrays import Params, TypedArray, array_bytes, build_typed
from flaxbert.errors import ShapeError

STACKED = "stacked"
"""Key that stands in place of the layer number where layers are stacked for ``lax.scan``."""


def _walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from _walk(value, name)
        else:
            yield name, value


def computes_in_int8(params: Mapping[str, Any]) -> bool:
    """Returns whether products with a leaf are computed in int8.

    Args:
      params: Parameter tree.
    """
    return any(isinstance(leaf, TypedArray) and leaf.computes_in == "int8" for leaf in flatten_names(params).values())


def flatten_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves by dotted name, typed leaves whole.

    Args:
      tree: A parameter tree.

    Example:
      >>> flatten_names({"pooler": {"bias": 1, "kernel": 2}})
      {'pooler.bias': 1, 'pooler.kernel': 2}
    """
    return dict(_walk(tree, ""))


def unflatten_names(leaves: Mapping[str, Any]) -> Params:
    """Returns the nested tree of leaves given by dotted name, the inverse of ``flatten_names``."""
    tree: Params = {}
    for name, leaf in leaves.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def find_leaf(tree: Mapping[str, Any], name: str) -> Any:
    """Returns one leaf of a tree.

    Args:
      tree: A parameter tree.
      name: Its dotted name.
    """
    node: Any = tree
    for key in name.split("."):
        node = node[key]
    return node


def take_leaf(tree: Mapping[str, Any], name: str) -> Any:
    """Returns one leaf of a tree and takes it out, so that its memory is free once the caller lets go of it.

    Args:
      tree: A parameter tree of dictionaries.
      name: Its dotted name.
    """
    *parents, last = name.split(".")
    node: Any = tree
    for key in parents:
        node = node[key]
    return node.pop(last)


def leaf_names(tree: Mapping[str, Any]) -> list[str]:
    """Returns the dotted names of all leaves in tree order."""
    return list(flatten_names(tree))


def map_leaves(function: Callable[[str, Any], Any], tree: Mapping[str, Any]) -> Params:
    """Returns the tree with every leaf (typed leaves whole) replaced by ``function(name, leaf)``.

    Args:
      function: Called with the name and the leaf.
      tree: A parameter tree.
    """
    return unflatten_names({name: function(name, leaf) for name, leaf in flatten_names(tree).items()})


def flatten_parts(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all stored arrays by name; those of typed leaves as ``name@part``.

    Args:
      tree: A parameter tree.
    """
    parts: dict[str, Any] = {}
    for name, leaf in flatten_names(tree).items():
        if isinstance(leaf, TypedArray):
            parts.update({f"{name}@{part}": array for part, array in leaf.stored_parts().items()})
        else:
            parts[name] = leaf
    return parts


def unflatten_parts(parts: Mapping[str, Any], kinds: Mapping[str, str]) -> Params:
    """Returns the tree of stored arrays given by name, the inverse of ``flatten_parts``.

    Args:
      parts: Arrays by ``name`` or ``name@part``.
      kinds: Kind of each typed leaf by leaf name.

    Returns:
      The nested tree with typed leaves rebuilt.

    Raises:
      ShapeError: A part belongs to a leaf without kind, or a typed leaf lacks parts.
    """
    leaves: dict[str, Any] = {}
    grouped: dict[str, dict[str, Any]] = {}
    for name, array in parts.items():
        leaf, _, part = name.partition("@")
        if not part:
            leaves[leaf] = array
        elif leaf not in kinds:
            raise ShapeError(f"Part '{name}' belongs to a leaf whose kind is not given.")
        else:
            grouped.setdefault(leaf, {})[part] = array
    leaves.update({name: build_typed(kinds[name], arrays) for name, arrays in grouped.items()})
    return unflatten_names(leaves)


def leaf_kinds(tree: Mapping[str, Any]) -> dict[str, str]:
    """Returns the kind of every typed leaf by leaf name; plain leaves are left out.

    Args:
      tree: A parameter tree.
    """
    return {name: leaf.kind for name, leaf in flatten_names(tree).items() if isinstance(leaf, TypedArray)}


def size_bytes(tree: Mapping[str, Any]) -> int:
    """Returns the bytes that all stored arrays of a tree occupy."""
    return sum(array_bytes(array) for array in flatten_parts(tree).values())


def count_parameters(tree: Mapping[str, Any]) -> int:
    """Returns the number of logical parameters of a tree."""
    return sum(math.prod(leaf.shape) for leaf in flatten_names(tree).values())


_LAYER = re.compile(r"^(?P<head>.*\blayers)\.(?P<index>\d+)\.(?P<tail>.+)$")
_STACK = re.compile(rf"^(?P<head>.*\blayers)\.{STACKED}\.(?P<tail>.+)$")


def _stack(arrays: list[Any]) -> Any:
    if isinstance(arrays[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(arrays), *arrays[0].shape), arrays[0].dtype)
    return np.stack(arrays) if isinstance(arrays[0], np.ndarray) else jnp.stack(arrays)


def _slice(array: Any, index: int) -> Any:
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(array.shape[1:], array.dtype)
    return array[index]


def stack_layers(tree: Mapping[str, Any]) -> Params:
    """Returns the tree with the leaves of all layers stacked along a new first ``layers`` axis.

    ``encoder.layers.0.x``, ``encoder.layers.1.x``… become ``encoder.layers.stacked.x``. Typed leaves are stacked by part.

    Args:
      tree: Tree with numbered layers.

    Returns:
      Tree for a model built with scanned layers.

    Raises:
      ShapeError: Two layers differ in their leaves, shapes, dtypes or kinds and so can not be scanned.
    """
    plain: dict[str, Any] = {}
    groups: dict[str, dict[int, Any]] = {}
    for name, leaf in flatten_names(tree).items():
        match = _LAYER.match(name)
        if match is None:
            plain[name] = leaf
        else:
            groups.setdefault(f"{match['head']}.{STACKED}.{match['tail']}", {})[int(match["index"])] = leaf
    num_layers = max((max(leaves) + 1 for leaves in groups.values()), default=0)
    for name, leaves in groups.items():
        ordered = [leaves.get(index) for index in range(num_layers)]
        structures = {
            None if leaf is None else str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), leaf)) for leaf in ordered
        }
        if len(structures) != 1:
            raise ShapeError(
                f"Layers can not be stacked for scan: '{name.replace(STACKED, '*')}' differs between layers "
                f"({', '.join(sorted(str(s) for s in structures))}). Use unrolled layers (scan_layers: false)."
            )
        plain[name] = jax.tree.map(lambda *arrays: _stack(list(arrays)), *ordered)
    return unflatten_names(plain)


def unstack_layers(tree: Mapping[str, Any]) -> Params:
    """Returns the tree with stacked layers split into numbered ones, the inverse of ``stack_layers``."""
    leaves: dict[str, Any] = {}
    for name, leaf in flatten_names(tree).items():
        match = _STACK.match(name)
        if match is None:
            leaves[name] = leaf
            continue
        num_layers = leaf.shape[0]
        for index in range(num_layers):
            leaves[f"{match['head']}.{index}.{match['tail']}"] = jax.tree.map(
                lambda array, index=index: _slice(array, index), leaf
            )
    return unflatten_names(leaves)


def is_stacked(tree: Mapping[str, Any]) -> bool:
    """Returns whether any leaf of the tree lies under stacked layers."""
    return any(_STACK.match(name) for name in flatten_names(tree))


def same_structure(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Returns whether two trees have the same names, kinds, shapes and dtypes.

    Args:
      first: One tree.
      second: The other tree.
    """
    left, right = flatten_parts(first), flatten_parts(second)
    return left.keys() == right.keys() and all(
        tuple(left[name].shape) == tuple(right[name].shape) and left[name].dtype == right[name].dtype for name in left
    )
