"""Checks of shapes and types that are built when a function is first called.

jaxtyping's import hook builds two checking functions for every function of a module while that is imported, and for a function inside another one anew at
each call of the outer one. Built when called, they take a sixth less of the processor's time of tests that compile much.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping

_build: Callable[..., Any] = jaxtyping.jaxtyped


def _when_called(function: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    @functools.cache
    def checked() -> Callable[..., Any]:
        return _build(function, typechecker=typechecker)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        return checked()(*args, **kwargs)

    return call


def lazily_checked(function: Any, *, typechecker: Any) -> Any:
    """Returns what jaxtyping's ``jaxtyped`` returns, built at the first call; functions inside others are left as they are.

    Args:
      function: A function, or a class whose ``__init__`` is checked if it is a dataclass.
      typechecker: Decorator that checks types.
    """
    if inspect.isclass(function):
        own = function.__dict__.get("__init__")
        if hasattr(function, "__dataclass_fields__") and own is not None and not hasattr(own, "__wrapped__"):
            function.__init__ = _when_called(own, typechecker)
        return function
    if "<locals>" in function.__qualname__:
        return function
    return _when_called(function, typechecker)


def install(package: str, typechecker: str) -> None:
    """Checks the annotated functions and dataclasses of a package that is not imported yet.

    Args:
      package: Its name.
      typechecker: Dotted name of the decorator that checks types.
    """
    jaxtyping.jaxtyped = lambda *, typechecker: functools.partial(lazily_checked, typechecker=typechecker)
    jaxtyping.install_import_hook(package, typechecker)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Calls flaxbert's functions as users do, for measurements of memory, which building and running checks would change."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
