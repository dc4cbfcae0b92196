"""Processes that wait for each other: all there, some missing, and some that do not belong."""

import concurrent.futures
import socket

import pytest

from flaxbert.core.roll_call import roll_call
from flaxbert.errors import MeshError


@pytest.fixture
def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def meet(address, calls, seconds):
    """Lets processes call at once; returns what each got: None, or its error."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        waiting = [pool.submit(roll_call, address, total, number, seconds) for number, total in calls]
    return [future.exception() for future in waiting]


def test_all_go_on_once_all_are_there_and_the_address_is_free_again(address):
    for _ in range(2):
        assert meet(address, [(number, 4) for number in (3, 0, 2, 1)], 30.0) == [None] * 4


def test_all_are_told_who_is_missing(address):
    for error in meet(address, [(0, 5), (2, 5)], 0.7):
        assert isinstance(error, MeshError)
        assert "Processes 1, 3, 4 of 5 did not join within 0.7 s (mesh.join_seconds)" in str(error)
    (error,) = meet(address, [(0, 2)], 0.2)
    assert "Process 1 of 2 did not join" in str(error)


def test_without_process_0_its_address_is_named(address):
    with pytest.raises(MeshError, match=rf"Process 0 at {address} was not reached within 0.5 s.*refused"):
        roll_call(address, 2, 1, 0.5)


def test_processes_that_do_not_belong_are_named(address):
    errors = meet(address, [(0, 3), (1, 4)], 20.0)
    assert all("Process 1 was started with mesh.num_processes 4, process 0 with 3" in str(error) for error in errors)
    errors = meet(address, [(0, 3), (1, 3), (1, 3)], 20.0)
    assert all("Two processes were started with mesh.process_id 1" in str(error) for error in errors)


def test_strangers_are_not_counted(address):
    host, port = address.split(":")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(roll_call, address, 2, 0, 20.0)
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b""):
            while True:
                try:
                    with socket.create_connection((host, int(port))) as stranger:
                        stranger.sendall(said)
                    break
                except ConnectionRefusedError:
                    continue
        roll_call(address, 2, 1, 20.0)
        assert first.result() is None


def test_a_port_that_is_taken_or_no_address_is_refused(address):
    with socket.create_server(("", int(address.split(":")[1]))), pytest.raises(MeshError, match="choose a free port"):
        roll_call(address, 2, 0, 1.0)
    for wrong in ("localhost", "host:", ":1", "host:99999", "host:x"):
        with pytest.raises(MeshError, match="must be host:port"):
            roll_call(wrong, 2, 0, 1.0)
