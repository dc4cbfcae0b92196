"""Streams: many bodies in one request, answered in order, with little of them in memory."""

import contextlib
import http.client
import json
import socket
import threading
import time

import httpx2
import numpy as np
import pytest

from flaxbert.config import LimitsConfig
from flaxbert.serve.app import make_app
from flaxbert.serve.loading import parse_specs
from tests.serve.conftest import BASE
from tests.serve.running import SMALL, running
from tests.serve.test_routes import TEXTS, TOLERANCE, close, post, read_metrics
from tests.weights.tiny import write_tiny

WINDOW = 16
"""Four batches of four rows, the largest of ``SMALL``."""

LIMITS = LimitsConfig(max_concurrent_requests=8, max_client_batch_size=32, payload_limit=20_000, receive_seconds=0.5)


def talk(url, path, chunks):
    """Sends chunks from a thread and yields the answers while it sends."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", path)
    connection.putheader("content-type", "application/x-ndjson")
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()

    def send():
        with contextlib.suppress(OSError):  # the server may end the stream first
            for chunk in chunks:
                connection.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            connection.send(b"0\r\n\r\n")

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    response = connection.getresponse()
    assert response.status == 200, response.read()
    assert response.headers["content-type"] == "application/x-ndjson"
    for line in response:
        yield json.loads(line)
    sender.join()
    connection.close()


def lines_of(bodies):
    return (json.dumps(body).encode() + b"\n" for body in bodies)


def ask(url, path, bodies):
    answers = list(talk(url, path, lines_of(bodies)))
    assert [answer["index"] for answer in answers] == list(range(len(answers)))
    return answers


def results(url, path, bodies):
    return [answer["result"] for answer in ask(url, path, bodies)]


@pytest.fixture
def counted(serving, monkeypatch):
    """Counts the requests that are under way at the same time."""
    places, most = serving.app.state.api.service.places, []
    monkeypatch.setattr(places, "_changed", most.append)
    return most


def test_lines_get_what_the_model_says(serving):
    vectors = results(serving.url, "/stream/embed", TEXTS)
    close(np.concatenate(vectors), serving.models["vectors"].encode(TEXTS))
    named = results(serving.url, "/models/vectors/stream/embed", [{"inputs": TEXTS, "normalize": False}])
    close(named[0], serving.models["vectors"].encode(TEXTS, normalize=False))
    labels = results(serving.url, "/stream/predict", TEXTS)
    assert [row[0]["label"] for row in labels] == [p.label for p in serving.models["film"].predict(TEXTS)]


def assert_alike(found, expected):
    """Compares answers whose numbers may be rounded otherwise."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_alike(*pair)
    else:
        assert found == pytest.approx(expected, abs=TOLERANCE)


BODIES = {
    "embed": {"inputs": TEXTS, "dimensions": 5},
    "embed_all": {"inputs": TEXTS},
    "similarity": {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}},
    "predict": {"inputs": [[text] for text in TEXTS], "raw_scores": True},
    "rerank": {"query": "fine film", "texts": TEXTS, "return_text": True},
    "ner": {"inputs": TEXTS},
    "qa": {"inputs": {"question": "was it bad", "context": "the film was fine . a bad film ."}},
    "fill-mask": {"inputs": "a [MASK] film", "parameters": {"top_k": 2}},
    "zero-shot": {"inputs": TEXTS[0], "parameters": {"candidate_labels": ["fine", "bad"]}},
}


@pytest.mark.parametrize("name", BODIES)
def test_every_stream_answers_as_the_route_of_its_name(serving, name):
    expected = post(serving, f"/{name}", BODIES[name])
    for found in results(serving.url, f"/stream/{name}", [BODIES[name]] * 2):
        assert_alike(found, expected)


def test_a_stream_that_no_model_serves_says_so_in_every_line(serving):
    (answer,) = ask(serving.url, "/stream/embed_sparse", ["a film"])
    assert answer["status"] == 424


def test_bad_lines_fail_alone(serving):
    content = [b'"a"\n{"inputs"', b": 3}\n", b"{\n\n", b'"\\ud800"\n', b'{"inputs": ""}\r\n[]\n', b'{"inputs": "bad"}']
    answers = list(talk(serving.url, "/stream/embed", content))
    assert [answer.get("status") for answer in answers] == [None, 422, 400, 400, 400, 422, 422, None]
    assert [answer["index"] for answer in answers] == list(range(8))
    assert answers[1]["error_type"] == "Validation"
    assert "inputs" in answers[1]["error"]
    close(answers[7]["result"], serving.models["vectors"].encode(["bad"]))


