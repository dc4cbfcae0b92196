"""Log lines of the server: for people on a terminal, as JSON elsewhere."""

import dataclasses
import datetime
import logging
import sys
import time
from typing import Any, Literal

import orjson

_REQUESTS = logging.getLogger("flaxbert.serve.access")

LogFormat = Literal["auto", "text", "json"]


class JsonFormatter(logging.Formatter):
    """One object a line, with the fields of a request where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line.

        Args:
          record: What is logged.
        """
        entry = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


class TextFormatter(logging.Formatter):
    """A short line with what matters of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line.

        Args:
          record: What is logged.
        """
        fields = getattr(record, "fields", None)
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.getMessage()}"
        if fields:
            line += f" {1000 * fields['seconds']:.1f} ms {fields['model']} {fields['request_id']}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


@dataclasses.dataclass(frozen=True)
class Handled:
    """A request that has its answer.

    Attributes:
      method: Its method; GRPC for those that came that way.
      path: Its path.
      status: How it ended, in the words of its protocol.
      request_id: Its id.
    """

    method: str
    path: str
    status: int | str
    request_id: str


def log_request(handled: Handled, timing: Any, level: int = logging.INFO) -> None:
    """Writes the line of a request.

    Args:
      handled: The request.
      timing: A ``service.Timing``.
      level: Level of the line.
    """
    fields = {
        **dataclasses.asdict(handled),
        "seconds": round(time.monotonic() - timing.started, 6),
        "model": timing.model,
        "version": timing.version,
        "tokens": timing.num_tokens,
        "queue_seconds": round(timing.queue, 6),
    }
    _REQUESTS.log(level, "%s %s %s", handled.method, handled.path, handled.status, extra={"fields": fields})


def configure_logs(log_format: LogFormat, requests: bool) -> None:
    """Sends the log of the server to standard error.

    Args:
      log_format: How lines look; auto takes text on a terminal.
      requests: Whether there is a line for every request.
    """
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    for name in ("flaxbert.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    logging.getLogger("flaxbert.serve.access").setLevel(logging.INFO if requests else logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
