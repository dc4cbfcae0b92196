"""What of a cluster a command takes."""

import collections.abc
import dataclasses
from typing import Literal

from flaxbert.config.checks import require, require_at_least


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """What of a Ray cluster a command takes.

    Attributes:
      address: host:port of the cluster's head; auto for the cluster that this machine is part of (or the variable RAY_ADDRESS); local starts Ray on this machine for the time of the command.
      num_workers: Worker processes. Of training each is one process of the run, so on TPUs one for each host.
      device: What workers compute on: cpu, gpu or tpu.
      cpus_per_worker: Processors that Ray sets aside for each worker.
      devices_per_worker: GPUs of each worker; of TPUs the chips of its host, 0 for what the topology says. Must be 0 for cpu.
      topology: Arrangement of a TPU slice such as 4x4, for training on several hosts.
      accelerator_type: Ray's name for the TPU such as TPU-V6E, for training on several hosts.
      placement: pack puts workers on few nodes, spread on many; strict_spread puts each on a node of its own.
      max_failures: How often training starts again, from its newest checkpoint, after a worker has failed; -1 always.
      timeout_seconds: How long the cluster may take to have room for all workers.
      folder: Folder that relative paths of the command start from, on a file system that all nodes share; empty for the current one.
      environment: Variables that are set for the workers.
    """

    address: str = "auto"
    num_workers: int = 1
    device: Literal["cpu", "gpu", "tpu"] = "cpu"
    cpus_per_worker: float = 1.0
    devices_per_worker: int = 0
    topology: str = ""
    accelerator_type: str = ""
    placement: Literal["pack", "spread", "strict_spread"] = "pack"
    max_failures: int = 0
    timeout_seconds: float = 60.0
    folder: str = ""
    environment: collections.abc.Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        require_at_least("cluster", "num_workers", self.num_workers, 1)
        require_at_least("cluster", "max_failures", self.max_failures, -1)
        for field in ("cpus_per_worker", "devices_per_worker", "timeout_seconds"):
            require_at_least("cluster", field, getattr(self, field), 0)
        require(
            "://" not in self.address,
            f"cluster.address is {self.address}, but Ray's client protocol is not supported: run the command on a node of the "
            "cluster, and name host:port of its head, auto or local.",
        )
        require(
            self.device != "cpu" or not self.devices_per_worker,
            f"cluster.devices_per_worker is {self.devices_per_worker}, but cluster.device is cpu; set it to gpu or tpu, or use "
            "cluster.cpus_per_worker.",
        )
        require(
            self.device == "tpu" or not (self.topology or self.accelerator_type),
            f"cluster.topology and cluster.accelerator_type belong to TPUs, but cluster.device is {self.device}.",
        )
        require(
            bool(self.topology) == bool(self.accelerator_type),
            "cluster.topology and cluster.accelerator_type go together, for example 4x4 and TPU-V6E.",
        )
        require(
            bool(self.cpus_per_worker or self.device != "cpu"),
            "cluster.cpus_per_worker is 0 and cluster.device is cpu, so that nothing would be set aside for the workers.",
        )

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """What Ray sets aside for one worker, by Ray's names."""
        found = {"CPU": self.cpus_per_worker} if self.cpus_per_worker else {}
        if self.device == "gpu":
            found["GPU"] = float(self.devices_per_worker or 1)
        elif self.device == "tpu" and (self.devices_per_worker or not self.topology):
            found["TPU"] = float(self.devices_per_worker or 1)
        return found
