import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from flaxbert.core import runtime
from flaxbert.errors import ConfigError, MemoryLimitError
from flaxbert.train import memory
from flaxbert.train.losses import loss_for
from flaxbert.train.memory import (
    BatchPlan,
    StepMemory,
    check_memory,
    cut_alike,
    estimate_step_memory,
    find_batch_size,
    halve,
    is_out_of_memory,
    memory_budget_bytes,
    micro_batch_sizes,
)
from flaxbert.train.state import create_state
from flaxbert.train.step import make_train_step
from tests.train.tiny_training import TASK, bag_of_words, bag_of_words_params, make_batch, tiny_optimizer

FIXED, PER_EXAMPLE = 1000, 10


class Compiler:
    """Stands for the compiler: a step needs FIXED bytes and PER_EXAMPLE bytes for each example at once."""

    def __init__(self, exponent=1.0):
        self.exponent = exponent
        self.sizes = []

    def __call__(self, micro_batch, accumulation_steps):
        self.sizes.append(micro_batch)
        temporary = int(PER_EXAMPLE * micro_batch**self.exponent)
        return StepMemory(argument=FIXED, output=0, temporary=temporary, total=FIXED + temporary)


@pytest.mark.parametrize("target", [1, 7, 32, 48, 96, 360])
@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("batch_ways", [1, 4])
def test_the_largest_micro_batch_that_fits_is_found(target, exponent, batch_ways):
    target *= batch_ways
    sizes = micro_batch_sizes(target, batch_ways)
    for size in sizes:
        compiler = Compiler(exponent)
        limit = compiler(size, 1).total
        compiler.sizes.clear()
        plan = find_batch_size(target, compiler, limit, batch_ways=batch_ways)
        assert plan.micro_batch == size
        assert plan.micro_batch * plan.accumulation_steps == target
        assert plan.micro_batch % batch_ways == 0
        assert plan.memory.total <= limit
        assert len(compiler.sizes) == len(set(compiler.sizes)) <= 9


def test_a_batch_that_fits_whole_is_compiled_once():
    compiler = Compiler()
    plan = find_batch_size(64, compiler, 10**6)
    assert (plan.micro_batch, plan.accumulation_steps, compiler.sizes) == (64, 1, [64])
    assert plan.describe().startswith("64 examples per step as 1 micro batch of 64, about ")


def test_nothing_that_fits_is_an_error_that_says_what_to_do():
    with pytest.raises(MemoryLimitError, match=r"Even a micro batch of 2 needs .*data\.max_length.*remat"):
        find_batch_size(64, Compiler(), FIXED, batch_ways=2)


@pytest.mark.parametrize(("target", "ways", "sizes"), [(12, 1, [1, 2, 3, 4, 6, 12]), (12, 4, [4, 12]), (7, 7, [7])])
def test_micro_batch_sizes_divide_the_batch_and_cover_the_devices(target, ways, sizes):
    assert micro_batch_sizes(target, ways) == sizes


def test_a_batch_that_devices_can_not_share_is_an_error():
    with pytest.raises(ConfigError, match="batch of 10 can not be split over data x fsdp = 4"):
        micro_batch_sizes(10, 4)


def test_all_shapes_of_a_run_are_cut_into_as_many_micro_batches():
    short, long = BatchPlan(96, 48, 2, Compiler()(48, 2)), BatchPlan(64, 4, 2, Compiler()(4, 16))
    assert cut_alike([short, short]) == [short, short]
    assert cut_alike([short, long]) == [BatchPlan(96, 6, 2), long]
    assert cut_alike([BatchPlan(96, 32, 2), BatchPlan(64, 64, 2)]) == [BatchPlan(96, 24, 2), BatchPlan(64, 16, 2)]
    with pytest.raises(ConfigError, match="96 and 10 over 2 devices"):
        cut_alike([BatchPlan(96, 48, 2), BatchPlan(10, 10, 2)])


def test_halving_keeps_the_global_batch():
    plan, seen = BatchPlan(96, 48, 2, Compiler()(48, 2)), []
    while plan.micro_batch > 2:
        plan = halve(plan)
        seen.append(plan.micro_batch)
        assert plan.micro_batch * plan.accumulation_steps == 96
        assert plan.memory is None
    assert seen == [24, 12, 6, 2]
    with pytest.raises(MemoryLimitError, match="micro batch of 2, which can not be made smaller"):
        halve(plan)


