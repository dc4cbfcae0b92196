"""Waits until all processes of a run are there, and says which are not.

JAX's own start ends a process that waited too long with an abort from C++, which no Python code can catch and which buries the name
of the missing process. So the processes first meet here, at the address that JAX will use afterwards.
"""

import contextlib
import socket
import time
from collections.abc import Sequence

from flaxbert.errors import MeshError

_GREETING, _GO, _MISSING, _REFUSED = "flaxbert", "go", "missing", "refused"
_MOST_BYTES = 4096
_PAUSE_SECONDS = 0.2
_GRACE_SECONDS = 5.0
"""How much longer than process 0 the others wait, so that they hear what it says."""

_HOW = "See whether it was started, with the same mesh.coordinator and mesh.num_processes, and reaches that address."


def _read_line(connection: socket.socket) -> str:
    """Returns what comes up to the end of a line; less where the other side closes or sends something else."""
    received = b""
    while not received.endswith(b"\n") and len(received) < _MOST_BYTES:
        part = connection.recv(256)
        if not part:
            break
        received += part
    return received.decode("ascii", errors="replace").strip()


def _missing_message(missing: Sequence[str], num_processes: int, timeout_seconds: float) -> str:
    numbers = f"Process {missing[0]}" if len(missing) == 1 else f"Processes {', '.join(missing)}"
    return f"{numbers} of {num_processes} did not join within {timeout_seconds:g} s (mesh.join_seconds). {_HOW}"


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _call(port: int, num_processes: int, timeout_seconds: float) -> None:
    """What process 0 does: takes in the others, then tells all of them how it went."""
    end = time.monotonic() + timeout_seconds
    try:
        server = _listen(port)
    except OSError as error:
        raise MeshError(
            f"Process 0 can not listen at port {port} of mesh.coordinator ({error.strerror}); choose a free port."
        ) from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        present: dict[int, socket.socket] = {}
        while len(present) < num_processes - 1 and (left := end - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection, _ = server.accept()
                stack.enter_context(connection)
                connection.settimeout(_GRACE_SECONDS)
                words = _read_line(connection).split()
            except OSError:  # nobody came in time, or somebody who said nothing
                continue
            if len(words) != 3 or words[0] != _GREETING or not words[1].isdigit():
                continue
            problem = _problem(words, num_processes, present)
            if problem:
                _tell([*present.values(), connection], f"{_REFUSED} {problem}")
                raise MeshError(problem)
            present[int(words[1])] = connection
        missing = [str(number) for number in range(1, num_processes) if number not in present]
        _tell(list(present.values()), f"{_MISSING} {','.join(missing)}" if missing else _GO)
        if missing:
            raise MeshError(_missing_message(missing, num_processes, timeout_seconds))


def _problem(words: Sequence[str], num_processes: int, present: dict[int, socket.socket]) -> str:
    number, total = words[1], words[2]
    if total != str(num_processes):
        return f"Process {number} was started with mesh.num_processes {total}, process 0 with {num_processes}."
    if int(number) in present:
        return f"Two processes were started with mesh.process_id {number}; each needs a number of its own."
    return ""


def _tell(connections: Sequence[socket.socket], line: str) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):  # one that is gone will be missed by all soon enough
            connection.sendall(f"{line}\n".encode())
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)  # the other side closes first, so that this port is free at once


def _answer(host: str, port: int, num_processes: int, process_id: int, timeout_seconds: float) -> None:
    """What the other processes do: say who they are until process 0 hears it, and listen to what it says."""
    end, problem = time.monotonic() + timeout_seconds, "it does not answer"
    while (left := end - time.monotonic()) > 0:
        line = ""
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(f"{_GREETING} {process_id} {num_processes}\n".encode())
                connection.settimeout(left + _GRACE_SECONDS)
                line = _read_line(connection)
        except OSError as error:
            problem = error.strerror or str(error)
        kind, _, rest = line.partition(" ")
        if kind == _GO:
            return
        if kind == _MISSING:
            raise MeshError(_missing_message(rest.split(","), num_processes, timeout_seconds))
        if kind == _REFUSED:
            raise MeshError(rest)
        time.sleep(_PAUSE_SECONDS)  # not there yet, or the end of an earlier run
    raise MeshError(
        f"Process 0 at {host}:{port} was not reached within {timeout_seconds:g} s (mesh.join_seconds): {problem}. {_HOW}"
    )


def roll_call(address: str, num_processes: int, process_id: int, timeout_seconds: float) -> None:
    """Returns once all processes of a run are there.

    Args:
      address: ``host:port`` of process 0, at which nothing listens yet.
      num_processes: Number of processes.
      process_id: Number of this one, from 0.
      timeout_seconds: Longest time to wait.

    Raises:
      MeshError: Processes are missing, were given the same number or another number of processes, or the address is unusable.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise MeshError(f"mesh.coordinator is '{address}', but must be host:port, for example 10.0.0.1:1234.")
    if process_id == 0:
        _call(int(port), num_processes, timeout_seconds)
    else:
        _answer(host.strip("[]"), int(port), num_processes, process_id, timeout_seconds)
