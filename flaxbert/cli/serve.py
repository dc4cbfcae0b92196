"""``flaxbert serve``: answers requests over HTTP, and over gRPC where asked to."""

import dataclasses
import importlib.util
import socket
import sys
from typing import Literal

from flaxbert.config import AccessConfig, BatchingConfig, LimitsConfig, PrecisionName, RolloutConfig
from flaxbert.errors import DependencyError


def run(
    models: tuple[str, ...],
    host: str = "127.0.0.1",
    port: int = 8080,
    grpc_port: int = 0,
    engine: Literal["jax", "onnxruntime", "openvino", "auto"] = "jax",
    precision: PrecisionName = "float32",
    sparse: bool = False,
    limits: LimitsConfig = LimitsConfig(),
    batching: BatchingConfig = BatchingConfig(),
    access: AccessConfig = AccessConfig(),
    rollout: RolloutConfig = RolloutConfig(),
    log_format: Literal["auto", "text", "json"] = "auto",
    log_requests: bool = True,
) -> int:
    """Serves models.

    Args:
      models: Folders, hub ids or ``registry:NAME@ALIAS``; ``NAME=SOURCE`` says what clients call one.
      host: Where to listen; the default is for this machine alone, 0.0.0.0 for all.
      port: Port to listen on; 0 lets the system choose.
      grpc_port: Port for the Open Inference Protocol over gRPC, which needs the extra grpc; 0: not served.
      engine: What runs the models; auto measures those that are installed and takes the fastest.
      precision: Type that matrix products are computed in.
      sparse: Whether masked language models give weights of words for search instead of filling masks.
      limits: What is admitted.
      batching: How requests are computed together.
      access: Who may call.
      rollout: How new versions come into use.
      log_format: How log lines look; auto writes text to a terminal and JSON elsewhere.
      log_requests: Whether there is a log line for every request.

    Returns:
      The exit code: 0 after SIGTERM or SIGINT.

    Raises:
      DependencyError: The packages of the extra are missing.
    """
    _require_packages(_PACKAGES, "serve")
    if grpc_port:
        _require_packages(_GRPC_PACKAGES, "grpc")
    from flaxbert.serve.supervisor import Supervisor, open_socket, reserve_port

    sock = open_socket(host, port)
    reserved = reserve_port(host, grpc_port) if grpc_port else None
    options = {"engine": engine, "precision": precision, "sparse": sparse}
    document = {
        "models": list(models),
        "engine": {**options, "batching": dataclasses.asdict(batching)},
        "limits": dataclasses.asdict(limits),
        "access": dataclasses.asdict(access),
        "rollout": dataclasses.asdict(rollout),
        "grpc_address": None if reserved is None else reserved.getsockname()[:2],
        "log_format": log_format,
        "log_requests": log_requests,
    }
    _announce(http=sock, grpc=reserved)
    return Supervisor(document, sock).run()


def _announce(**sockets: socket.socket | None) -> None:
    for scheme, sock in sockets.items():
        if sock is not None:
            name, number = sock.getsockname()[:2]
            print(f"flaxbert listens on {scheme}://{name}:{number}", file=sys.stderr, flush=True)


_PACKAGES = ("fastapi", "uvicorn", "httptools", "uvloop", "orjson", "prometheus_client")
_GRPC_PACKAGES = ("grpc", "google.protobuf")


def _require_packages(names: tuple[str, ...], extra: str) -> None:
    missing = [name for name in names if not _is_there(name)]
    if missing:
        raise DependencyError(
            f"flaxbert serve needs {', '.join(missing)}; install them with pip install 'flaxbert[{extra}]'."
        )


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False
