"""Launches a training command whose worker 1 is killed once, when the run has logged a step.

Arguments: address of the cluster, number of allowed failures, file that says that the kill has happened, run's folder, step, and the
command with its options.
"""

import os
import pathlib
import sys
import threading
import time

from flaxbert.cli.main import execute, parse_command
from flaxbert.cluster.plan import LaunchPlan
from flaxbert.cluster.training import run_training
from flaxbert.config import ClusterConfig
from flaxbert.errors import FlaxbertError

MARK_VARIABLE = "CRASHING_MARK"
WATCHED_VARIABLE = "CRASHING_WATCHED"
STEP_VARIABLE = "CRASHING_STEP"


def execute_and_crash_once(arguments):
    """Runs a command as ``execute`` does; kills the process of worker 1 after a step, unless that has happened."""
    mark, metrics = pathlib.Path(os.environ[MARK_VARIABLE]), pathlib.Path(os.environ[WATCHED_VARIABLE])

    def wait_and_die():
        wanted = f'"step": {os.environ[STEP_VARIABLE]},'
        while not (metrics.is_file() and wanted in metrics.read_text("utf-8")):
            time.sleep(0.02)
        mark.touch()
        os._exit(1)

    if "--mesh.process_id=1" in arguments and not mark.exists():
        threading.Thread(target=wait_and_die, daemon=True).start()
    return execute(arguments)


def main() -> None:
    address, max_failures, mark, folder, step, *words = sys.argv[1:]
    environment = {
        MARK_VARIABLE: mark,
        WATCHED_VARIABLE: str(pathlib.Path(folder) / "metrics.jsonl"),
        STEP_VARIABLE: step,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    cluster = ClusterConfig(
        address=address, num_workers=2, max_failures=int(max_failures), environment=environment, placement="spread"
    )
    plan = LaunchPlan(cluster, tuple(words), parse_command(words[0], words[1:])[1])
    try:
        sys.exit(run_training(plan, execute_and_crash_once))
    except FlaxbertError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
