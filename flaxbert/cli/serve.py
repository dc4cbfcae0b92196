"""``flaxbert serve``: answers requests over HTTP, and over gRPC where asked to."""

import dataclasses
import importlib.util
import sys
from typing import Any, Literal

from flaxbert.config import (
    AccessConfig,
    BatchingConfig,
    DriftConfig,
    LimitsConfig,
    PrecisionName,
    RolloutConfig,
    TlsConfig,
)
from flaxbert.errors import ConfigError, DependencyError


def run(
    models: tuple[str, ...],
    host: str = "127.0.0.1",
    port: int = 8080,
    grpc_port: int = 0,
    engine: Literal["auto", "jax", "onnxruntime", "openvino"] = "auto",
    precision: PrecisionName = "float32",
    sparse: bool = False,
    limits: LimitsConfig = LimitsConfig(),
    batching: BatchingConfig = BatchingConfig(),
    access: AccessConfig = AccessConfig(),
    tls: TlsConfig = TlsConfig(),
    rollout: RolloutConfig = RolloutConfig(),
    drift: DriftConfig = DriftConfig(),
    otlp_endpoint: str = "",
    log_format: Literal["auto", "text", "json"] = "auto",
    log_requests: bool = True,
) -> int:
    """Serves models.

    Args:
      models: Folders, hub ids or ``registry:NAME@ALIAS``; ``NAME=SOURCE`` says what clients call one.
      host: Where to listen; the default is for this machine alone, 0.0.0.0 for all.
      port: Port to listen on; 0 lets the system choose.
      grpc_port: Port for the Open Inference Protocol over gRPC, which needs the extra grpc; 0: not served.
      engine: What runs the models; auto measures those that are installed, takes the fastest and remembers it.
      precision: Type that matrix products are computed in.
      sparse: Whether masked language models give weights of words for search instead of filling masks.
      limits: What is admitted.
      batching: How requests are computed together.
      access: Who may call.
      tls: How connections are encrypted; they are not unless a certificate is named.
      rollout: How new versions come into use.
      drift: When inputs and answers differ too much from those of training.
      otlp_endpoint: URL of an OpenTelemetry collector that spans of requests are sent to, such as http://localhost:4318; empty sends none.
      log_format: How log lines look; auto writes text to a terminal and JSON elsewhere.
      log_requests: Whether there is a log line for every request.

    Returns:
      The exit code: 0 after SIGTERM or SIGINT.

    Raises:
      ConfigError: The collector's URL is none, or a certificate can not be used.
      DependencyError: The packages of the extra are missing.
    """
    return _serve(dict(locals()))


_SECTIONS = ("limits", "access", "tls", "rollout", "drift")


def _serve(options: dict[str, Any]) -> int:
    _require_packages(_PACKAGES, "serve")
    if options["grpc_port"]:
        _require_packages(_GRPC_PACKAGES, "grpc")
    _require_tracing(options["otlp_endpoint"])
    from flaxbert.serve.supervisor import Supervisor, open_socket, reserve_port
    from flaxbert.serve.tls import Certificates

    secure = options["tls"].enabled
    if secure:
        Certificates(options["tls"])  # what is wrong with it is said before anything starts
    host = options["host"]
    sock = open_socket(host, options["port"])
    reserved = reserve_port(host, options["grpc_port"]) if options["grpc_port"] else None
    grpc_address = None if reserved is None else reserved.getsockname()[:2]
    engine = {name: options[name] for name in ("engine", "precision", "sparse")}
    document = {
        "models": list(options["models"]),
        "engine": {**engine, "batching": dataclasses.asdict(options["batching"])},
        **{name: dataclasses.asdict(options[name]) for name in _SECTIONS},
        "grpc_address": grpc_address,
        **{name: options[name] for name in ("otlp_endpoint", "log_format", "log_requests")},
    }
    for scheme, address in (
        ("https" if secure else "http", sock.getsockname()),
        ("grpcs" if secure else "grpc", grpc_address),
    ):
        if address is not None:
            print(f"flaxbert listens on {scheme}://{address[0]}:{address[1]}", file=sys.stderr, flush=True)
    return Supervisor(document, sock).run()


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


def _require_tracing(endpoint: str) -> None:
    if not endpoint:
        return
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"--otlp_endpoint is {endpoint}, but must be a URL such as http://localhost:4318.")
    if not all(_is_there(name) for name in ("opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk")):
        raise DependencyError("--otlp_endpoint needs OpenTelemetry; install it with pip install 'flaxbert[otel]'.")
