"""When a request is tried again, and what an answer that is none becomes."""

import datetime
import email.utils
import json
from collections.abc import Mapping
from typing import Any

import httpx2
import tenacity

from flaxbert.errors import ServerError

WORTH_ANOTHER_TRY = frozenset({429, 502, 503, 504})
"""Statuses of servers that may answer later."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 20.0
"""The pause before a further try is a random part of the first one, doubled with every try, up to the longest; a server's Retry-After makes it longer."""

_BROKEN = (
    httpx2.NetworkError,
    httpx2.RemoteProtocolError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    ConnectionError,
)


class _RefusedError(ServerError):
    """A ``ServerError`` that knows when the server wants to be asked again."""

    retry_after_seconds: float = 0.0


def refusal(status: int, headers: Mapping[str, str], content: bytes) -> ServerError:
    """Returns the error that an answer stands for.

    Args:
      status: Its status.
      headers: Its headers, in small letters.
      content: Its body.
    """
    message, error_type = content.decode("utf-8", "replace")[:1000].strip() or f"HTTP status {status}", ""
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if isinstance(document, dict) and isinstance(document.get("error"), str):
        message, error_type = document["error"], str(document.get("error_type", ""))
    error = _RefusedError(message, status, error_type)
    error.retry_after_seconds = _seconds(headers.get("retry-after", ""))
    return error


def _seconds(retry_after: str) -> float:
    """Returns the seconds of a ``Retry-After``, which is a number or a date."""
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        when = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    now = datetime.datetime.now(datetime.UTC)
    return max(0.0, (when.replace(tzinfo=when.tzinfo or datetime.UTC) - now).total_seconds())


def unreachable(error: Exception) -> ServerError:
    """Returns what callers see of a connection that failed.

    Args:
      error: What the connection raised.
    """
    slow = isinstance(error, httpx2.TimeoutException | TimeoutError)
    kind = "timeout" if slow else "unreachable"
    text = "The server did not answer in time" if slow else "The server can not be reached"
    return ServerError(f"{text}: {str(error) or type(error).__name__}", 0, kind)


def read_json(status: int, headers: Mapping[str, str], content: bytes) -> Any:
    """Returns the JSON of an answer, None where it is empty.

    Args:
      status: Its status.
      headers: Its headers, in small letters.
      content: Its body.

    Raises:
      ServerError: It is an error, or no JSON.
    """
    if status != 200:
        raise refusal(status, headers, content)
    try:
        return json.loads(content) if content else None
    except ValueError as error:
        raise ServerError(f"The answer is no JSON: {error}.", status, "answer") from error


def policy(retries: int, timeout_seconds: float) -> dict[str, Any]:
    """Returns arguments of ``tenacity.Retrying`` and ``AsyncRetrying``.

    Args:
      retries: Most further tries.
      timeout_seconds: Time that all tries and pauses may take together.
    """
    return {
        "stop": tenacity.stop_any(
            tenacity.stop_after_attempt(retries + 1), tenacity.stop_before_delay(timeout_seconds)
        ),
        "wait": _pause,
        "retry": tenacity.retry_if_exception(_may_pass),
        "reraise": True,
    }


_JITTER = tenacity.wait_random_exponential(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    told = error.retry_after_seconds if isinstance(error, _RefusedError) else 0.0
    return max(told, _JITTER(state))


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, ServerError):
        return error.status in WORTH_ANOTHER_TRY
    return isinstance(error, _BROKEN)
