"""Memory of this process on the host."""

import ctypes
import functools
from typing import Any

import jax
import jax.numpy as jnp

LARGE_LEAF = 2**18
"""Entries of a leaf from which on its freed memory is given back at once."""


@functools.cache
def _library() -> Any:
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "malloc_trim") else None
    except OSError:
        return None


def return_freed_memory() -> None:
    """Gives memory that was freed back to the system, where the C library can (glibc); it would keep holes for later.

    Without it, a process that has loaded a model can hold twice the bytes of its parameters.
    """
    library = _library()
    if library is not None:
        library.malloc_trim(0)


def place_on_device(leaf: Any) -> Any:
    """Returns a leaf on the default device, and gives the memory that reading it left behind back to the system.

    Args:
      leaf: Array or typed leaf on the host.
    """
    placed = jax.tree.map(jnp.asarray, leaf)
    if leaf.size >= LARGE_LEAF:
        jax.block_until_ready(placed)
        return_freed_memory()
    return placed
