"""Too many requests, too large ones, too slow ones, clients that go away, inputs that break the model, and keys."""

import concurrent.futures
import itertools
import socket
import time

import httpx2
import numpy as np
import pytest

from flaxbert.config import AccessConfig, LimitsConfig
from flaxbert.serve.app import make_app
from flaxbert.serve.loading import parse_specs
from flaxbert.serve.worker import PatientProtocol
from tests.serve.conftest import BASE
from tests.serve.running import SMALL, held_back, running
from tests.weights.tiny import write_tiny

TEXT = "a fine film ."
LIMITS = LimitsConfig(
    max_concurrent_requests=2, max_client_batch_size=4, payload_limit=2000, deadline_seconds=5.0, receive_seconds=0.5
)


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("limited") / "film", config=BASE)
    app = make_app(parse_specs((str(folder),)), engine=SMALL, limits=LIMITS)
    PatientProtocol.receive_seconds = LIMITS.receive_seconds
    try:
        with running(app) as url:
            yield url, app
    finally:
        PatientProtocol.receive_seconds = 10.0


def engine_of(app):
    return next(iter(app.state.api.fleet.slots.values())).versions["champion"].engine


@pytest.fixture
def slow(limited, monkeypatch):
    """The server with an engine that waits until it is let go."""
    url, app = limited
    with held_back(engine_of(app), 12.0, monkeypatch) as let_go:
        yield url, let_go
    deadline = time.monotonic() + 10
    while app.state.api.service.num_requests and time.monotonic() < deadline:
        time.sleep(0.01)


def ask(url, text=TEXT, **options):
    return httpx2.post(f"{url}/predict", json={"inputs": text}, timeout=30, **options)


def test_more_requests_than_it_takes_are_told_when_to_come_again(slow):
    url, let_go = slow
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, url) for _ in range(8)]
        refused = list(itertools.islice(concurrent.futures.as_completed(asking, timeout=30), 6))
        let_go.set()
        assert {task.result().status_code for task in refused} == {429}
        answers = [task.result() for task in asking]
    codes = [answer.status_code for answer in answers]
    assert codes.count(200) == 2
    assert codes.count(429) == 6
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error_type"] == "Overloaded"
    assert ask(url).status_code == 200


def test_what_takes_too_long_is_given_up(slow):
    url, _ = slow
    begun = time.monotonic()
    answer = ask(url)
    assert answer.status_code == 504
    assert time.monotonic() - begun < 9.0
    assert "5 second" in answer.json()["error"]


def test_clients_that_went_away_hold_no_place(slow):
    url, let_go = slow
    for _ in range(4):
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/predict", json={"inputs": TEXT}, timeout=0.1)
    let_go.set()
    assert ask(url).status_code == 200


def test_a_poisoned_row_fails_alone(limited, monkeypatch):
    url, app = limited
    engine = engine_of(app)
    start = engine.start
    poison = 7  # the token of "film"

    def break_on(function, batch):
        if (np.asarray(batch["input_ids"]) == poison).any():
            raise RuntimeError("no memory")
        return start(function, batch)

    monkeypatch.setattr(engine, "start", break_on)
    texts = ["bad", "the film", "fine", "was bad"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda text: ask(url, text), texts * 3))
        while any(answer.status_code == 429 for answer in answers):
            answers = [a if a.status_code != 429 else ask(url, t) for a, t in zip(answers, texts * 3, strict=True)]
    assert [answer.status_code for answer in answers] == [200, 424, 200, 200] * 3
    assert "memory" not in answers[1].text  # what went wrong inside is for the log
    mixed = httpx2.post(f"{url}/predict", json={"inputs": [[text] for text in texts]})
    assert mixed.status_code == 424


def test_answers_that_are_not_finite_are_none(limited, monkeypatch):
    url, app = limited
    engine = engine_of(app)
    finish = engine.finish
    monkeypatch.setattr(engine, "finish", lambda started: finish(started) * np.nan)
    answer = ask(url)
    assert answer.status_code == 424
    assert "not finite" in answer.json()["error"]


def test_large_bodies_are_refused_before_they_are_read(limited):
    url, _ = limited
    answer = httpx2.post(f"{url}/predict", content=b"x" * 3000)
    assert answer.status_code == 413
    chunked = httpx2.post(f"{url}/predict", content=iter([b"x" * 1500, b"x" * 1500]))
    assert chunked.status_code == 413
    assert httpx2.post(f"{url}/predict", json={"inputs": [["a"]] * 5}).status_code == 413
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as raw:
        raw.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        raw.settimeout(5)
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_slow_bodies_and_heads_are_given_up(limited):
    url, _ = limited
    address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
    with socket.create_connection(address) as raw:
        raw.settimeout(5)
        raw.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        assert raw.recv(100).startswith(b"HTTP/1.1 408")
    for head in (b"", b"POST /predict HTTP/1.1\r\nhost"):
        with socket.create_connection(address) as raw:
            raw.settimeout(5)
            raw.sendall(head)
            assert raw.recv(100) == b""  # the connection is closed


def test_a_half_closed_socket_gets_its_answer_or_an_end(limited):
    url, _ = limited
    body = b'{"inputs": "a fine film ."}'
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as raw:
        raw.settimeout(10)
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        raw.sendall(head.encode() + body)
        raw.shutdown(socket.SHUT_WR)
        raw.recv(1000)
    assert ask(url).status_code == 200


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    keys = folder / "keys"
    keys.write_text("first-key\nsecond-key\n")
    keys.chmod(0o600)
    model = write_tiny(folder / "film", config=BASE)
    access = AccessConfig(api_keys_file=str(keys), cors_allow_origin=("https://page.example",))
    app = make_app(parse_specs((str(model),)), engine=SMALL, access=access)
    with running(app) as url:
        yield url, keys


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def test_every_route_but_one_asks_for_a_key(guarded):
    url, _ = guarded
    paths = httpx2.get(f"{url}/openapi.json", headers=bearer("first-key")).json()["paths"]
    assert len(paths) > 30
    for path, methods in paths.items():
        for method in methods:
            answer = httpx2.request(method, f"{url}{path.replace('{model}', 'film')}", json={})
            assert answer.status_code == (
                200 if path == "/health/live" else 403 if path.startswith("/admin") else 401
            ), path
    assert httpx2.get(f"{url}/docs").status_code == 401
    assert httpx2.get(f"{url}/nowhere").status_code == 401
    for key in ("first-key", "second-key"):
        assert ask(url, headers=bearer(key)).status_code == 200
    for key in ("-", "first-key2", "first", "FIRST-KEY", "é"):
        assert httpx2.get(f"{url}/info", headers={"authorization": f"Bearer {key}".encode()}).status_code == 401


def test_keys_can_be_changed_while_it_runs(guarded):
    url, keys = guarded
    keys.write_text("first-key\nsecond-key\nthird-key\n")
    deadline = time.monotonic() + 10
    while ask(url, headers=bearer("third-key")).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert ask(url, headers=bearer("first-key")).status_code == 200


def test_other_origins_are_let_in_where_they_are_named(guarded, limited):
    url, _ = guarded
    ask_first = {"origin": "https://page.example", "access-control-request-method": "POST"}
    assert httpx2.options(f"{url}/predict", headers=ask_first).headers["access-control-allow-origin"]
    other = httpx2.options(f"{url}/predict", headers={**ask_first, "origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    plain = httpx2.options(f"{limited[0]}/predict", headers=ask_first)
    assert "access-control-allow-origin" not in plain.headers
