"""What the server counts, under the names of text-embeddings-inference where it has one, for Prometheus."""

import time
from typing import Any

from flaxbert.serve.batching import Batch

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16_384)


class _PlainCounter:
    """A counter that is exposed under exactly its name; clients of Prometheus would add ``_total``."""

    def __init__(self, name: str, text: str, registry: Any, label: str = "") -> None:
        from prometheus_client.core import Metric

        self._metric, self._name, self._text, self._label = Metric, name, text, label
        self._values: dict[str, float] = {} if label else {"": 0.0}
        registry.register(self)

    def inc(self, amount: float = 1.0, label: str = "") -> None:
        """Counts.

        Args:
          amount: How much.
          label: Value of the label, where there is one.
        """
        self._values[label] = self._values.get(label, 0.0) + amount

    def collect(self) -> Any:
        """Yields the counter as Prometheus reads it."""
        metric = self._metric(self._name, self._text, "unknown")
        for label, value in sorted(self._values.items()):
            metric.add_sample(self._name, {self._label: label} if self._label else {}, value)
        yield metric


class Metrics:
    """All metrics of a server."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = _PlainCounter("te_request_count", "Requests", self.registry)
        self.successes = _PlainCounter("te_request_success", "Requests that were answered", self.registry)
        self.failures = _PlainCounter(
            "te_request_failure", "Requests that were refused or failed", self.registry, "err"
        )
        self.duration = Histogram("te_request_duration", "Seconds of a request", buckets=_SECONDS, registry=registry)
        self.tokenization = Histogram(
            "te_request_tokenization_duration", "Seconds of tokenization", buckets=_SECONDS, registry=registry
        )
        self.queue = Histogram("te_request_queue_duration", "Seconds in the queue", buckets=_SECONDS, registry=registry)
        self.inference = Histogram(
            "te_request_inference_duration", "Seconds of the batches of a request", buckets=_SECONDS, registry=registry
        )
        self.input_length = Histogram(
            "te_request_input_length", "Tokens of a request", buckets=_SIZES, registry=registry
        )
        self.queue_size = Gauge("te_queue_size", "Requests that wait or are computed", registry=registry)
        self.queue_limit = Gauge("flaxbert_queue_limit", "Requests that may wait or be computed", registry=registry)
        self.ready = Gauge("flaxbert_ready", "1 where the server takes requests", registry=registry)
        self.memory_limit = Gauge(
            "flaxbert_memory_limit_bytes", "Memory that the process may use on its host", registry=registry
        )
        ProcessCollector(registry=registry)
        self.batch_size = Histogram("te_batch_next_size", "Rows of a batch", buckets=_SIZES, registry=registry)
        self.batch_tokens = Histogram("te_batch_next_tokens", "Tokens of a batch", buckets=_SIZES, registry=registry)
        self.padding = Counter("flaxbert_batch_padding_tokens", "Tokens that only filled batches", registry=registry)
        self.compilations = Gauge(
            "flaxbert_compilations", "Programs compiled since the server was ready", registry=registry
        )
        self.routes = Counter(
            "flaxbert_requests",
            "Requests by route, model, version and status",
            ("route", "model", "version", "status"),
            registry=registry,
        )
        self.version = Gauge("flaxbert_model_version", "Version that is served", ("model", "role"), registry=registry)
        self.swaps = Counter(
            "flaxbert_model_swaps", "Versions that came into use, or could not", ("model", "outcome"), registry=registry
        )
        self.shadow = Counter(
            "flaxbert_shadow",
            "Answers of the shadow beside those given",
            ("model", "version", "outcome"),
            registry=registry,
        )

    def observe_batch(self, batch: Batch, seconds: float) -> None:
        """Counts a batch.

        Args:
          batch: The batch.
          seconds: How long it took.
        """
        del seconds
        tokens = sum(row.length for row in batch.rows)
        self.batch_size.observe(len(batch.members))
        self.batch_tokens.observe(tokens)
        self.padding.inc(batch.num_rows * batch.length - tokens)

    def observe_request(self, timing: Any, seconds: float) -> None:
        """Counts a request that was computed.

        Args:
          timing: A ``service.Timing``.
          seconds: From its first byte to its answer.
        """
        self.duration.observe(seconds)
        if timing.num_inputs:
            self.tokenization.observe(timing.tokenization)
            self.queue.observe(timing.queue)
            self.inference.observe(timing.inference)
            self.input_length.observe(timing.num_tokens)

    def count_request(self, route: str, timing: Any, status: str, failure: str = "") -> None:
        """Counts a request that has its answer.

        Args:
          route: Where it went.
          timing: A ``service.Timing``.
          status: How it ended, in the words of its protocol.
          failure: Kind of error; empty where it was answered.
        """
        self.count_stream(route, timing, status, failure)
        if timing.model:
            self.count_line(timing, failure)

    def count_stream(self, route: str, timing: Any, status: str, failure: str = "") -> None:
        """Counts a request whose lines were counted one by one.

        Args:
          route: Where it went.
          timing: A ``service.Timing``.
          status: How it ended, in the words of its protocol.
          failure: As for ``count_request``; its lines have told theirs.
        """
        del failure
        self.routes.labels(route, timing.model, timing.version, status).inc()

    def count_line(self, timing: Any, failure: str = "") -> None:
        """Counts what a model was asked for: a request, or a line of one.

        Args:
          timing: A ``service.Timing``.
          failure: Kind of error; empty where it was answered.
        """
        self.requests.inc()
        self.observe_request(timing, time.monotonic() - timing.started)
        if failure:
            self.failures.inc(label=failure)
        else:
            self.successes.inc()

    def expose(self) -> bytes:
        """Returns all metrics in the text format of Prometheus."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
