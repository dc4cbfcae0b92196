"""The proof that no request waits for a compiler: every compilation that was not ordered beforehand is counted."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_ordered = threading.local()


@contextlib.contextmanager
def ordered() -> Iterator[None]:
    """Says that what this thread compiles is compiled for later, by nobody who waits.

    Yields:
      Nothing.
    """
    _ordered.here = True
    try:
        yield
    finally:
        _ordered.here = False


def count_compilations(gauge: Any) -> None:
    """Counts from now on what JAX compiles, or reads from its cache of compiled programs, without order.

    Args:
      gauge: A gauge of Prometheus; set to 0, and raised by each program.
    """
    gauge.set(0)

    def note(event: str, duration_secs: float, **_: Any) -> None:
        if event == _EVENT and not getattr(_ordered, "here", False):
            gauge.inc()

    jax.monitoring.register_event_duration_secs_listener(note)
