"""``flaxbert launch``: runs another command on a cluster."""

import os
from typing import Any, Literal

from flaxbert.config import ClusterConfig


def run(
    command: tuple[str, ...] = (),
    engine: Literal["ray"] = "ray",
    cluster: ClusterConfig = ClusterConfig(),
    dry_run: bool = False,
) -> int:
    """Runs prepare, predict, serve, pretrain or finetune on a cluster; the command and its options follow after ``--``.

    Args:
      command: The command and its options, after ``--``.
      engine: What starts the workers: ray.
      cluster: What of the cluster is taken.
      dry_run: Only say which workers would run what; contacts no cluster and needs no Ray.

    Returns:
      The exit code.
    """
    from flaxbert.cli.main import parse_command
    from flaxbert.cluster.plan import LaunchPlan, find_command

    del engine
    name = find_command(command)
    _, options = parse_command(name, command[1:])
    plan = LaunchPlan(cluster, tuple(command), options)
    if dry_run:
        print(plan.to_text())
        print("Nothing was started (dry run).")
        return 0
    return _launch(plan)


def _launch(plan: Any) -> int:
    # This process computes nothing: it must not take the devices of the workers that run beside it.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.chdir(plan.folder)
    if plan.command == "prepare":
        from flaxbert.cluster.corpus import prepare_on_cluster

        prepare_on_cluster(plan)
        return 0
    if plan.command == "predict":
        from flaxbert.cli.predict import predict
        from flaxbert.cluster.connection import connect
        from flaxbert.cluster.prediction import load_on_cluster

        with connect(plan):
            return predict(load_on_cluster(plan), plan.options)
    if plan.command == "serve":
        from flaxbert.cluster.serving import serve_on_cluster

        return serve_on_cluster(plan)
    from flaxbert.cli.main import execute
    from flaxbert.cluster.training import run_training

    return run_training(plan, execute)
