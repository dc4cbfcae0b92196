"""Queries, keys and values of every attention layer, kept aside while a network is traced.

Every family's attention calls ``keep`` with what it is about to mix, before an implementation is chosen, so that what is kept is
the same for all of them (xla, cudnn, splash). Nothing is kept, and nothing computed, unless somebody collects: ``collecting``
opens a list for the time of one trace. What JAX traces on its own (a recomputed part, the body of a scan, a branch) has to
return what was kept in it, which ``returning`` and ``through`` see to.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """What one attention layer mixes.

    Attributes:
      query: Queries, ``[batch, heads, length, head_dim]``, not scaled; with rotary positions already turned.
      key: Keys, alike.
      value: Values, alike.
    """

    query: Any
    key: Any
    value: Any


_kept: contextvars.ContextVar[list[AttentionInputs] | None] = contextvars.ContextVar("_kept", default=None)


@contextlib.contextmanager
def collecting(wanted: bool = True) -> Iterator[list[AttentionInputs]]:
    """Opens a list that attention layers traced within the block are kept in, in the order in which they run.

    Args:
      wanted: Whether anything is kept; if not, the list stays empty and an outer one is closed for the block.

    Yields:
      The list.
    """
    found: list[AttentionInputs] = []
    token = _kept.set(found if wanted else None)
    try:
        yield found
    finally:
        _kept.reset(token)


def is_collecting() -> bool:
    """Returns whether attention layers are kept right now."""
    return _kept.get() is not None


def keep(
    query: Float[Array, "batch heads length head_dim"],
    key: Float[Array, "batch heads length head_dim"],
    value: Float[Array, "batch heads length head_dim"],
) -> None:
    """Keeps the inputs of one attention layer where somebody collects them.

    Args:
      query: Queries.
      key: Keys.
      value: Values.
    """
    found = _kept.get()
    if found is not None:
        found.append(AttentionInputs(query, key, value))


def keep_all(layers: Any) -> None:
    """Keeps what was kept elsewhere, in its order.

    Args:
      layers: Inputs of attention layers, from ``returning``.
    """
    found = _kept.get()
    if found is not None:
        found.extend(layers)


def returning(function: Callable[..., Any]) -> Callable[..., tuple[Any, tuple[AttentionInputs, ...]]]:
    """Returns the function that returns, beside its result, what was kept in it.

    Args:
      function: Any function; run while nobody collects, it keeps nothing.
    """
    wanted = is_collecting()

    def run(*arguments: Any) -> tuple[Any, tuple[AttentionInputs, ...]]:
        with collecting(wanted) as found:
            result = function(*arguments)
        return result, tuple(found)

    return run


def through(transform: Callable[[Callable[..., Any]], Callable[..., Any]], function: Callable[..., Any]) -> Any:
    """Returns ``transform(function)`` that keeps what is kept inside of the function.

    Args:
      transform: A transformation whose result returns what the function returns, such as ``jax.checkpoint``.
      function: The function.
    """
    if not is_collecting():
        return transform(function)
    transformed = transform(returning(function))

    def run(*arguments: Any) -> Any:
        result, layers = transformed(*arguments)
        keep_all(layers)
        return result

    return run


def unstacked(layers: Any, num_layers: int) -> Iterator[AttentionInputs]:
    """Yields the layers of a scan one by one.

    Args:
      layers: What the body kept, each array with a first axis over the steps of the scan.
      num_layers: Number of steps.
    """
    for index in range(num_layers):
        for layer in layers:
            yield jax.tree.map(lambda array, index=index: array[index], layer)
