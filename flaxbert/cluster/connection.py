"""The way to a Ray cluster: connected for a while, with room for all workers, or an error that says what is missing."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxbert.cluster.plan import LaunchPlan
from flaxbert.config import ClusterConfig
from flaxbert.errors import ClusterError, DependencyError

_POLL_SECONDS = 0.5
_CONNECT_SECONDS = 10.0

_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to Ray's makers
    "RAY_NUM_REDIS_GET_RETRIES": "2",  # Ray's own 20 tries of 40 s each keep a user with a wrong address waiting for 13 minutes
    "RAY_TRAIN_V2_ENABLED": "1",  # JaxTrainer is part of it
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # Ray Train would move a worker to a folder of its own while the command already runs
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what a command prints stays plain lines, not records of Ray's log
}
"""Variables that Ray reads when it is imported; what the user has set stays."""


def import_ray() -> Any:
    """Returns the module ``ray`` with what of it is used.

    Raises:
      DependencyError: Ray is not installed.
    """
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
        import ray.train
        import ray.util
    except ImportError as error:
        raise DependencyError(
            f"flaxbert launch needs Ray, which the extra 'ray' installs: pip install 'flaxbert[ray]' ({error})."
        ) from error
    return ray


@contextlib.contextmanager
def connect(plan: LaunchPlan) -> Iterator[Any]:
    """Connects this process to the cluster, checks that it has room for the workers, and lets go of it at the end.

    Args:
      plan: What is launched.

    Yields:
      The module ``ray``.

    Raises:
      DependencyError: Ray is not installed.
      ClusterError: The cluster can not be reached, or has no room in time.
    """
    ray = import_ray()
    config = plan.cluster
    options: dict[str, Any] = {"runtime_env": {"env_vars": plan.environment}, "logging_level": "warning"}
    if config.address == "local":
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}  # Ray's ports ask for no password
    try:
        _require_listener(config.address)
        ray.init(address=config.address, **options)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        raise ClusterError(
            f"The Ray cluster '{config.address}' can not be reached ({_first_line(error)}). Start it with ray start --head on one "
            "node and ray start --address=HOST:6379 on the others, set cluster.address to its host:port, or to local to run on this "
            "machine alone."
        ) from error
    try:
        wait_for_room(ray, config)
        yield ray
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raises an OSError where nothing answers at an address; Ray itself would try for minutes."""
    host, separator, port = address.rpartition(":")
    if not separator:
        return
    if not port.isdigit():
        raise ValueError(f"'{port}' is no port")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS):
        pass


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def wait_for_room(ray: Any, config: ClusterConfig) -> None:
    """Waits until the cluster has room for all workers at once.

    Args:
      ray: The module.
      config: What the workers need.

    Raises:
      ClusterError: There is no room in time; says what is needed, what there is, and what of it is free.
    """
    needed = {name: amount * config.num_workers for name, amount in config.resources_per_worker.items()}
    deadline = time.monotonic() + config.timeout_seconds
    if config.topology:  # JaxTrainer reserves the whole slice itself
        while not _covers(ray.cluster_resources(), {**needed, "TPU": needed.get("TPU", 1.0)}):
            if time.monotonic() >= deadline:
                raise ClusterError(_no_room(ray, config, {**needed, "TPU": needed.get("TPU", 1.0)}))
            time.sleep(_POLL_SECONDS)
        return
    group = ray.util.placement_group(
        [dict(config.resources_per_worker) for _ in range(config.num_workers)], strategy=config.placement.upper()
    )
    try:
        if not group.wait(max(config.timeout_seconds, 0.1)):
            raise ClusterError(_no_room(ray, config, needed))
    finally:
        ray.util.remove_placement_group(group)


def _covers(there: dict[str, float], needed: dict[str, float]) -> bool:
    return all(there.get(name, 0.0) >= amount for name, amount in needed.items())


def _no_room(ray: Any, config: ClusterConfig, needed: dict[str, float]) -> str:
    there, free = ray.cluster_resources(), ray.available_resources()
    parts = [
        f"{name} {amount:g} (the cluster has {there.get(name, 0.0):g}, {free.get(name, 0.0):g} free)"
        for name, amount in needed.items()
    ]
    nodes = sum(1 for node in ray.nodes() if node.get("Alive"))
    return (
        f"The cluster has no room for {config.num_workers} workers within {config.timeout_seconds:g} s: they need {', '.join(parts)} on "
        f"{nodes} nodes, placed by {config.placement}. Lower cluster.num_workers, cluster.cpus_per_worker or "
        "cluster.devices_per_worker, add nodes, or raise cluster.timeout_seconds."
    )


def enter_folder(folder: str) -> None:
    """Makes a folder of the launching process the current one of a worker.

    Args:
      folder: The folder.

    Raises:
      ClusterError: The worker's node does not have it.
    """
    if not Path(folder).is_dir():
        raise ClusterError(
            f"The folder {folder} of the launching process is not there on node {os.uname().nodename}; launch from a folder that all "
            "nodes share, or name one in cluster.folder."
        )
    os.chdir(folder)
