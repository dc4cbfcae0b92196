"""OrbaxSilence drops orbax's repetitions and nothing else."""

import logging
import sys
import types

import pytest

from flaxbert.train.quiet_failures import OrbaxSilence, drop_abandoned_writes


@pytest.fixture
def passed_on(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    return told


def unraisable(error: BaseException) -> types.SimpleNamespace:
    return types.SimpleNamespace(exc_type=type(error), exc_value=error)


def test_only_the_closed_loop_is_dropped(passed_on):
    before = sys.unraisablehook
    silence = OrbaxSilence()
    silence.install()
    sys.unraisablehook(unraisable(RuntimeError("Event loop is closed")))
    others = [unraisable(RuntimeError("another")), unraisable(ValueError("Event loop is closed"))]
    for other in others:
        sys.unraisablehook(other)
    silence.remove()
    assert passed_on == others
    assert sys.unraisablehook == before


def test_a_hook_that_was_put_over_it_stays(passed_on, monkeypatch):
    silence = OrbaxSilence()
    silence.install()
    later = lambda unraisable: None
    monkeypatch.setattr(sys, "unraisablehook", later)
    silence.remove()
    assert sys.unraisablehook is later


def test_only_errors_that_repeat_are_dropped_from_the_log(passed_on, caplog):
    silence = OrbaxSilence()
    silence.install()
    absl, asyncio = logging.getLogger("absl"), logging.getLogger("asyncio")
    absl.error("[process=%s] _SignalingThread.run() raised an exception: %s", 0, "x")
    absl.error("[process=0] Failed to run 2 Handler Commit operations or the Commit callback in background")
    asyncio.error("Task exception was never retrieved\nfuture: <Task coro=<f() defined at /x/orbax/checkpoint/y.py>>")
    assert caplog.messages == []
    absl.error("Failed to run")
    asyncio.error("Task exception was never retrieved\nfuture: <Task coro=<mine()>>")
    absl.warning("_SignalingThread.run() raised an exception")
    silence.remove()
    absl.error("_SignalingThread.run() raised an exception")
    assert len(caplog.messages) == 4


def test_abandoned_locals_are_freed_and_the_errors_stay():
    import weakref

    class Write:
        pass

    references = []

    def fail() -> None:
        write = Write()
        references.append(weakref.ref(write))
        try:
            raise ValueError("inner")
        except ValueError as error:
            raise KeyError("outer") from error

    try:
        fail()
    except KeyError as error:
        kept = error
    assert references[0]() is not None
    drop_abandoned_writes(kept)
    assert references[0]() is None
    assert isinstance(kept.__cause__, ValueError)
    assert kept.__traceback__ is not None