def test_halving_suits_every_batch_of_the_run():
    assert halve(BatchPlan(12, 3, 1)).accumulation_steps == 12
    assert halve(BatchPlan(24, 12, 1), [16]).accumulation_steps == 4
    with pytest.raises(MemoryLimitError, match=r"batches of 12 and 8 over 1 devices .* larger common divisor"):
        halve(BatchPlan(12, 3, 1), [8])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 10 bytes"), True),
        (MemoryError(), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Failed to allocate request"), True),
        (ValueError("shapes differ"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_allocator_of_this_backend_is_recognised_when_it_fails():
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        jax.block_until_ready(jax.jit(lambda: jnp.ones((2**22, 2**20), jnp.float32))())
    assert is_out_of_memory(caught.value)


def test_a_step_over_the_limit_names_the_batch_and_one_that_fits():
    compiler = Compiler()
    plan = BatchPlan(64, 64, 1, compiler(64, 1))
    check_memory(plan, plan.memory.total, compiler)
    with pytest.raises(MemoryLimitError, match=r"64 examples at once.*micro batch of 16 fits.*accumulation_steps 4"):
        check_memory(plan, FIXED + 16 * PER_EXAMPLE, compiler)
    with pytest.raises(MemoryLimitError, match=r"batch_size 64.*use a smaller batch.*auto"):
        check_memory(plan, FIXED)


def test_cpu_budget_is_the_limit_less_what_the_process_has(monkeypatch):
    resident = psutil.Process().memory_info().rss
    monkeypatch.setattr(memory, "host_memory_limit_bytes", lambda: resident + 80 * 10**9)
    count = jax.local_device_count()
    budget = memory_budget_bytes(jax.devices()[0], resident_bytes=123)
    np.testing.assert_allclose(budget, 80e9 / count + 123, rtol=0.01)
    assert memory_budget_bytes(jax.devices()[0]) < runtime.host_memory_limit_bytes() * 1000


class Accelerator:
    platform = "gpu"

    def __init__(self, **statistics):
        self.statistics = statistics

    def memory_stats(self):
        return self.statistics


def test_accelerator_budget_is_the_limit_less_what_others_use():
    device = Accelerator(bytes_limit=1000, bytes_in_use=300)
    assert memory_budget_bytes(device, resident_bytes=200) == 900
    assert memory_budget_bytes(device) == 700


def compiled_step(accumulation_steps=1, rows=16, donate=True):
    optimizer = tiny_optimizer()
    state, kinds = create_state(bag_of_words_params(), (), optimizer)
    step = make_train_step(bag_of_words, loss_for(TASK), optimizer, kinds, accumulation_steps)
    step = step if donate else jax.jit(step.__wrapped__)
    return state, step.lower(state, make_batch(rows), None).compile()


def test_memory_of_a_compiled_step_counts_the_donated_state_once():
    state, compiled = compiled_step()
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    batch_bytes = sum(array.nbytes for array in make_batch().values())
    found = estimate_step_memory(compiled)
    assert state_bytes + batch_bytes <= found.argument < state_bytes + batch_bytes + 1024
    assert found.output < 1024
    assert found.total == found.argument + found.output + found.temporary
    assert found.additional == found.total - found.argument
    not_donated = estimate_step_memory(compiled_step(donate=False)[1])
    assert not_donated.output > 0.9 * state_bytes


def test_real_steps_are_cut_until_they_fit():
    @jax.jit
    def step(batch):
        return jnp.sum(jnp.sort(jnp.sin(batch)[:, None, :] * batch[:, :, None], axis=1))

    def compile_for(micro_batch, accumulation_steps):
        return estimate_step_memory(step.lower(jax.ShapeDtypeStruct((micro_batch, 64), jnp.float32)).compile())

    whole, part = compile_for(64, 1), compile_for(8, 8)
    assert whole.total > part.total
    plan = find_batch_size(64, compile_for, part.total)
    assert plan.micro_batch == 8
    assert plan.memory == part


def test_a_backend_without_figures_is_an_error():
    class Compiled:
        def memory_analysis(self):
            return None

    with pytest.raises(MemoryLimitError, match=r"does not report the memory"):
        estimate_step_memory(Compiled())
