"""Options of ``flaxbert serve``: where it listens, what it admits, how it batches, and who may do what."""

import dataclasses

from flaxbert.errors import ConfigError


def _positive(section: str, options: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(options, name)
        if value <= 0:
            raise ConfigError(f"{section}.{name} is {value}, but must be above 0.")


@dataclasses.dataclass(frozen=True)
class LimitsConfig:
    """What a server admits; everything above is refused at once, with a status that says why.

    Attributes:
      max_concurrent_requests: Requests that may wait or be computed; more get status 429 and the seconds after which to try again.
      max_client_batch_size: Texts, pairs or candidates of one request; more get status 413.
      payload_limit: Bytes of a request's body; more get status 413.
      max_connections: Connections that may be open; more get status 503.
      deadline_seconds: Time that a request may take from its last byte on; then it gets status 504.
      receive_seconds: Time that the head of a request, and again its body, may take to arrive; then the connection is closed, or the request gets status 408.
      auto_truncate: Whether texts with more tokens than the model takes are cut instead of refused with status 422.
    """

    max_concurrent_requests: int = 512
    max_client_batch_size: int = 32
    payload_limit: int = 2_000_000
    max_connections: int = 8192
    deadline_seconds: float = 30.0
    receive_seconds: float = 10.0
    auto_truncate: bool = False

    def __post_init__(self) -> None:
        _positive(
            "limits",
            self,
            (
                "max_concurrent_requests",
                "max_client_batch_size",
                "payload_limit",
                "max_connections",
                "deadline_seconds",
                "receive_seconds",
            ),
        )


@dataclasses.dataclass(frozen=True)
class BatchingConfig:
    """How texts of different requests are computed together.

    Attributes:
      max_batch_tokens: Most tokens of a batch, padding included, where it has more than one row; 0: 256 on CPU, 16384 elsewhere.
      max_batch_requests: Most rows of a batch; 0: 16 on CPU, 64 elsewhere.
      max_length: Most tokens of a text; 0: as many as the model takes.
      tokenization_workers: Threads that tokenize; 0: one for every two cores.
      patience_seconds: How much later than a small one of the same moment a large request may be computed.
    """

    max_batch_tokens: int = 0
    max_batch_requests: int = 0
    max_length: int = 0
    tokenization_workers: int = 0
    patience_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name in (
            "max_batch_tokens",
            "max_batch_requests",
            "max_length",
            "tokenization_workers",
            "patience_seconds",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"batching.{name} is {getattr(self, name)}, but must not be negative.")


@dataclasses.dataclass(frozen=True)
class AccessConfig:
    """Who may call a server.

    Attributes:
      api_keys_file: File with one key a line; every route but ``/health/live`` then asks for one of them as a bearer token. Changes are seen.
      admin_keys_file: File with the keys of those who may promote and roll back; without it nobody may.
      cors_allow_origin: Origins whose pages may call the server from a browser; none by default.
    """

    api_keys_file: str = ""
    admin_keys_file: str = ""
    cors_allow_origin: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TlsConfig:
    """How connections are encrypted, those of gRPC too.

    Attributes:
      certificate_file: The server's certificate with those between it and its authority, as PEM; empty: connections are not encrypted. Changes are seen.
      key_file: Its private key as PEM, without a password; empty: it is in ``certificate_file``. Changes are seen.
      client_ca_file: Authorities, as PEM, one of which must have signed the certificate that a client shows; empty: clients need none.
    """

    certificate_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""

    def __post_init__(self) -> None:
        for name in ("key_file", "client_ca_file"):
            if getattr(self, name) and not self.certificate_file:
                raise ConfigError(f"tls.{name} needs a certificate of the server: tls.certificate_file.")

    @property
    def enabled(self) -> bool:
        """Whether connections are encrypted."""
        return bool(self.certificate_file)


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How new versions of a served alias come into use.

    Attributes:
      poll_seconds: How often the registry is asked whether an alias moved; 0: never.
      canary_alias: Alias of the version that answers a share of the requests.
      canary_percent: That share, in per cent; 0: none.
      shadow_alias: Alias of the version that computes the same requests without answering them; empty: none.
      drain_seconds: How long a server that was told to end still takes requests after ``/health`` says that it is not ready.
      memory_limit_mb: Memory of the models together; a version that does not fit beside the old one is refused. 0: four fifths of the machine's.
    """

    poll_seconds: float = 5.0
    canary_alias: str = "canary"
    canary_percent: float = 0.0
    shadow_alias: str = ""
    drain_seconds: float = 1.0
    memory_limit_mb: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.canary_percent <= 100.0:
            raise ConfigError(f"rollout.canary_percent is {self.canary_percent}, but must lie in 0 to 100.")
        for name in ("poll_seconds", "drain_seconds", "memory_limit_mb"):
            if getattr(self, name) < 0:
                raise ConfigError(f"rollout.{name} is {getattr(self, name)}, but must not be negative.")


@dataclasses.dataclass(frozen=True)
class DriftConfig:
    """When what comes in and goes out differs too much from what a version was trained on.

    Attributes:
      enabled: Whether it is watched.
      window_examples: Last examples of a version that are compared.
      window_minutes: How old they may be.
      min_examples: Fewer examples never alert.
      reference_examples: First examples of a version that stand for what its training data does not say; at most ``window_examples``.
      lengths: Alert over this population stability index of the lengths in tokens.
      labels: The same of the labels.
      scripts: The same of the scripts that texts are written in.
      unknown_tokens: Alert where the share of unknown tokens is higher by more than this.
      confidence: Alert where the mean score of the best label differs by more than this.
      max_per_second: Requests a second that are looked at; of more a random part.
      check_seconds: How often all versions are judged, for the log; ``/drift`` and ``/metrics`` judge when they are asked.
    """

    enabled: bool = True
    window_examples: int = 5000
    window_minutes: float = 60.0
    min_examples: int = 200
    reference_examples: int = 1000
    lengths: float = 0.2
    labels: float = 0.2
    scripts: float = 0.2
    unknown_tokens: float = 0.02
    confidence: float = 0.1
    max_per_second: int = 2000
    check_seconds: float = 10.0

    def __post_init__(self) -> None:
        names = tuple(field.name for field in dataclasses.fields(self) if field.name != "enabled")
        _positive("drift", self, names)
        for name in ("min_examples", "reference_examples"):
            if getattr(self, name) > self.window_examples:
                raise ConfigError(
                    f"drift.{name} is {getattr(self, name)}, but the window holds drift.window_examples = {self.window_examples}."
                )

    def threshold(self, what: str) -> float:
        """Returns the threshold of a measure.

        Args:
          what: Its name: lengths, labels, scripts, unknown_tokens or confidence.
        """
        return float(getattr(self, what))
