"""The arrays of a tree by name, and whether two trees agree on them.

Orbax stores arrays, not what they stand for: static fields, kinds of typed leaves and sub-byte types come back as the template
says. So every version carries this schema, and a restore compares it with the template before it reads a byte.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.core.arrays import array_bytes, is_typed
from flaxbert.errors import CheckpointError, nearest

NUM_LISTED = 8
"""Differences that a message lists before it only counts."""

SCALARS = (bool, int, float, complex)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the arrays of any pytree by dotted name, in flattening order; parts of typed leaves as ``name@part``.

    Args:
      tree: Pytree of arrays, shape structs, Python numbers and typed leaves.

    Raises:
      CheckpointError: Two leaves have one name.

    Example:
      >>> list(named_leaves({"trainable": {"pooler.bias": 1.0}, "step": 3}))
      ['step', 'trainable.pooler.bias']
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_typed)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        parts = (
            {f"{name}@{part}": array for part, array in leaf.stored_parts().items()} if is_typed(leaf) else {name: leaf}
        )
        for part_name, array in parts.items():
            if part_name in leaves:
                raise CheckpointError(f"Two leaves of the tree are named '{part_name}'; rename one of them.")
            leaves[part_name] = array
    return leaves


def typed_kinds(tree: Any) -> dict[str, str]:
    """Returns the kind of every typed leaf of a pytree by name.

    Args:
      tree: Any pytree.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_typed)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.kind for path, leaf in flat if is_typed(leaf)}


def _storable(name: str, leaf: Any) -> jax.Array | np.ndarray:
    import tensorstore

    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
        raise CheckpointError(f"Leaf '{name}' is a {type(leaf).__name__}; a checkpoint holds arrays and numbers only.")
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise CheckpointError(f"Leaf '{name}' is a random key; store jax.random.key_data(key) or the seed instead.")
    if array.size == 0:
        raise CheckpointError(f"Leaf '{name}' has shape {array.shape}, but orbax can not store arrays without entries.")
    try:
        tensorstore.dtype(array.dtype.name)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"Leaf '{name}' has dtype {array.dtype}, which orbax can not store.") from error
    return array


def storable_leaves(tree: Any) -> dict[str, jax.Array | np.ndarray]:
    """Returns the arrays of a tree by name, all of which can be stored.

    Raises:
      CheckpointError: A leaf is no array, has no entries (orbax would hang on it) or a dtype that can not be stored.
    """
    return {name: _storable(name, leaf) for name, leaf in named_leaves(tree).items()}


def leaves_bytes(leaves: Mapping[str, Any]) -> int:
    """Returns the bytes that the arrays occupy together.

    Args:
      leaves: Arrays by name.
    """
    return sum(array_bytes(leaf) for leaf in leaves.values())


def describe_leaves(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns shape and dtype of each array as a JSON-able schema.

    Args:
      leaves: Arrays, shape structs or Python numbers by name.
    """
    return {name: _describe(leaf) for name, leaf in leaves.items()}


def _describe(leaf: Any) -> dict[str, Any]:
    array = np.asarray(leaf) if isinstance(leaf, SCALARS) else leaf
    return {"shape": list(array.shape), "dtype": jnp.dtype(array.dtype).name}


def _listed(title: str, entries: list[str]) -> str:
    if not entries:
        return ""
    more = f" and {len(entries) - NUM_LISTED} more" if len(entries) > NUM_LISTED else ""
    return f"\n  {title}: " + ", ".join(entries[:NUM_LISTED]) + more


def compare_leaves(
    stored: Mapping[str, Mapping[str, Any]],
    stored_kinds: Mapping[str, str],
    expected: Mapping[str, Any],
    expected_kinds: Mapping[str, str] | None,
    where: str,
) -> None:
    """Checks that a version holds exactly the arrays that a template asks for.

    Args:
      stored: Schema of the version, from ``describe_leaves``.
      stored_kinds: Kinds of typed leaves of the version.
      expected: Arrays or shape structs of the template by name.
      expected_kinds: Kinds of typed leaves of the template; None leaves them unchecked.
      where: Folder of the version, for the message.

    Raises:
      CheckpointError: Names, shapes, dtypes or kinds differ; lists them.
    """
    wanted = describe_leaves(expected)
    missing = [f"{name}{nearest(name, set(stored) - set(wanted))}" for name in wanted if name not in stored]
    surplus = [name for name in stored if name not in wanted]
    different = [
        f"{name} (checkpoint {_shown(stored[name])}, model {_shown(wanted[name])})"
        for name in wanted
        if name in stored and dict(stored[name]) != wanted[name]
    ]
    kinds = [
        f"{name} (checkpoint {stored_kinds.get(name, 'plain')}, model {expected_kinds.get(name, 'plain')})"
        for name in (sorted({*stored_kinds, *expected_kinds}) if expected_kinds is not None else ())
        if expected_kinds is not None and stored_kinds.get(name) != expected_kinds.get(name)
    ]
    differences = (
        _listed("only in the model", missing)
        + _listed("only in the checkpoint", surplus)
        + _listed("other shape or dtype", different)
        + _listed("other kind of leaf", kinds)
    )
    if differences:
        raise CheckpointError(
            f"The checkpoint {where} does not fit this model and optimizer:{differences}\n"
            "Resume with the configuration that is stored in it (`flaxbert checkpoints show`), "
            "or choose another --output.folder to start anew."
        )


def _shown(description: Mapping[str, Any]) -> str:
    return f"{description['dtype']}[{','.join(str(size) for size in description['shape'])}]"
