"""Spans of requests: what they say, whose trace they continue, and that what makes them is not loaded without being asked for."""

import asyncio
import http.server
import sys
import threading
import time

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from flaxbert.cli import serve as command
from flaxbert.errors import ConfigError, DependencyError
from flaxbert.serve.app import make_app
from flaxbert.serve.loading import parse_specs
from flaxbert.serve.service import Timing
from flaxbert.serve.tracing import Traced, Tracing, open_tracing
from tests.helpers import run_python
from tests.serve.conftest import BASE
from tests.serve.running import SMALL, running
from tests.weights.tiny import write_tiny

TEXT = "a fine film ."
PARTS = ("tokenization", "queue", "inference")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("traced") / "film", config=BASE)
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = make_app(parse_specs((str(folder),)), engine=SMALL, tracing=Tracing(provider))
    with running(app) as url:
        yield url, exporter


def spans_of(traced, path="/predict", body=None, **headers):
    """Sends a request and returns its answer, the span of the request, and those of its parts by name."""
    url, exporter = traced
    exporter.clear()
    answer = httpx2.post(f"{url}{path}", json={"inputs": TEXT} if body is None else body, headers=headers, timeout=60)
    deadline = time.monotonic() + 10
    while not (found := exporter.get_finished_spans()) or found[-1].kind != SpanKind.SERVER:
        assert time.monotonic() < deadline, "there is no span"
        time.sleep(0.01)
    return answer, found[-1], {span.name: span for span in found[:-1]}


def test_a_span_says_what_was_asked_of_which_version(traced):
    answer, span, _ = spans_of(traced, **{"x-request-id": "mine-1"})
    assert answer.status_code == 200
    assert span.name == "POST /predict"
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "url.path": "/predict",
        "flaxbert.request_id": "mine-1",
        "flaxbert.model": "film",
        "flaxbert.version": "1",
        "flaxbert.inputs": 1,
        "flaxbert.tokens": 6,
    }
    assert span.parent is None


def test_parts_lie_inside_their_request_one_after_the_other(traced):
    _, span, parts = spans_of(traced)
    assert tuple(parts) == PARTS
    for part in parts.values():
        assert part.parent.span_id == span.context.span_id
        assert part.context.trace_id == span.context.trace_id
        assert part.start_time <= part.end_time
    moments = [span.start_time, *(time for name in PARTS for time in (parts[name].start_time, parts[name].end_time))]
    assert moments == sorted(moments)
    assert moments[-1] <= span.end_time
    assert abs(span.end_time / 1e9 - time.time()) < 60


def test_the_trace_of_the_client_is_continued(traced):
    _, span, parts = spans_of(traced, traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="vendor=1")
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.context.trace_state.get("vendor") == "1"
    assert {f"{part.context.trace_id:032x}" for part in parts.values()} == {TRACE}


@pytest.mark.parametrize("header", ["", "00-0-0-01", f"00-{'0' * 32}-{PARENT}-01", "\xff" * 60, "ff-x"])
def test_what_is_no_trace_begins_a_new_one(traced, header):
    answer, span, _ = spans_of(traced, traceparent=header.encode("latin-1"))
    assert answer.status_code == 200
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE


def test_a_client_that_samples_nothing_gets_no_span(traced):
    url, exporter = traced
    exporter.clear()
    header = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert httpx2.post(f"{url}/predict", json={"inputs": TEXT}, headers=header).status_code == 200
    _, span, _ = spans_of(traced)
    assert f"{span.context.trace_id:032x}" != TRACE
    assert len(exporter.get_finished_spans()) == 1 + len(PARTS)


def test_refused_requests_have_spans_and_questions_of_machines_none(traced):
    url, exporter = traced
    answer, span, parts = spans_of(traced, body={"inputs": []})
    assert (answer.status_code, span.attributes["http.response.status_code"]) == (400, 400)
    assert parts == {}
    assert span.status.status_code is StatusCode.UNSET  # the client's mistake
    exporter.clear()
    for path in ("/health", "/metrics", "/drift"):
        assert httpx2.get(f"{url}{path}").status_code == 200
    assert exporter.get_finished_spans() == ()


def test_mistakes_of_the_server_are_errors():
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    Tracing(provider).record(Traced("POST", "/predict", "/predict", 504, "x", Timing(), {}))
    assert exporter.get_finished_spans()[0].status.status_code is StatusCode.ERROR


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes what an exporter sends."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(("path", "expected"), [("", "/v1/traces"), ("/", "/v1/traces"), ("/own/path", "/own/path")])
def test_spans_arrive_at_a_collector(path, expected):
    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        server.taken = []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        tracing = open_tracing(f"http://127.0.0.1:{server.server_address[1]}{path}")
        tracing.record(Traced("POST", "/predict", "/predict", 200, "x", Timing(model="film", version="3"), {}))
        asyncio.run(tracing.close())
        server.shutdown()
        thread.join()
    ((found, request),) = server.taken
    assert found == expected
    (resource,) = request.resource_spans
    names = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
    assert names["service.name"] == "flaxbert"
    (span,) = resource.scope_spans[0].spans
    assert span.name == "POST /predict"


def test_neither_sdk_nor_exporter_is_loaded_without_the_option():
    """FastAPI itself imports OpenTelemetry's API, which does nothing without the SDK."""
    program = (
        "import sys\n"
        "from flaxbert.serve.app import make_app\n"
        "from flaxbert.serve.loading import parse_specs\n"
        "import flaxbert.serve.worker, flaxbert.cli.serve\n"
        "make_app(parse_specs(('folder',)))\n"
        "heavy = ('opentelemetry.sdk', 'opentelemetry.exporter', 'opentelemetry.proto')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])\n"
    )
    result = run_python(["-c", program])
    assert result.stdout.strip() == "[]", result.stderr[-2000:]


def test_an_endpoint_that_is_no_url_and_missing_packages_are_said(monkeypatch):
    with pytest.raises(ConfigError, match="localhost:4318, but must be a URL"):
        command.run(("model",), otlp_endpoint="localhost:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(DependencyError, match=r"flaxbert\[otel\]"):
        command.run(("model",), otlp_endpoint="http://localhost:4318")