def test_what_can_not_be_streamed_is_refused_before_the_body(serving):
    for path, words in (
        ("/stream/embedd", "'embed'"),
        ("/models/film/stream/tokenize", "stream"),
        ("/models/fil/stream/predict", "film"),
    ):
        answer = httpx2.post(f"{serving.url}{path}", content=b'"a"\n')
        assert answer.status_code == 404
        assert words in answer.json()["error"]
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("num_lines", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_lines_keep_their_order_and_a_window_alone_is_under_way(serving, counted, num_lines):
    texts = [f"{'bad ' * (n % 7)}film{' fine' * (n % 3)}" for n in range(num_lines)]
    before = read_metrics(serving)["te_request_count"]
    found = results(serving.url, "/stream/predict", texts)
    assert read_metrics(serving)["te_request_count"] - before == num_lines
    distinct = list(dict.fromkeys(texts))
    expected = dict(zip(distinct, serving.models["film"].predict(distinct), strict=True))
    assert [row[0]["label"] for row in found] == [expected[text].label for text in texts]
    close([row[0]["score"] for row in found], [expected[text].score for text in texts])
    assert 4 < max(counted) <= WINDOW
    assert counted[-1] == 0


def test_lines_of_many_inputs_take_more_of_the_window(serving, counted):
    bodies = [{"inputs": TEXTS * 2}] * 40  # six inputs each
    assert len(results(serving.url, "/stream/embed", bodies)) == 40
    assert max(counted) <= WINDOW // 6


def address_of(url):
    return "127.0.0.1", int(url.rsplit(":", 1)[1])


HEAD = b"POST /stream/%b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(content):
    return b"%x\r\n%b\r\n" % (len(content), content)


def push(raw, content, service, under_way):
    """Sends the same content again and again until the server takes none while so many requests are under way; returns how much was sent."""
    raw.settimeout(1.0)
    for count in range(5000):
        view = memoryview(content)
        while view:
            try:
                view = view[raw.send(view) :]
            except TimeoutError:
                if service.num_requests == under_way:
                    return count, bytes(view)
    raise AssertionError("the server takes whatever comes")


def finish(raw, rest):
    """Sends the rest of a body and returns the whole answer."""
    raw.settimeout(120)
    sender = threading.Thread(target=lambda: raw.sendall(rest + b"0\r\n\r\n"))
    sender.start()
    parts = []
    while not (parts and parts[-1].endswith(b"0\r\n\r\n")):
        parts.append(raw.recv(1_000_000))
        assert parts[-1]
    sender.join()
    return b"".join(parts)


def test_a_client_that_does_not_read_is_not_read_either(serving, counted):
    service = serving.app.state.api.service
    body = json.dumps({"inputs": ["film " * 28] * 32}).encode()  # its answer has more than 100 kB
    line = chunked(body + b" " * 500_000 + b"\n")
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.connect(address_of(serving.url))
        raw.sendall(HEAD % b"embed_all")
        num_sent, rest = push(raw, line, service, 0)  # what was begun is done, and waits to be read
        done = counted.count(0)
        time.sleep(1.0)
        assert counted.count(0) == done < num_sent
        assert finish(raw, rest).count(b'{"index":') == num_sent + 1


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    app = make_app(
        parse_specs((str(write_tiny(tmp_path_factory.mktemp("streams") / "film", config=BASE)),)),
        engine=SMALL,
        limits=LIMITS,
    )
    with running(app) as url:
        yield url, app


@pytest.fixture
def held(limited, monkeypatch):
    """The server with an engine that waits until it is let go, and the rows that it computed."""
    url, app = limited
    engine = next(iter(app.state.api.fleet.slots.values())).versions["champion"].engine
    let_go, start, rows = threading.Event(), engine.start, []

    def wait(function, batch):
        let_go.wait(20.0)
        rows.append(len(batch["input_ids"]))
        return start(function, batch)

    monkeypatch.setattr(engine, "start", wait)
    yield url, app.state.api.service, let_go, rows
    let_go.set()
    until(lambda: app.state.api.service.num_requests == 0)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_socket_is_not_read_while_the_window_is_full(held):
    url, service, let_go, _ = held
    line = chunked(b'{"inputs": "film"' + b" " * 19_000 + b"}\n")
    with socket.create_connection(address_of(url)) as raw:
        raw.sendall(HEAD % b"predict")
        num_sent, rest = push(raw, line, service, LIMITS.max_concurrent_requests // 2)
        let_go.set()
        assert finish(raw, rest).count(b'"result"') == num_sent + 1


def test_bulk_work_leaves_places_to_other_requests(held):
    url, service, let_go, _ = held
    answers = []
    streaming = threading.Thread(target=lambda: answers.extend(ask(url, "/stream/predict", ["bad"] * 60)))
    streaming.start()
    until(lambda: service.num_requests == LIMITS.max_concurrent_requests // 2)
    asking = threading.Thread(
        target=lambda: answers.append(httpx2.post(f"{url}/predict", json={"inputs": "film"}, timeout=30).status_code)
    )
    asking.start()
    until(lambda: service.num_requests == LIMITS.max_concurrent_requests // 2 + 1)
    let_go.set()
    streaming.join()
    asking.join()
    assert answers.count(200) == 1
    assert sum("result" in answer for answer in answers if answer != 200) == 60  # none was refused


def test_work_of_a_client_that_goes_away_is_cancelled(held):
    url, service, let_go, rows = held
    with socket.create_connection(address_of(url)) as raw:
        raw.sendall(HEAD % b"predict" + chunked(b'"film"\n' * 60))
        until(lambda: service.num_requests == LIMITS.max_concurrent_requests // 2)
    until(lambda: service.num_requests == 0)
    let_go.set()
    assert ask(url, "/stream/predict", ["bad"])[0]["result"]
    assert sum(rows) <= 2 + 2 * 4  # what was already started, and the new line


def test_a_line_that_is_too_long_is_skipped_to_its_end(limited):
    url, _ = limited
    answers = list(talk(url, "/stream/predict", [b'"bad"\n"', *[b"x" * 10_000] * 50, b'"\n', b'"film"\n']))
    assert [answer.get("status") for answer in answers] == [None, 413, None]
    assert "20000 bytes" in answers[1]["error"]
    exact = b'"bad"' + b" " * 19_995
    assert [answer.get("status") for answer in talk(url, "/stream/predict", [exact + b"\n" + exact + b" "])] == [
        None,
        413,
    ]


def test_a_stream_that_stalls_ends_with_an_error_line(limited):
    url, _ = limited
    for rest, num_answers in ((b'"bad"\n', 1), (b"", 0), (b'"bad"\n"fil', 1)):
        with socket.create_connection(address_of(url)) as raw:
            raw.settimeout(10)
            raw.sendall(HEAD % b"predict" + (chunked(rest) if rest else b""))
            begun = time.monotonic()
            response = raw.makefile("rb").read()  # to the end of the connection
            assert LIMITS.receive_seconds * 0.8 < time.monotonic() - begun < 8
        lines = [json.loads(line) for line in response.split(b"\r\n") if line.startswith(b"{")]
        assert [line.get("status") for line in lines] == [None] * num_answers + [408]
        assert lines[-1]["index"] == num_answers
        assert lines[-1]["end"] is True


def test_a_stream_does_not_stall_while_lines_are_under_way(held):
    url, _, let_go, _ = held

    def slowly():
        yield b'"bad"\n'
        time.sleep(3 * LIMITS.receive_seconds)
        let_go.set()
        yield b'"film"\n'

    assert [answer.get("status") for answer in talk(url, "/stream/predict", slowly())] == [None, None]


def test_a_server_that_ends_takes_no_more_lines(limited, monkeypatch):
    url, app = limited

    def chunks():
        yield b'"bad"\n'
        until(lambda: answers)
        monkeypatch.setattr(app.state.api.status, "draining", True)
        yield b'"film"\n"film"\n'

    answers = []
    for answer in talk(url, "/stream/predict", chunks()):
        answers.append(answer)
    assert [(answer["index"], answer.get("status"), answer.get("end")) for answer in answers] == [
        (0, None, None),
        (1, 503, True),
    ]


def test_a_mistake_of_the_server_is_that_of_one_line(serving, monkeypatch):
    api = serving.app.state.api
    run = api.service.run

    async def break_once(served, operation, timing, *arguments, **options):
        if operation.keywords["texts"] == ["bad"]:
            raise ZeroDivisionError
        return await run(served, operation, timing, *arguments, **options)

    monkeypatch.setattr(api.service, "run", break_once)
    answers = ask(serving.url, "/stream/predict", ["film", "bad", "fine"])
    assert [answer.get("status") for answer in answers] == [None, 500, None]
