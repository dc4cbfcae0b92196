"""Spans of requests for OpenTelemetry, made when a request is over; its SDK is imported only where spans are asked for."""

import asyncio
import contextlib
import dataclasses
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any, Final

import flaxbert

_CLOSE_SECONDS: Final = 5.0
_EXPORT_SECONDS: Final = 3
_TRACES_PATH: Final = "/v1/traces"
_CONTEXT_HEADERS: Final = ("traceparent", "tracestate")


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """A request that is over.

    Attributes:
      method: Method of HTTP.
      path: Its path.
      route: The route that answered.
      status: Status of the answer; 499 where the client went away.
      request_id: Its id.
      timing: A ``service.Timing``.
      headers: Headers of the request, in lower case.
    """

    method: str
    path: str
    route: str
    status: int
    request_id: str
    timing: Any
    headers: Mapping[bytes, bytes]


class Tracing:
    """Makes spans.

    Args:
      provider: A ``TracerProvider`` of OpenTelemetry's SDK.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("flaxbert.serve", flaxbert.__version__)
        self._propagator = TraceContextTextMapPropagator()
        self._api, self._empty = trace, Context()

    def record(self, traced: Traced) -> None:
        """Makes the span of a request and those of its parts; a trace that the client began is continued.

        Args:
          traced: The request.
        """
        timing, ended = traced.timing, time.monotonic()
        offset = time.time() - ended
        nanoseconds = lambda moment: int((moment + offset) * 1e9)
        carrier = {
            name: traced.headers[name.encode()].decode("latin-1")
            for name in _CONTEXT_HEADERS
            if name.encode() in traced.headers
        }
        span = self._tracer.start_span(
            f"{traced.method} {traced.route}",
            context=self._propagator.extract(carrier, context=self._empty),
            kind=self._api.SpanKind.SERVER,
            start_time=nanoseconds(timing.started),
            attributes=_attributes(traced),
        )
        if traced.status >= 500:
            span.set_status(self._api.Status(self._api.StatusCode.ERROR))
        inside = self._api.set_span_in_context(span, self._empty)
        for name, begin, end in timing.phases:
            part = self._tracer.start_span(name, context=inside, start_time=nanoseconds(begin))
            part.end(nanoseconds(end))
        span.end(nanoseconds(ended))

    async def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await asyncio.to_thread(self._provider.shutdown)


def _attributes(traced: Traced) -> dict[str, Any]:
    timing = traced.timing
    found: dict[str, Any] = {
        "http.request.method": traced.method,
        "http.route": traced.route,
        "http.response.status_code": traced.status,
        "url.path": traced.path,
        "flaxbert.request_id": traced.request_id,
    }
    if timing.model:
        found |= {
            "flaxbert.model": timing.model,
            "flaxbert.version": timing.version,
            "flaxbert.inputs": timing.num_inputs,
            "flaxbert.tokens": timing.num_tokens,
        }
    return found


def open_tracing(endpoint: str) -> Tracing:
    """Returns what sends spans to a collector, in batches and from a thread of its own; what it can not send is dropped.

    Args:
      endpoint: URL of the collector; without a path that of traces is taken.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    parts = urllib.parse.urlsplit(endpoint)
    url = endpoint if parts.path.strip("/") else parts._replace(path=_TRACES_PATH).geturl()
    resource = Resource.create({"service.name": "flaxbert", "service.version": flaxbert.__version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=_EXPORT_SECONDS)))
    return Tracing(provider)
