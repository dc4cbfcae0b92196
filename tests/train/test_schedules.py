import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import TrainConfig
from flaxbert.errors import ConfigError
from flaxbert.train.schedules import make_schedule, num_warmup_steps

STEPS, WARMUP, PEAK, END = 100, 10, 3e-4, 1e-5

TOLERANCE = 1e-6
"""Relative to the peak: schedules are computed in float32."""


def values(num_steps=STEPS, **settings):
    config = TrainConfig(**{"learning_rate": PEAK, "warmup_steps": WARMUP, **settings})
    schedule = jax.jit(jax.vmap(make_schedule(config, num_steps)))
    return np.asarray(schedule(jnp.arange(num_steps + 5, dtype=jnp.int32)))


def reference(name, num_steps=STEPS, **arguments):
    torch = pytest.importorskip("torch", reason="transformers' schedules need torch")
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = getattr(transformers, name)(optimizer, **arguments)
    rates = []
    for _ in range(num_steps + 5):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return np.asarray(rates)


def assert_same(ours, theirs):
    # After the end, transformers' cosine rises again and ours stays; a run has no steps there.
    ours, theirs = ours[: STEPS + 1], theirs[: STEPS + 1]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * PEAK)


@pytest.mark.parity
@pytest.mark.parametrize("warmup", [0, 1, WARMUP, STEPS - 1])
@pytest.mark.parametrize(
    ("name", "theirs", "arguments"),
    [
        ("linear", "get_linear_schedule_with_warmup", {"num_training_steps": STEPS}),
        ("cosine", "get_cosine_schedule_with_warmup", {"num_training_steps": STEPS}),
        ("constant", "get_constant_schedule_with_warmup", {}),
        ("inverse_square_root", "get_inverse_sqrt_schedule", {}),
    ],
)
def test_equal_to_transformers(name, theirs, arguments, warmup):
    ours = values(schedule=name, warmup_steps=warmup, warmup_rate=0.0)
    assert_same(ours, reference(theirs, num_warmup_steps=warmup, **arguments))


@pytest.mark.parity
@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_polynomial_equals_transformers(power):
    ours = values(schedule="polynomial", polynomial_power=power, end_learning_rate=END)
    theirs = reference(
        "get_polynomial_decay_schedule_with_warmup",
        num_warmup_steps=WARMUP,
        num_training_steps=STEPS,
        lr_end=END,
        power=power,
    )
    assert_same(ours, theirs)


def test_warmup_rises_linearly_from_zero():
    np.testing.assert_allclose(values()[: WARMUP + 1], PEAK * np.arange(WARMUP + 1) / WARMUP, rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial"])
def test_the_end_is_reached_and_kept(name):
    rates = values(schedule=name, end_learning_rate=END)
    np.testing.assert_allclose(rates[STEPS:], END, rtol=1e-4)
    assert rates[STEPS - 1] > END
    assert np.all(np.diff(rates[WARMUP:]) <= 0)


def test_exponential_multiplies_over_decay_steps_down_to_the_end():
    rates = values(schedule="exponential", decay_rate=0.5, decay_steps=20, end_learning_rate=PEAK / 8)
    since = np.arange(STEPS + 5 - WARMUP)
    np.testing.assert_allclose(rates[WARMUP:], np.maximum(PEAK * 0.5 ** (since / 20), PEAK / 8), rtol=1e-5)


def test_step_drops_at_multiples_of_decay_steps():
    rates = values(schedule="step", decay_rate=0.1, decay_steps=30)
    since = np.arange(STEPS + 5 - WARMUP)
    np.testing.assert_allclose(rates[WARMUP:], PEAK * 0.1 ** (since // 30), rtol=1e-5)


def test_decay_steps_default_to_a_tenth_of_the_run():
    np.testing.assert_array_equal(values(schedule="step"), values(schedule="step", decay_steps=STEPS // 10))


def test_a_stable_rate_falls_with_the_root_in_the_last_steps():
    rates = values(schedule="warmup_stable_decay", decay_steps=40, end_learning_rate=END)
    np.testing.assert_allclose(rates[: WARMUP + 1], PEAK * np.arange(WARMUP + 1) / WARMUP, atol=TOLERANCE * PEAK)
    np.testing.assert_allclose(rates[WARMUP : STEPS - 40], PEAK, atol=TOLERANCE * PEAK)
    falling = END + (PEAK - END) * (1 - np.sqrt(np.arange(41) / 40))
    np.testing.assert_allclose(rates[STEPS - 40 : STEPS + 1], falling, atol=TOLERANCE * PEAK)
    np.testing.assert_allclose(rates[STEPS:], END, atol=TOLERANCE * PEAK)


def test_warmup_rate_is_rounded_up_and_warmup_steps_win():
    assert num_warmup_steps(TrainConfig(warmup_rate=0.1), 101) == 11
    assert num_warmup_steps(TrainConfig(warmup_rate=0.0), 101) == 0
    assert num_warmup_steps(TrainConfig(warmup_rate=0.5, warmup_steps=3), 101) == 3


def test_a_warmup_longer_than_the_run_is_an_error():
    with pytest.raises(ConfigError, match="warmup_steps is 50, but the run has only 40 steps"):
        make_schedule(TrainConfig(warmup_steps=50), 40)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_tiny_runs_have_finite_rates(num_steps):
    for name in (
        "linear",
        "cosine",
        "polynomial",
        "exponential",
        "step",
        "inverse_square_root",
        "constant",
        "warmup_stable_decay",
    ):
        rates = values(num_steps=num_steps, schedule=name, warmup_steps=0, warmup_rate=0.5)
        assert np.all(np.isfinite(rates))
        assert np.all(rates >= 0)


def test_schedules_are_float32_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        assert make_schedule(TrainConfig(schedule="cosine"), 10)(jnp.asarray(3, jnp.int32)).dtype == jnp.float32
