"""The process that answers: takes a socket that the supervisor opened, and everything else as JSON on standard input."""

import asyncio
import contextlib
import functools
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flaxbert.config import AccessConfig, BatchingConfig, DriftConfig, LimitsConfig, RolloutConfig, TlsConfig
from flaxbert.core.runtime import configure
from flaxbert.errors import FlaxbertError, RegistryError
from flaxbert.serve.app import make_app
from flaxbert.serve.loading import EngineOptions, parse_specs
from flaxbert.serve.logs import configure_logs
from flaxbert.serve.supervisor import EXIT_NOT_STARTED, EXIT_UNREACHABLE
from flaxbert.serve.tls import Certificates
from flaxbert.serve.tracing import open_tracing

_LOG = logging.getLogger("flaxbert.serve")

_GOODBYE_SECONDS = 1.0


class PatientProtocol(HttpToolsProtocol):
    """HTTP on one connection, closed where the head of a request takes longer to arrive than it may."""

    receive_seconds = 10.0
    _timer: Any = None

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self.receive_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
            self._part_soon()

    def _part_soon(self) -> None:
        """Does not wait for the goodbye of an encrypted connection on which nothing is under way; the loop would for 30 seconds."""
        if self.transport.get_extra_info("sslcontext") is not None:
            self.loop.call_later(_GOODBYE_SECONDS, self.transport.abort)

    def shutdown(self) -> None:
        """Ends the connection, or has it end after the answer that is under way."""
        super().shutdown()
        if self.transport.is_closing():
            self._part_soon()

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for the first request.

        Args:
          transport: The connection.
        """
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more.

        Args:
          exc: Why it was lost, or None.
        """
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Waits for the head of the request that begins."""
        super().on_message_begin()
        self._wait_for_head()

    def on_headers_complete(self) -> None:
        """Has the head; what answers the request may call ``end_connection`` of its state, so that nothing follows the answer."""
        self._stop_waiting()
        super().on_headers_complete()
        state: dict[str, Any] = self.scope["state"]  # type: ignore[typeddict-item]
        state["end_connection"] = functools.partial(setattr, self.cycle, "keep_alive", False)


class DrainingServer(uvicorn.Server):
    """A server that, told to end, first says that it is not ready and goes on for a while.

    Args:
      config: As for ``uvicorn.Server``.
      drain_seconds: That while.
    """

    def __init__(self, config: uvicorn.Config, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._draining = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drains on SIGTERM and SIGINT, and ends the process with code 0 afterwards.

        Yields:
          Nothing.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain, loop)
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends gRPC at the same time as HTTP, so that both have the same time for what is under way.

        Args:
          sockets: As for ``uvicorn.Server``.
        """
        rpc = self.config.app.state.rpc  # type: ignore[union-attr]
        stopping = None if rpc is None else asyncio.ensure_future(rpc.stop())
        await super().shutdown(sockets)
        if stopping is not None:
            await stopping

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._draining:  # told twice: at once
            self.should_exit = True
            return
        self._draining = True
        self.config.app.state.api.status.draining = True  # type: ignore[union-attr]
        loop.call_later(self._drain_seconds, setattr, self, "should_exit", True)


def _settings(document: dict[str, Any]) -> dict[str, Any]:
    sections = {"limits": LimitsConfig, "access": AccessConfig, "rollout": RolloutConfig, "drift": DriftConfig}
    made: dict[str, Any] = {name: build(**document[name]) for name, build in sections.items()}
    tls = TlsConfig(**document["tls"])
    made["certificates"] = Certificates(tls) if tls.enabled else None
    made["engine"] = EngineOptions(
        **{**document["engine"], "batching": BatchingConfig(**document["engine"]["batching"])}
    )
    return made


def encryption(certificates: Certificates | None) -> dict[str, Any]:
    """Returns the arguments of ``uvicorn.Config`` for encrypted connections.

    Args:
      certificates: The server's; None for connections that are not encrypted.
    """
    return {} if certificates is None else {"ssl_context_factory": lambda config, default: certificates.context}


def _fail(error: FlaxbertError) -> int:
    """Tells an error in one line and returns the exit code that says whether another start could help."""
    print(f"flaxbert: error: {error}", file=sys.stderr)
    return EXIT_UNREACHABLE if isinstance(error, RegistryError) else EXIT_NOT_STARTED


async def _serve(server: DrainingServer, sock: socket.socket) -> int:
    """Serves until told to end, or until the models turn out to be none."""
    serving = asyncio.ensure_future(server.serve([sock]))
    while not hasattr(server.config.app.state, "loading") and not serving.done():  # type: ignore[union-attr]
        await asyncio.sleep(0.01)
    loading = getattr(server.config.app.state, "loading", None)  # type: ignore[union-attr]
    if loading is not None:
        await asyncio.wait({loading, serving}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and not loading.cancelled() and loading.exception() is not None:
            error = loading.exception()
            server.should_exit = True
            await serving
            if isinstance(error, FlaxbertError):
                return _fail(error)
            raise error
    await serving
    return 0


def run(document: dict[str, Any], sock: socket.socket) -> int:
    """Serves on a socket.

    Args:
      document: From ``to_document``.
      sock: A socket that listens.

    Returns:
      The exit code.
    """
    configure(
        use_compilation_cache=False
    )  # programs are kept by the engine, which neither traces nor compiles them again
    configure_logs(document["log_format"], document["log_requests"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if hard != resource.RLIM_INFINITY else (soft, hard))
    settings = _settings(document)
    limits: LimitsConfig = settings["limits"]
    address = document["grpc_address"]
    if address is not None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is said in one line, here
    tracing = open_tracing(document["otlp_endpoint"]) if document["otlp_endpoint"] else None
    grpc_address = None if address is None else tuple(address)
    app = make_app(parse_specs(tuple(document["models"])), **settings, grpc_address=grpc_address, tracing=tracing)
    PatientProtocol.receive_seconds = limits.receive_seconds
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        loop="uvloop",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=limits.max_connections,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(limits.deadline_seconds) + 1,
        lifespan="on",
        **encryption(settings["certificates"]),
    )
    server = DrainingServer(config, settings["rollout"].drain_seconds)
    try:
        return config.get_loop_factory()().run_until_complete(_serve(server, sock))  # type: ignore[misc]
    except FlaxbertError as error:
        return _fail(error)


def main() -> int:
    """Runs the worker that a supervisor started.

    Returns:
      The exit code.
    """
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        code = run(json.load(sys.stdin), sock)
    except FlaxbertError as error:
        code = _fail(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # JAX's threads need not be waited for


if __name__ == "__main__":
    sys.exit(main())
