"""Requests that can not be answered, with the status that says why."""

from typing import Final

KINDS: Final[dict[str, int]] = {
    "empty": 400,
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "timeout_receiving": 408,
    "conflict": 409,
    "too_large": 413,
    "batch_too_large": 413,
    "validation": 422,
    "tokenizer": 422,
    "backend": 424,
    "overloaded": 429,
    "unimplemented": 501,
    "unhealthy": 503,
    "deadline": 504,
}
"""Status by kind of error."""

_TEI_NAMES = {
    "empty": "Empty",
    "batch_too_large": "Validation",
    "too_large": "Validation",
    "validation": "Validation",
    "tokenizer": "Tokenizer",
    "backend": "Backend",
    "overloaded": "Overloaded",
    "unhealthy": "Unhealthy",
}


class RequestError(Exception):
    """A request that gets an answer other than 200.

    Args:
      kind: A key of ``KINDS``.
      message: What is wrong and how to mend it, for the client.
      retry_after: Seconds after which it may be tried again; 0 where that would not help.
    """

    def __init__(self, kind: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """Status code of HTTP."""
        return KINDS[self.kind]

    @property
    def error_type(self) -> str:
        """Name of the kind as text-embeddings-inference has it, where it has one."""
        return _TEI_NAMES.get(self.kind, self.kind)
