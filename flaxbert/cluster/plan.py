"""What a launch would do, known before a cluster is asked: which workers with which resources run which command."""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxbert.config import ClusterConfig
from flaxbert.errors import ConfigError, nearest

TRAINING = ("pretrain", "finetune")
"""Commands whose workers are the processes of one run."""

COMMANDS = ("prepare", "predict", "serve", *TRAINING)
"""Commands that can be launched."""

COORDINATOR = "HOST_OF_WORKER_0:FREE_PORT"
"""Stands in a plan for the address that is only known once worker 0 runs."""


def find_command(words: Sequence[str]) -> str:
    """Returns the command that is to be launched.

    Args:
      words: What follows ``--``.

    Raises:
      ConfigError: There is none, or it can not be launched.
    """
    if not words:
        raise ConfigError(
            f"Name the command that is launched after --, for example flaxbert launch -- pretrain --config run.yaml; it may be "
            f"{', '.join(COMMANDS)}."
        )
    if words[0] not in COMMANDS:
        raise ConfigError(
            f"'{words[0]}' can not be launched on a cluster; {', '.join(COMMANDS)} can.{nearest(words[0], COMMANDS)}"
        )
    return words[0]


def process_options(coordinator: str, num_workers: int, number: int) -> list[str]:
    """Returns the options that make a worker one process of a run.

    Args:
      coordinator: host:port of worker 0.
      num_workers: Processes of the run.
      number: Number of the worker.
    """
    return [
        f"--mesh.coordinator={coordinator}",
        f"--mesh.num_processes={num_workers}",
        f"--mesh.process_id={number}",
    ]


@dataclasses.dataclass(frozen=True)
class LaunchPlan:
    """A command, and what runs it.

    Attributes:
      cluster: What of the cluster it takes; its folder becomes absolute, since workers start in another one.
      words: The command with its options.
      options: The options as the command reads them.
    """

    cluster: ClusterConfig
    words: tuple[str, ...]
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        folder = Path(self.cluster.folder or ".").expanduser().absolute()
        object.__setattr__(self, "cluster", dataclasses.replace(self.cluster, folder=str(folder)))
        command = self.words[0]
        if command in TRAINING:
            mesh = self.options["mesh"]
            if mesh.coordinator or mesh.num_processes or mesh.process_id >= 0:
                raise ConfigError(
                    "mesh.coordinator, mesh.num_processes and mesh.process_id are set for each worker by the launcher; leave them out."
                )
            if self.cluster.device == "tpu" and self.cluster.num_workers > 1 and not self.cluster.topology:
                raise ConfigError(
                    "Training on several TPU hosts needs cluster.topology and cluster.accelerator_type, for example 4x4 and TPU-V6E."
                )
        elif self.cluster.topology:
            raise ConfigError(
                f"cluster.topology joins hosts to one slice, but the workers of {command} work alone; leave it out."
            )
        if self.cluster.max_failures and command not in TRAINING:
            raise ConfigError(
                f"cluster.max_failures is for training; what a lost worker of {command} did is done again by the others anyway."
            )
        engine = self.options.get("engine", "jax")
        if command == "predict" and engine != "jax":
            raise ConfigError(f"--engine {engine} computes on one machine; leave it out on a cluster.")
        if command == "prepare" and self.options["prepare"].num_workers:
            raise ConfigError(
                "prepare.num_workers counts processes of one machine; on a cluster set cluster.num_workers, and leave it out."
            )

    @property
    def command(self) -> str:
        """The command without its options."""
        return self.words[0]

    @property
    def folder(self) -> Path:
        """Where relative paths of the command start from."""
        return Path(self.cluster.folder)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the workers; JAX is kept from devices that were not asked for."""
        platforms = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}[self.cluster.device]
        return {"JAX_PLATFORMS": platforms, **self.cluster.environment}

    @property
    def joined_by_trainer(self) -> bool:
        """Whether Ray's JaxTrainer joins the processes of a run; it does so on GPUs and TPUs only."""
        return self.cluster.device != "cpu"

    def worker_words(self, number: int, coordinator: str = COORDINATOR) -> list[str]:
        """Returns the words that a worker of a training run is started with.

        Args:
          number: Number of the worker.
          coordinator: host:port of worker 0.
        """
        joined = self.cluster.num_workers == 1 or self.joined_by_trainer
        return [*self.words, *([] if joined else process_options(coordinator, self.cluster.num_workers, number))]

    def to_text(self) -> str:
        """Returns the plan as lines for a person."""
        cluster = self.cluster
        room = ", ".join(f"{name} {amount:g}" for name, amount in cluster.resources_per_worker.items())
        if cluster.topology:
            room = f"{room + ', ' if room else ''}a host of {cluster.accelerator_type} {cluster.topology}"
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(self.environment.items()))
        lines = [
            f"cluster: {_describe_address(cluster.address)}",
            f"workers: {cluster.num_workers}, each with {room}, placed by {cluster.placement}, within {cluster.timeout_seconds:g} s",
            f"folder: {self.folder}",
            f"environment: {variables}",
        ]
        return "\n".join([*lines, *(self._training_lines() if self.command in TRAINING else self._data_lines())])

    def _training_lines(self) -> list[str]:
        cluster, output = self.cluster, self.options["output"]
        again = {0: "none", -1: "without limit"}.get(cluster.max_failures, f"at most {cluster.max_failures}")
        joined = "JaxTrainer" if self.joined_by_trainer else "the options below"
        lines = [
            f"engine: Ray Train, ray.train.v2.jax.JaxTrainer, processes joined by {joined}",
            f"restarts from the newest checkpoint of {self.folder / output.folder}: {again}",
        ]
        return lines + [
            f"worker {number}: flaxbert {shlex.join(self.worker_words(number))}"
            for number in range(cluster.num_workers)
        ]

    def _data_lines(self) -> list[str]:
        if self.command == "serve":
            replicas = f"{self.cluster.num_workers} replicas behind a proxy on every node"
            return [f"engine: Ray Serve, {replicas}", f"each replica: flaxbert {shlex.join(self.words)}"]
        if self.command == "predict":
            what = f"batches of at most {self.options['batch_size']} inputs, order kept"
            return [f"engine: Ray Data, {what}", f"this process: flaxbert {shlex.join(self.words)}"]
        config, dedup = self.options["prepare"], self.options["dedup"]
        looks = "fingerprints of all documents, compared in this process; then " if dedup.exact or dedup.near else ""
        shards = (
            f"{config.num_shards} shards, {math.ceil(config.num_shards / self.cluster.num_workers)} or fewer a worker"
        )
        return [f"engine: Ray Data, {looks}{shards}", f"this process: flaxbert {shlex.join(self.words)}"]


def _describe_address(address: str) -> str:
    if address == "local":
        return "Ray on this machine, for the time of the command"
    return "the one that this machine is part of, or RAY_ADDRESS" if address == "auto" else address
