"""What stands before all routes: an id, access, a body that arrives whole and in time, clients that go away, one log line, errors in one form."""

import asyncio
import logging
import re
import uuid
from collections.abc import Mapping
from typing import Any

import orjson

from flaxbert.config import LimitsConfig
from flaxbert.serve.access import Access
from flaxbert.serve.errors import RequestError
from flaxbert.serve.logs import Handled, log_request
from flaxbert.serve.metrics import Metrics
from flaxbert.serve.service import Timing
from flaxbert.serve.tracing import Traced, Tracing

_LOG = logging.getLogger("flaxbert.serve.access")
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

_STREAM_PATH = re.compile(r"(?:/models/[^/]+)?/stream/")

QUIET_ROUTES = frozenset(
    {
        "/health",
        "/health/live",
        "/health/ready",
        "/ping",
        "/metrics",
        "/drift",
        "/page/{file}",
        "/v2/health/live",
        "/v2/health/ready",
    }
)
"""Routes that are asked again and again by machines; they have no log line."""


def is_stream(path: str) -> bool:
    """Returns whether the route of a path reads its body piece by piece, and answers while it does.

    Args:
      path: The path.
    """
    return _STREAM_PATH.match(path) is not None


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def id_of(headers: Mapping[bytes, bytes]) -> str:
    """Returns the id of a request: what its client calls it, or one that nobody has to guess.

    Args:
      headers: Its headers, in small letters.
    """
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex


def error_body(error: RequestError, path: str) -> dict[str, Any]:
    """Returns the body of an error, in the form of the interface that was called.

    Args:
      error: The error.
      path: The path.
    """
    if "/v1/" in path and path.endswith("/embeddings"):
        return {"message": error.message, "code": error.status, "type": error.error_type, "error": _openai(error)}
    return {"error": error.message, "error_type": error.error_type}


def _openai(error: RequestError) -> dict[str, Any]:
    return {"message": error.message, "type": error.error_type, "code": error.kind, "param": None}


class Gate:
    """The outermost part of the application.

    Args:
      app: What answers.
      limits: What is admitted.
      access: Who is admitted.
      metrics: What is counted.
      tracing: Where spans go; None sends none.
    """

    def __init__(
        self, app: Any, limits: LimitsConfig, access: Access, metrics: Metrics, tracing: Tracing | None = None
    ) -> None:
        self._tracing = tracing
        self._app = app
        self._limits = limits
        self._access = access
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request.

        Args:
          scope: As ASGI has it.
          receive: As ASGI has it.
          send: As ASGI has it.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        request_id = id_of(headers)
        exchange = _Exchange(scope, send, request_id)
        try:
            self._access.check(scope["path"], headers, scope["method"])
            if exchange.streams:
                await self._app(scope, receive, exchange.send)
            else:
                body = await self._read(receive, headers)
                await _until_gone(self._app, scope, body, receive, exchange.send)
        except RequestError as error:
            await exchange.fail(error)
        except ClientGoneError:
            exchange.status = 499
        except Exception:  # noqa: BLE001  whatever went wrong, the client gets an answer and the log the rest
            _LOG.exception("request %s failed", request_id)
            await exchange.fail(
                RequestError("backend", f"The server made a mistake; its log says more under {request_id}."), 500
            )
        self._note(exchange)
        if self._tracing is not None and exchange.route not in QUIET_ROUTES:
            self._tracing.record(exchange.traced(headers))

    async def _read(self, receive: Any, headers: Mapping[bytes, bytes]) -> bytes:
        limit = self._limits.payload_limit
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise RequestError("too_large", f"The body has {int(declared)} bytes, but this server takes {limit}.")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.receive_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise RequestError("too_large", f"The body has more than {limit} bytes.")
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise RequestError(
                "timeout_receiving", f"The body did not arrive within {self._limits.receive_seconds:g} seconds."
            ) from None

    def _note(self, exchange: "_Exchange") -> None:
        failure = "" if exchange.status == 200 else exchange.error_type or str(exchange.status)
        count = self._metrics.count_stream if exchange.streams else self._metrics.count_request
        count(exchange.route, exchange.timing, str(exchange.status), failure)
        log_request(
            Handled(exchange.scope["method"], exchange.scope["path"], exchange.status, exchange.request_id),
            exchange.timing,
            logging.DEBUG if exchange.route in QUIET_ROUTES else logging.INFO,
        )


class _Exchange:
    """One request and what was sent for it."""

    def __init__(self, scope: Any, send: Any, request_id: str) -> None:
        self.scope = scope
        self.request_id = request_id
        self.timing = Timing()
        self.status = 0
        self.error_type = ""
        self.streams = is_stream(scope["path"])
        self._send = send
        scope.setdefault("state", {}).update(timing=self.timing, request_id=request_id)

    @property
    def route(self) -> str:
        """Path of the route, not of the request, so that there are not as many as requests."""
        found = self.scope.get("route")
        return str(getattr(found, "path", "other"))

    def traced(self, headers: Mapping[bytes, bytes]) -> Traced:
        """Returns what a span says of the exchange."""
        return Traced(
            self.scope["method"], self.scope["path"], self.route, self.status, self.request_id, self.timing, headers
        )

    async def send(self, message: Any) -> None:
        """Sends a message, the first with the id of the request."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        await self._send(message)

    async def fail(self, error: RequestError, status: int = 0) -> None:
        """Sends an error, unless an answer has begun."""
        self.error_type = error.error_type
        if self.status:
            return
        content = orjson.dumps(error_body(error, self.scope["path"]))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        if error.retry_after:
            headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.streams or error.kind in ("too_large", "timeout_receiving"):  # the rest of the body is not read
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": status or error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content})


async def _until_gone(app: Any, scope: Any, body: bytes, receive: Any, send: Any) -> None:
    """Runs the application until it is done, or the client has gone."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.Event()

    async def replay() -> Any:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    sent_all = False

    async def note(message: Any) -> None:
        nonlocal sent_all
        sent_all |= message["type"] == "http.response.body" and not message.get("more_body")
        await send(message)

    answering = asyncio.ensure_future(app(scope, replay, note))
    watching = asyncio.ensure_future(watch())
    try:
        await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and not sent_all:  # a connection also ends when all was sent
            gone.set()
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            raise ClientGoneError
        await answering
    finally:
        watching.cancel()
        if not answering.done():
            answering.cancel()
