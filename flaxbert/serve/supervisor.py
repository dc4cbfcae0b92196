"""The process that stays: holds the socket, starts the one that answers, and starts it again when it dies.

It imports neither JAX nor the web framework, so that there is little that could go wrong in it. While a new worker starts, connections
wait in the socket instead of being refused.
"""

import json
import logging
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from flaxbert.errors import ConfigError

_LOG = logging.getLogger("flaxbert.supervisor")

EXIT_NOT_STARTED = 3
"""Exit code of a worker that can not serve what it was told to; starting it again would not help."""

EXIT_UNREACHABLE = 4
"""Exit code of a worker that could not reach what it loads from; later it may."""

BACKLOG = 4096
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 30.0
_STEADY_SECONDS = 60.0
"""A worker that lived this long did not die of how it was started."""

_GRACE_SECONDS = 60.0
"""How long a worker may take to end once it was told to."""


def open_socket(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Args:
      host: Name or address of this machine.
      port: Its port; 0 lets the system choose.

    Raises:
      ConfigError: It can not be opened.
    """
    return _bind(host, port, "--port", BACKLOG)


def reserve_port(host: str, port: int) -> socket.socket:
    """Returns a socket that keeps a port for the workers, which listen on it themselves, one after the other.

    Args:
      host: Name or address of this machine.
      port: Its port.

    Raises:
      ConfigError: Another process has it.
    """
    return _bind(host, port, "--grpc_port", 0)


def _bind(host: str, port: int, option: str, backlog: int) -> socket.socket:
    """Returns a bound socket, which listens where a backlog is given."""
    sock = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        if backlog:
            sock.listen(backlog)
    except (OSError, OverflowError) as error:
        if sock is not None:
            sock.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{host}:{port} can not be listened on: {reason}. Choose another {option}.") from error
    return sock


class Supervisor:
    """One worker, kept alive.

    Args:
      document: What the worker is started with, as ``worker.run`` takes it.
      sock: A socket that listens.
    """

    def __init__(self, document: dict[str, Any], sock: socket.socket) -> None:
        self._document = document
        self._socket = sock
        self._worker: subprocess.Popen[bytes] | None = None
        self._ending = False

    def _start(self) -> subprocess.Popen[bytes]:
        number = self._socket.fileno()
        worker = subprocess.Popen(
            [sys.executable, "-m", "flaxbert.serve.worker", str(number)], stdin=subprocess.PIPE, pass_fds=(number,)
        )
        if worker.stdin is None:
            raise ConfigError("The worker has no standard input.")
        try:
            worker.stdin.write(json.dumps(self._document).encode())
            worker.stdin.close()
        except BrokenPipeError:  # it died already; its exit code says the rest
            pass
        return worker

    def _end(self, number: int, frame: Any) -> None:
        del frame
        self._ending = True
        if self._worker is not None and self._worker.poll() is None:
            self._worker.send_signal(number)

    def run(self) -> int:
        """Keeps a worker alive until SIGTERM or SIGINT.

        Returns:
          Exit code: 0 after a signal, else that of a worker that could not start.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        pause, is_first = _FIRST_PAUSE_SECONDS, True
        while True:
            begun = time.monotonic()
            self._worker = self._start()
            if self._ending:
                self._worker.send_signal(signal.SIGTERM)
            code = self._wait(self._worker)
            if self._ending:
                return 0 if code in (0, -signal.SIGTERM, -signal.SIGINT) else 1
            if code == EXIT_NOT_STARTED or (code == EXIT_UNREACHABLE and is_first):  # who starts a server wants to know
                return 1
            is_first = False
            if time.monotonic() - begun > _STEADY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            print(f"flaxbert: the worker ended with code {code}; starting another in {pause:g} s", file=sys.stderr)
            self._sleep(pause)
            if self._ending:
                return 0
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._ending and time.monotonic() < end:
            time.sleep(0.05)

    def _wait(self, worker: subprocess.Popen[bytes]) -> int:
        told_at = 0.0
        while True:
            try:
                return worker.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                if self._ending and not told_at:
                    told_at = time.monotonic()
                if told_at and time.monotonic() - told_at > _GRACE_SECONDS:
                    worker.kill()
