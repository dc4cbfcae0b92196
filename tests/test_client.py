"""What the client does where a server is busy, starts, breaks connections or is not there."""

import contextlib
import http.server
import json
import socket
import threading
import time

import pytest

import flaxbert
from flaxbert.client import attempts
from flaxbert.errors import FlaxbertError, ServerError
from tests.helpers import run_python
from tests.serve.test_client import Awaited

MAKERS = [flaxbert.Client, Awaited]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(attempts, "_JITTER", lambda state: 0.01)


@contextlib.contextmanager
def stand_in(*actions, delay=0.0):
    """A server that does one thing after the other: a status, a status with headers, or None for a connection that breaks; then 200."""
    left, seen = list(actions), []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            seen.append((time.monotonic(), self.path))
            self.rfile.read(int(self.headers.get("content-length", 0)))
            action = left.pop(0) if left else 200
            if action is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            status, headers = action if isinstance(action, tuple) else (action, {})
            document = {"index": 0, "score": 1.0} if status == 200 else {"error": f"no {status}", "error_type": "Kind"}
            content = json.dumps([document] if status == 200 else document).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            for start in range(len(content)):
                time.sleep(delay)
                self.wfile.write(content[start : start + 1])

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            pass  # clients that go away are part of the tests

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("action", [429, 502, 503, 504, None])
def test_what_may_pass_is_tried_again(make, action):
    with stand_in(action, action) as (url, seen), make(url, retries=2) as client:
        assert client.rerank("a", ["b"]) == [{"index": 0, "score": 1.0}]
    assert len(seen) == 3


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("action", "status"), [(503, 503), (429, 429), (None, 0)])
def test_no_more_often_than_told(make, action, status):
    with stand_in(*[action] * 5) as (url, seen), make(url, retries=2) as client, pytest.raises(ServerError) as caught:
        client.rerank("a", ["b"])
    assert len(seen) == 3
    assert caught.value.status == status
    assert caught.value.error_type == ("Kind" if status else "unreachable")


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 424, 500])
def test_what_will_not_pass_is_not_tried_again(make, status):
    with (
        stand_in(status) as (url, seen),
        make(url) as client,
        pytest.raises(ServerError, match=f"no {status}") as caught,
    ):
        client.rerank("a", ["b"])
    assert len(seen) == 1
    assert (caught.value.status, caught.value.error_type) == (status, "Kind")
    assert isinstance(caught.value, FlaxbertError)


@pytest.mark.parametrize("make", MAKERS)
def test_the_server_says_when_to_come_again(make):
    with stand_in((429, {"retry-after": "1"})) as (url, seen), make(url) as client:
        client.rerank("a", ["b"])
    assert seen[1][0] - seen[0][0] >= 1.0


@pytest.mark.parametrize("make", MAKERS)
def test_nobody_waits_longer_than_told(make):
    begun = time.monotonic()
    with (
        stand_in((429, {"retry-after": "60"})) as (url, seen),
        make(url, timeout_seconds=2.0) as client,
        pytest.raises(ServerError) as caught,
    ):
        client.rerank("a", ["b"])
    assert caught.value.status == 429
    assert len(seen) == 1
    with (
        stand_in(delay=0.3) as (url, _),
        make(url, timeout_seconds=0.8) as client,
        pytest.raises(ServerError) as caught,
    ):
        client.rerank("a", ["b"])  # byte by byte
    assert (caught.value.status, caught.value.error_type) == (0, "timeout")
    assert time.monotonic() - begun < 10.0


@pytest.mark.parametrize("make", MAKERS)
def test_a_server_that_is_not_there_is_said(make):
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
    with make(url, retries=1, timeout_seconds=5.0) as client:
        assert client.health() is False
        for ask in (client.info, lambda: list(client.stream("embed", ["a"]))):
            with pytest.raises(ServerError, match="can not be reached") as caught:
                ask()
            assert caught.value.status == 0


@pytest.mark.parametrize("make", MAKERS)
def test_a_stream_whose_connection_breaks_is_said(make):
    with stand_in(None) as (url, seen), make(url) as client, pytest.raises(ServerError) as caught:
        list(client.stream("embed", ["a"]))
    assert caught.value.error_type == "unreachable"
    assert len(seen) == 1


@pytest.mark.parametrize("make", MAKERS)
def test_a_server_that_says_nothing_ends_a_stream(make):
    silent = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{silent.getsockname()[1]}"
    with silent, make(url, timeout_seconds=0.5) as client, pytest.raises(ServerError) as caught:
        list(client.stream("embed", ["a"]))
    assert caught.value.error_type == "timeout"


@pytest.mark.parametrize("make", MAKERS)
def test_health_is_asked_once(make):
    with stand_in(503, 500) as (url, seen), make(url) as client:
        assert client.health() is False
        with pytest.raises(ServerError):
            client.health()
    assert [path for _, path in seen] == ["/health"] * 2


@pytest.mark.parametrize("make", MAKERS)
def test_models_have_their_paths(make):
    with stand_in() as (url, seen), make(url, model="a/b") as client:
        client.rerank("a", ["b"])
    assert seen[0][1] == "/models/a%2Fb/rerank"


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7, 7),
        ("", 0, 0),
        ("soon", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Fri, 31 Dec 2999 23:59:59 GMT", 1e9, 1e11),
    ],
)
def test_retry_after_is_a_number_or_a_date(header, least, most):
    assert least <= attempts.refusal(429, {"retry-after": header}, b"").retry_after_seconds <= most


def test_pauses_grow_and_differ():
    from tenacity import RetryCallState, Retrying, wait_random_exponential

    jitter = wait_random_exponential(attempts.FIRST_PAUSE_SECONDS, attempts.LONGEST_PAUSE_SECONDS)
    state = RetryCallState(Retrying(), None, (), {})
    longest = []
    for number in range(1, 10):
        state.attempt_number = number
        pauses = [jitter(state) for _ in range(200)]
        assert len(set(pauses)) > 100
        longest.append(max(pauses))
    assert longest[0] < 0.2 < longest[4] < longest[8] <= attempts.LONGEST_PAUSE_SECONDS


def test_the_client_brings_no_heavy_library():
    heavy = (
        "jax",
        "flax",
        "optax",
        "orbax",
        "grain",
        "datasets",
        "transformers",
        "sklearn",
        "matplotlib",
        "torch",
        "fastapi",
    )
    program = (
        f"import sys, flaxbert; flaxbert.Client; print(*[name for name in {heavy!r} if name in sys.modules], 'done')"
    )
    assert run_python(["-c", program]).stdout.split() == ["done"]
