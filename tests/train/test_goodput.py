"""The ledger of time, by clocks that are set by hand."""

import pytest

from flaxbert.train.goodput import CHECKPOINT, COMPILE, DATA, EVALUATION, KINDS, RESTART, START, STEP, TimeLedger


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def others(ledger):
    return {kind: seconds for kind, seconds in ledger.seconds().items() if seconds}


def test_every_moment_belongs_to_one_kind(clock):
    ledger = TimeLedger(clock, clock)
    clock.now += 3
    with ledger.measure(STEP):
        clock.now += 10
        with ledger.measure(COMPILE):
            clock.now += 5
        clock.now += 20
        with ledger.measure(EVALUATION):
            clock.now += 2
            with ledger.measure(CHECKPOINT):
                clock.now += 1
            clock.now += 2
    clock.now += 7
    assert others(ledger) == {START: 10, STEP: 30, COMPILE: 5, EVALUATION: 4, CHECKPOINT: 1}
    assert ledger.goodput_rate() == pytest.approx(0.6)
    assert set(ledger.seconds()) == set(KINDS)


def test_what_follows_the_loop_is_evaluation(clock):
    ledger = TimeLedger(clock, clock)
    ledger.finish()
    clock.now += 4
    assert others(ledger) == {EVALUATION: 4}


def test_time_is_moved_but_never_made(clock):
    ledger = TimeLedger(clock, clock)
    with ledger.measure(DATA):
        clock.now += 4
    ledger.move(1.0, DATA, STEP)
    assert others(ledger) == {DATA: 3, STEP: 1}
    ledger.move(99.0, DATA, STEP)
    ledger.move(-1.0, STEP, DATA)
    assert others(ledger) == {STEP: 4}


def test_an_error_inside_a_block_ends_it(clock):
    ledger = TimeLedger(clock, clock)

    def fail():
        with ledger.measure(EVALUATION):
            clock.now += 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.now += 1
    assert others(ledger) == {START: 1, EVALUATION: 1}


def test_a_restart_costs_all_since_the_checkpoint(clock):
    first = TimeLedger(clock, clock)
    with first.measure(STEP):
        clock.now += 50
        state = first.get_state()
        clock.now += 30  # lost work
    clock.now += 15  # nobody runs
    second = TimeLedger(clock, clock)
    clock.now += 5
    second.resume(state)
    with second.measure(STEP):
        clock.now += 100
    assert others(second) == {STEP: 150, RESTART: 50}
    assert second.goodput_rate() == 0.75
