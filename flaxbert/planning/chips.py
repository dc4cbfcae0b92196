"""Peaks of chips, each with its source: what a roofline divides by."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

Platform = Literal["tpu", "gpu", "cpu"]

GIBIBYTE = 1 << 30

SCALING_BOOK = "github.com/jax-ml/scaling-book tpus.md"
"""Peaks, bandwidths, sizes of the matrix unit and of a host, which axes of a slice are rings, and the vector unit: 8 x 128 lanes of
4 units in each core, whose clock follows from the matrix peak."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one kind of device.

    Attributes:
      name: Kind as a topology names it.
      platform: tpu, gpu or cpu.
      matmul_flops: FLOP/s of matrix products by the type of the operands.
      batched_matmul_flops: The same for products with a batch axis, where they are another routine; empty: as above.
      vector_operations: Elementwise operations per second.
      memory_bytes: Memory that programs can use.
      memory_bandwidth: Bytes per second to and from memory.
      link_bandwidth: Bytes per second that a device sends in one direction of one axis of the torus, or into the switch.
      outer_bandwidth: Bytes per second and device between slices or nodes.
      matrix_tile: Rows and columns of the matrix unit; smaller sides are filled up to it. 1: not counted.
      ring_multiple: An axis of a slice is a ring where its size is a multiple of this; 0: a switch instead of a torus.
      per_node: Devices that one host or node has.
      operation_seconds: Time to start one operation.
      cache_bytes: What an operation may move and still find in the cache; 0: not counted, as where programs choose what is near (TPU).
      cache_bandwidth: Bytes per second to and from the cache.
      source: Where the numbers are from.
    """

    name: str
    platform: Platform
    matmul_flops: Mapping[str, float]
    vector_operations: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    outer_bandwidth: float
    matrix_tile: int = 1
    ring_multiple: int = 0
    per_node: int = 8
    batched_matmul_flops: Mapping[str, float] = dataclasses.field(default_factory=dict)
    operation_seconds: float = 0.0
    cache_bytes: int = 0
    cache_bandwidth: float = 0.0
    source: str = ""

    @property
    def peak_flops(self) -> float:
        """The dense bfloat16 peak, which MFU is a share of."""
        return self.matmul_flops["bf16"]

    def memory_seconds(self, moved_bytes: float) -> float:
        """Returns the time that an operation spends moving bytes.

        Args:
          moved_bytes: Bytes that it reads and writes.
        """
        cached = bool(self.cache_bytes) and moved_bytes <= self.cache_bytes
        return moved_bytes / (self.cache_bandwidth if cached else self.memory_bandwidth)

    def matmul_rate(self, dtype: str, batched: bool) -> float:
        """Returns the FLOP/s of a matrix product.

        Args:
          dtype: Type of the operands in HLO's words; an unknown one counts as f32.
          batched: Whether it has a batch axis.
        """
        table = self.batched_matmul_flops if batched and self.batched_matmul_flops else self.matmul_flops
        return table.get(dtype, table["f32"])


def _tpu(
    name: str,
    bf16: float,
    int8: float,
    vector: float,
    memory_gib: float,
    bandwidth: float,
    link: float,
    tile: int,
    ring: int,
    per_node: int,
) -> Chip:
    # The matrix unit takes float32 operands of default precision as bfloat16; higher precision takes several passes.
    return Chip(
        name=name,
        platform="tpu",
        matmul_flops={"bf16": bf16, "f32": bf16, "f16": bf16, "s8": int8, "u8": int8},
        vector_operations=vector,
        memory_bytes=int(memory_gib * GIBIBYTE),
        memory_bandwidth=bandwidth,
        link_bandwidth=link,
        outer_bandwidth=2.5e10 / per_node,
        matrix_tile=tile,
        ring_multiple=ring,
        per_node=per_node,
        source=f"{SCALING_BOOK}; usable memory as the compiler of libtpu 0.0.42 names it",
    )


def _gpu(name: str, bf16: float, tf32: float, int8: float, memory_gb: float, bandwidth: float, link: float) -> Chip:
    return Chip(
        name=name,
        platform="gpu",
        matmul_flops={"bf16": bf16, "f16": bf16, "f32": tf32, "s8": int8, "u8": int8},
        vector_operations=bf16 / 15,
        memory_bytes=int(0.92 * memory_gb * 1e9),
        memory_bandwidth=bandwidth,
        link_bandwidth=link,
        outer_bandwidth=5.0e10,
        matrix_tile=1,
        source="NVIDIA's data sheet (dense rates, TF32 for float32); one 400 Gb/s adapter a GPU between nodes; 8 % of the "
        "memory left to the driver and the libraries",
    )


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu("v5e", 1.97e14, 3.94e14, 6.1e12, 15.75, 8.1e11, 4.5e10, 128, 16, 8),
        _tpu("v5p", 4.59e14, 9.18e14, 1.4e13, 95.74, 2.8e12, 9.0e10, 128, 4, 4),
        _tpu("v6e", 9.20e14, 1.84e15, 7.2e12, 31.25, 1.6e12, 9.0e10, 256, 16, 8),
        _gpu("a100", 3.12e14, 1.56e14, 6.24e14, 80, 2.0e12, 3.0e11),
        _gpu("h100", 9.9e14, 4.95e14, 1.98e15, 80, 3.35e12, 4.5e11),
        _gpu("h200", 9.9e14, 4.95e14, 1.98e15, 141, 4.8e12, 4.5e11),
    )
}
"""Chips by name, without the CPU of this machine, which is measured (``planning.calibration``)."""
