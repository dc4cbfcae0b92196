"""How devices are arranged."""

import dataclasses

from flaxbert.config.checks import require_at_least


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged; the product of the axes must be the number of devices.

    Attributes:
      data: Devices over which only the batch is split; 0 takes what the other axes leave.
      fsdp: Devices over which the batch and the parameters with their optimizer state are split.
      tensor: Devices over which heads, feed-forward and vocabulary are split.
      sequence: Devices over which the tokens of each row are split, for long rows; parameters are whole on all of them.
      slices: Groups of devices that only the data centre's network joins; the data axis runs over them. 0 takes what TPUs say of themselves, else 1.
      coordinator: Address host:port of process 0 for several processes; empty detects the cluster (Slurm, Kubernetes, Cloud TPU, Open MPI) or runs as one process.
      num_processes: Number of processes; 0 detects it.
      process_id: Number of this process, from 0; -1 detects it.
      join_seconds: How long the processes wait for each other at the start, in seconds.
      heartbeat_seconds: How long a process may be silent before the others end, in seconds.
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    slices: int = 0
    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1
    join_seconds: int = 300
    heartbeat_seconds: int = 100

    def __post_init__(self) -> None:
        for field in ("data", "slices"):
            require_at_least("mesh", field, getattr(self, field), 0)
        for field in ("fsdp", "tensor", "sequence"):
            require_at_least("mesh", field, getattr(self, field), 1)
        for field in ("join_seconds", "heartbeat_seconds"):
            require_at_least("mesh", field, getattr(self, field), 1)
