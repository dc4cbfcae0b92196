"""Training over Ray Train: every worker runs the same command and is one process of the run.

``JaxTrainer`` starts the workers, watches them, and starts all again where one fails. It joins their processes
(``jax.distributed``) on GPUs and TPUs; its backend does nothing on CPUs, so that there worker 0 tells the others an address, and
the command joins them as it does without Ray.
"""

import dataclasses
import logging
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flaxbert.cluster.connection import connect, enter_folder
from flaxbert.cluster.plan import LaunchPlan
from flaxbert.errors import FlaxbertError, MeshError, TrainingError

STATE_FOLDER = "ray"
"""Folder inside the run's where Ray Train keeps its own notes."""

Execute = Callable[[Sequence[str]], int]


@dataclasses.dataclass(frozen=True)
class WorkerJob:
    """What every worker of a run is told.

    Attributes:
      plan: The launch.
      execute: Runs the words of a command and lets its errors rise.
    """

    plan: LaunchPlan
    execute: Execute


def run_training(plan: LaunchPlan, execute: Execute, say: Callable[[str], None] = print) -> int:
    """Runs a training command in many processes, and again from its newest checkpoint where a worker fails.

    Args:
      plan: What is launched.
      execute: Runs the words of a command in a worker and lets its errors rise; must be importable there.
      say: Where lines for the user go.

    Returns:
      The exit code of the command.

    Raises:
      ClusterError: The cluster can not be reached or has no room.
      TrainingError: A worker failed more often than ``cluster.max_failures``; names the worker and its error.
    """
    with connect(plan) as ray:
        say(
            f"Training in {plan.cluster.num_workers} workers on {len(ray.nodes())} nodes: flaxbert {shlex.join(plan.words)}"
        )
        try:
            result = _trainer(plan, execute).fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingError(explain_failure(error, plan.cluster.num_workers)) from error
    return int(result.return_value or 0)


def _trainer(plan: LaunchPlan, execute: Execute) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.jax import JaxTrainer

    config = plan.cluster
    return JaxTrainer(
        run_worker,
        train_loop_config={"job": WorkerJob(plan, execute)},
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.device == "gpu",
            use_tpu=config.device == "tpu",
            topology=config.topology or None,
            accelerator_type=config.accelerator_type or None,
            resources_per_worker=config.resources_per_worker or None,
            placement_strategy=config.placement.upper(),
        ),
        run_config=RunConfig(
            name=STATE_FOLDER,
            storage_path=str(plan.folder / plan.options["output"].folder),
            failure_config=FailureConfig(max_failures=config.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[_tell_failures(config.num_workers, config.max_failures)],
        ),
    )


def _tell_failures(num_workers: int, max_failures: int) -> Any:
    """Returns what tells the user of every failure when it happens, not only of the last."""
    from ray.train import UserCallback

    class TellFailures(UserCallback):
        """Prints a line for each failure."""

        count = 0

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            """Is called by Ray Train when workers have failed."""
            del run_context
            self.count += 1
            limit = "" if max_failures < 0 else f" of {max_failures}"
            going_on = max_failures < 0 or self.count <= max_failures
            what = f"starting all workers again ({self.count}{limit})" if going_on else "no restart is left"
            print(f"{describe_failures(worker_exceptions, num_workers)} -> {what}", flush=True)

    return TellFailures()


def run_worker(config: Mapping[str, Any]) -> int:
    """Is one process of a run: what Ray Train calls in every worker.

    Args:
      config: Holds the ``WorkerJob``.

    Returns:
      The exit code of the command.

    Raises:
      FlaxbertError: What the command raises.
    """
    import ray.train

    logging.getLogger().setLevel(logging.WARNING)  # Ray Train asks for more, and gets every step of every library
    job: WorkerJob = config["job"]
    plan, number = job.plan, ray.train.get_context().get_world_rank()
    enter_folder(str(plan.folder))
    code = job.execute(plan.worker_words(number, _agree_on_coordinator(plan, number)))
    _leave(plan)
    return code


def _agree_on_coordinator(plan: LaunchPlan, number: int) -> str:
    """Returns the address where the processes meet, which worker 0 chooses; empty where none is needed."""
    import ray.util
    from ray.train.collective import broadcast_from_rank_zero

    if plan.joined_by_trainer or plan.cluster.num_workers == 1:
        return ""
    host = ray.util.get_node_ip_address()
    return broadcast_from_rank_zero(f"{host}:{_free_port(host)}" if number == 0 else None) or ""


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, 0))
        return listener.getsockname()[1]


def _leave(plan: LaunchPlan) -> None:
    """Leaves the joined processes together, so that none takes the end of another for a crash."""
    import jax

    if not plan.joined_by_trainer and jax.distributed.is_initialized():
        jax.distributed.shutdown()


def explain_failure(error: Any, num_workers: int) -> str:
    """Returns what ended a run: the message of the worker that failed first hand, or of Ray's controller.

    Args:
      error: Ray Train's ``WorkerGroupError`` or ``ControllerError``.
      num_workers: Processes of the run.
    """
    failures = getattr(error, "worker_failures", None)
    if failures:
        return describe_failures(failures, num_workers)
    return f"Ray Train ended the run: {getattr(error, 'controller_failure', error)}"


def describe_failures(failures: Mapping[int, Exception], num_workers: int) -> str:
    """Returns one line on workers that failed. Errors that flaxbert raises on purpose come first: when one worker ends, the others
    lose their connection to it, and say only that.

    Args:
      failures: Errors by number of the worker.
      num_workers: Processes of the run.
    """

    def rank(number: int) -> tuple[int, int]:
        error = failures[number]
        meant = isinstance(error, FlaxbertError) and not isinstance(error, MeshError)
        died = type(error).__name__ in ("WorkerHealthCheckFailedError", "ActorDiedError", "RayActorError")
        return (0 if meant else 1 if died else 2, number)

    first = min(failures, key=rank)
    error = failures[first]
    message = str(error).strip() if isinstance(error, FlaxbertError) else f"{type(error).__name__}: {_last_line(error)}"
    others = len(failures) - 1
    also = f" ({others} other{'s' if others > 1 else ''} failed with it)" if others else ""
    return f"Worker {first} of {num_workers} failed: {message}{also}"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
