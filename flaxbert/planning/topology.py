"""Topologies by name: ``v5e:16x16``, ``v5p:4x4x8``, ``h200:8``, ``cpu:8``; their devices, there or not."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxbert.core.runtime import backend_started
from flaxbert.errors import ConfigError, DependencyError, MeshError, nearest
from flaxbert.planning.chips import CHIPS, Chip
from flaxbert.planning.links import Interconnect

CPU = "cpu"
_NAME = re.compile(r"(?:(\d+)\*)?([a-z]\w*):(\d+(?:x\d+)*)")
_DEVICE_COUNT = "--xla_force_host_platform_device_count"
_EXAMPLES = "v5e:16x16, v5p:4x4x8, v6e:16x16, 2*v5e:16x16 (two slices), h200:8, cpu:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A set of devices by name.

    Attributes:
      name: As the user wrote it.
      kind: v5e, h200, cpu…
      shape: Devices along each axis of a slice.
      num_slices: Slices, or 1.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def platform(self) -> str:
        """tpu, gpu or cpu."""
        return CPU if self.kind == CPU else CHIPS[self.kind].platform

    @property
    def num_devices(self) -> int:
        """Devices of all slices."""
        return self.num_slices * math.prod(self.shape)

    def describe(self) -> str:
        """Returns what is compiled for this topology, in words."""
        if self.platform == "tpu":
            return f"{self.num_devices} x {self.kind}, compiled for them by libtpu"
        if self.platform == "gpu":
            return (
                f"{self.num_devices} x {self.kind}: no absent GPU can be compiled for, so this is the program as the CPU's compiler "
                "partitions it, over the peaks of the GPU"
            )
        return f"{self.num_devices} virtual devices of this CPU"


def parse_topology(name: str) -> Topology:
    """Reads the name of a topology.

    Args:
      name: Kind and sizes, for example ``v5e:16x16``; slices before a star.

    Returns:
      The topology.

    Raises:
      ConfigError: The kind is not known, or the sizes do not fit it.
    """
    known = [*CHIPS, CPU]
    found = _NAME.fullmatch(name.strip().lower())
    if found is None:
        kind = name.partition(":")[0].rpartition("*")[2].strip().lower()
        hint = nearest(kind, known) if kind not in known else ""
        raise ConfigError(f"The topology '{name}' is not KIND:SIZES, for example {_EXAMPLES}.{hint}")
    slices, kind, sizes = int(found[1] or 1), found[2], tuple(int(size) for size in found[3].split("x"))
    if kind not in known:
        raise ConfigError(
            f"The topology '{name}' is of the kind '{kind}', which is not known; known are {', '.join(known)}."
            f"{nearest(kind, known)}"
        )
    if min((*sizes, slices)) < 1:
        raise ConfigError(f"The topology '{name}' has an axis of size 0; every size is at least 1.")
    rank = {"v5p": 3, "v5e": 2, "v6e": 2}.get(kind, 1)
    if len(sizes) != rank:
        raise ConfigError(
            f"The topology '{name}' has {len(sizes)} sizes, but {kind} has {rank}, for example {kind}:{'x'.join(['4'] * rank)}."
        )
    if slices > 1 and rank == 1:
        raise ConfigError(
            f"The topology '{name}' has several slices, but {kind} is counted in devices: {kind}:{slices * sizes[0]}."
        )
    return Topology(name, kind, sizes, slices)


def prepare_process(topology: Topology) -> None:
    """Sets what has to be set before JAX starts: no accelerator is taken, and there are enough virtual devices.

    Args:
      topology: What will be planned for.

    Raises:
      DependencyError: It is a TPU and libtpu is not installed.
      MeshError: JAX already runs with fewer devices than a topology of CPUs or GPUs needs.
    """
    if topology.platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise DependencyError(
                f"The compiler for {topology.kind} is not installed; install the extra: pip install 'flaxbert[tpu]' (it needs no TPU)."
            )
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault(
            "ALLOW_MULTIPLE_LIBTPU_LOAD", "1"
        )  # no TPU is taken, so several processes may plan at once
    if not backend_started():
        os.environ["JAX_PLATFORMS"] = CPU
        if topology.platform != "tpu" and topology.num_devices > 1:
            flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(_DEVICE_COUNT)]
            os.environ["XLA_FLAGS"] = " ".join([*flags, f"{_DEVICE_COUNT}={topology.num_devices}"])
        import jax

        jax.config.update("jax_platforms", CPU)
        return
    if topology.platform != "tpu":
        import jax

        present = len(jax.devices(CPU))
        if present < topology.num_devices:
            raise MeshError(
                f"The topology {topology.name} needs {topology.num_devices} virtual devices, but JAX already runs with {present}; plan in "
                "a process of its own: flaxbert plan."
            )


def find_devices(topology: Topology) -> list[Any]:
    """Returns the devices of a topology to compile for.

    Args:
      topology: The topology; ``prepare_process`` was called for it.

    Raises:
      ConfigError: The compiler knows no slice of these sizes.
    """
    import jax

    if topology.platform != "tpu":
        return list(jax.devices(CPU)[: topology.num_devices])
    from jax.experimental.topologies import get_topology_desc

    sizes = "x".join(str(size) for size in topology.shape)
    options: dict[str, Any] = {"num_slices": topology.num_slices} if topology.num_slices > 1 else {}
    per_host = _host_bounds(topology.shape)
    if per_host:
        options["chips_per_host_bounds"] = per_host
    try:
        return list(get_topology_desc(f"{topology.kind}:{sizes}", platform="tpu", **options).devices)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"The compiler knows no slice {topology.kind}:{sizes}: {' '.join(str(error).split())[:300]}. Usual ones are 2x2, 2x4, 4x4, 4x8, "
            "8x8, 8x16 and 16x16 for v5e and v6e, and multiples of 2x2x1 for v5p."
        ) from error


def _host_bounds(shape: Sequence[int]) -> list[int]:
    """Returns the shape of a host for slices smaller than the usual host; empty for the usual one."""
    if math.prod(shape) >= 4:
        return []
    return [*shape, *[1] * (3 - len(shape))]


def make_interconnect(topology: Topology, devices: Sequence[Any], chip: Chip) -> Interconnect:
    """Returns where the devices of a mesh stand.

    Args:
      topology: The topology.
      devices: Its devices in the order of the mesh.
      chip: Their kind.
    """
    count = len(devices)
    if topology.platform == "tpu":
        rank = len(topology.shape)
        coordinates = np.array([tuple(device.coords)[:rank] for device in devices], np.int64).reshape(count, rank)
        slices = np.array([getattr(device, "slice_index", 0) or 0 for device in devices], np.int64)
        return Interconnect(chip, coordinates, slices, topology.shape)
    per_node = chip.per_node if topology.platform == "gpu" else count
    numbers = np.array([device.id for device in devices], np.int64)
    return Interconnect(chip, (numbers % per_node)[:, None], numbers // per_node, (min(per_node, count),))
