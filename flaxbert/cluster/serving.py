"""Serving over Ray Serve: replicas of the application on many nodes, behind Ray's proxies."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from flaxbert.cluster.connection import connect, enter_folder, import_ray
from flaxbert.cluster.plan import LaunchPlan
from flaxbert.errors import DependencyError

APPLICATION = "flaxbert"
_POLL_SECONDS = 0.5


def import_ray_serve() -> Any:
    """Returns the module ``ray.serve``.

    Raises:
      DependencyError: It is not installed.
    """
    import_ray()
    try:
        import ray.serve
    except ImportError as error:
        raise DependencyError(
            f"flaxbert launch -- serve needs Ray Serve: pip install 'flaxbert[ray,serve]' ({error})."
        ) from error
    return ray.serve


def make_application(options: Mapping[str, Any], folder: str) -> Any:
    """Returns the application, inside of a replica.

    Args:
      options: What ``flaxbert serve`` was told.
      folder: Where relative paths start from.
    """
    from flaxbert.core.runtime import configure

    enter_folder(folder)
    configure(use_compilation_cache=False)
    from flaxbert.serve.app import make_app
    from flaxbert.serve.loading import EngineOptions, parse_specs
    from flaxbert.serve.logs import configure_logs

    configure_logs(options["log_format"], options["log_requests"])
    words = {name: options[name] for name in ("engine", "precision", "sparse", "batching")}
    sections = {name: options[name] for name in ("limits", "access", "rollout", "drift")}
    return make_app(parse_specs(tuple(options["models"])), engine=EngineOptions(**words), **sections)


def deployment_of(plan: LaunchPlan) -> Any:
    """Returns the deployment of Ray Serve that a plan describes.

    Args:
      plan: What is launched.
    """
    serve = import_ray_serve()
    resources = dict(plan.cluster.resources_per_worker)
    actor = {"num_cpus": resources.pop("CPU", 1.0), "num_gpus": resources.pop("GPU", 0.0), "resources": resources}
    limits = plan.options["limits"]
    options, folder = dict(plan.options), str(plan.folder)
    replica = serve.ingress(lambda: make_application(options, folder))()
    deployment = serve.deployment(
        name=APPLICATION,
        num_replicas=plan.cluster.num_workers,
        ray_actor_options=actor,
        max_ongoing_requests=limits.max_concurrent_requests,
        graceful_shutdown_timeout_s=plan.options["rollout"].drain_seconds + limits.deadline_seconds,
    )
    return deployment(replica).bind()


@contextlib.contextmanager
def deployed(plan: LaunchPlan) -> Iterator[str]:
    """Deploys the application and takes it away at the end.

    Args:
      plan: What is launched.

    Yields:
      The URL of the proxy on this node.

    Raises:
      DependencyError: Ray or Ray Serve is not installed.
      ClusterError: The cluster can not be reached, or has no room in time.
    """
    with connect(plan):
        serve = import_ray_serve()
        host, port = plan.options["host"], plan.options["port"]
        serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
        try:
            serve.run(deployment_of(plan), name=APPLICATION, route_prefix="/")
            yield f"http://{host}:{port}"
        finally:
            serve.shutdown()


def serve_on_cluster(plan: LaunchPlan) -> int:
    """Serves until SIGTERM or SIGINT.

    Args:
      plan: What is launched.

    Returns:
      The exit code.
    """
    ended = threading.Event()
    with deployed(plan) as url:
        for number in (signal.SIGTERM, signal.SIGINT):  # after Ray, which sets handlers of its own when it connects
            signal.signal(number, lambda *_: ended.set())
        print(f"flaxbert listens on {url} of every node, {plan.cluster.num_workers} replicas", flush=True)
        while not ended.wait(_POLL_SECONDS):
            pass
    return 0
