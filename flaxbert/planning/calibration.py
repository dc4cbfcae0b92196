"""Peaks of the CPU of this machine, measured in a few seconds: no data sheet says what its compiler and its memory reach."""

import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flaxbert.core.hlo import parse_module
from flaxbert.core.runtime import host_memory_limit_bytes
from flaxbert.planning.chips import Chip
from flaxbert.planning.operations import FREE, TRANSCENDENTAL_OPERATIONS

SECONDS_EACH = 0.25
"""Time that each measurement takes; the median run counts, as it does for the steps that are compared."""

LEAST_RUNS = 5

_MATRIX = ((8, 128, 768), (768, 3072))
_HEADS = ((96, 128, 64), (96, 64, 128))
_COPY_ELEMENTS, _NEAR_ELEMENTS = 1 << 25, 1 << 20
_VECTOR_ELEMENTS = 1 << 20
_SMALL, _TURNS = 16, 2000


def typical_seconds(run: Callable[[], Any], seconds: float = SECONDS_EACH) -> float:
    """Returns the median time of a call among as many as fit into a time, after one call that compiles.

    Args:
      run: Returns arrays, which are waited for.
      seconds: Time to measure for.
    """
    jax.block_until_ready(run())
    times: list[float] = []
    while len(times) < LEAST_RUNS or sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _ones(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.device_put(jnp.full(shape, 0.5, dtype))


def _matmul_flops(dtype: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]], batched: bool) -> float:
    left, right = (_ones(shape, dtype) for shape in shapes)
    batch = ((0,), (0,)) if batched else ((), ())
    axes = (((left.ndim - 1,), (1 if batched else 0,)), batch)
    dot = jax.jit(functools.partial(lax.dot_general, dimension_numbers=axes, preferred_element_type=jnp.float32))
    columns = shapes[1][-1]
    return 2.0 * left.size * columns / typical_seconds(lambda: dot(left, right))


def _copy_bandwidth(elements: int) -> float:
    array = _ones((elements,), jnp.float32)
    add = jax.jit(lambda values: values + jnp.float32(1.0))
    return 2.0 * array.nbytes / typical_seconds(lambda: add(array))


def _cache_bytes() -> int:
    """Returns half of the last cache of this machine, 0 where it is not known; the other half is for what others hold there."""
    file = pathlib.Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    text = file.read_text(encoding="ascii").strip() if file.is_file() else ""
    return int(text[:-1]) * 1024 // 2 if text[:-1].isdigit() and text.endswith("K") else 0


def _vector_operations() -> float:
    array = _ones((_VECTOR_ELEMENTS,), jnp.float32)
    one = jnp.float32(1.0)

    @jax.jit
    def work(values: jax.Array) -> jax.Array:
        for _ in range(2):
            values = jnp.exp(values * (one - values)) + one
        return values

    operations = 2 * (TRANSCENDENTAL_OPERATIONS + 3)
    return operations * array.size / typical_seconds(lambda: work(array))


def _operation_seconds() -> float:
    """Returns what one operation costs beside its work: a loop over next to nothing, divided by its operations."""
    values = _ones((_SMALL,), jnp.float32)
    loop = jax.jit(lambda start: lax.fori_loop(0, _TURNS, lambda _, array: jnp.sin(array), start))
    module = parse_module(loop.lower(values).compile().as_text() or "")
    body = [
        module.computations[instruction.called[0]]
        for computation in module.computations.values()
        for instruction in computation.instructions
        if instruction.opcode == "while"
    ]
    count = sum(instruction.opcode not in FREE for computation in body for instruction in computation.instructions)
    return typical_seconds(lambda: loop(values)) / _TURNS / max(count, 1)


def measure_cpu(num_devices: int = 1) -> Chip:
    """Measures matrix products, copies and elementwise work on this machine.

    Args:
      num_devices: Virtual devices that share it.

    Returns:
      What each of them gets.
    """
    share = 1.0 / num_devices
    # Both types are measured: bfloat16 reaches another unit on some machines and none at all on others.
    types = {"f32": jnp.float32, "bf16": jnp.bfloat16}
    plain = {name: share * _matmul_flops(dtype, _MATRIX, batched=False) for name, dtype in types.items()}
    batched = {name: share * _matmul_flops(dtype, _HEADS, batched=True) for name, dtype in types.items()}
    bandwidth, near = (share * _copy_bandwidth(elements) for elements in (_COPY_ELEMENTS, _NEAR_ELEMENTS))
    return Chip(
        name="cpu",
        platform="cpu",
        matmul_flops=plain,
        batched_matmul_flops=batched,
        vector_operations=share * _vector_operations(),
        memory_bytes=int(share * host_memory_limit_bytes()),
        memory_bandwidth=bandwidth,
        link_bandwidth=bandwidth / 2,
        outer_bandwidth=bandwidth / 2,
        per_node=num_devices,
        operation_seconds=_operation_seconds(),
        cache_bytes=int(share * _cache_bytes()),
        cache_bandwidth=max(bandwidth, near),
        source="measured on this machine just now",
    )
