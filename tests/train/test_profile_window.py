"""The window of steps that is traced."""

import jax
import jax.numpy as jnp
import pytest

from flaxbert.config import TrainConfig
from flaxbert.errors import ConfigError
from flaxbert.train.profile_window import ProfileWindow, trace_files


def test_a_window_writes_one_trace_that_is_not_empty(tmp_path):
    product = jax.jit(lambda array: array @ array)
    with ProfileWindow(tmp_path, (2, 3), total_steps=5) as window:
        for step in range(1, 6):
            if window.starts_at(step):
                window.start()
            result = product(jnp.ones((64, 64)))
            if window.ends_at(step):
                assert step == 3
                path = window.stop(result)
    (found,) = trace_files(tmp_path / "profile")
    assert found == path
    assert found.stat().st_size > 1000


def test_a_run_that_ends_inside_the_window_still_writes_its_trace(tmp_path):
    with ProfileWindow(tmp_path, (1, 9), total_steps=9) as window:
        window.start()
        jax.block_until_ready(jnp.ones(3) + 1)
    assert len(trace_files(tmp_path / "profile")) == 1


def test_without_steps_nothing_is_traced(tmp_path):
    with ProfileWindow(tmp_path, None, total_steps=5) as window:
        assert not any(window.starts_at(step) or window.ends_at(step) for step in range(6))
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_on_after_the_first_step_says_that_it_traces_nothing(tmp_path, caplog):
    window = ProfileWindow(tmp_path, (2, 3), total_steps=5, steps_taken=2)
    assert not window.starts_at(2)
    assert "Steps 2 to 3 are not traced" in caplog.text


def test_steps_after_the_run_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="train.profile is 4:6, but the run has 5 steps"):
        ProfileWindow(tmp_path, (4, 6), total_steps=5)


@pytest.mark.parametrize("value", ["5", "3:2", "0:4", "a:b", "1:2:3", "-1:2"])
def test_a_window_is_two_steps(value):
    with pytest.raises(ConfigError, match=f"train.profile is '{value}', but must be first:last"):
        TrainConfig(profile=value)
    assert TrainConfig(profile="100:105").profile_steps() == (100, 105)
