"""Bodies of many lines: read as they come, a bounded part of them under way at once, answered line by line in their order."""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from flaxbert.config import LimitsConfig
from flaxbert.serve.api import json_bytes
from flaxbert.serve.errors import RequestError
from flaxbert.serve.middleware import ClientGoneError

READ_AHEAD_BYTES = 65536
"""Bytes of whole lines that are held before they are begun; reading stops above. So much is read to see whether the client is still there."""

_LOG = logging.getLogger("flaxbert.serve")

Work = Callable[[], Awaitable[Any]]
"""Computes the result of a line."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a body.

    Attributes:
      content: Its bytes, without the end of the line.
      too_long: Whether it has more bytes than a line may have; they were not kept.
    """

    content: bytes
    too_long: bool = False


class LineReader:
    """Cuts a body into lines while it arrives.

    Args:
      receive: Gives the messages of the body, as ASGI has it.
      max_bytes: Most bytes of a line.
    """

    def __init__(self, receive: Callable[[], Awaitable[Any]], max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._lines: collections.deque[Line] = collections.deque()
        self._num_bytes = 0
        self._partial = bytearray()
        self._too_long = False
        self._dropping = False
        self._ended = False
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        """Reads to the end of the body, no further ahead than it may, and then waits until the client goes.

        Raises:
          ClientGoneError: It went.
        """
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            async with self._changed:
                self._feed(message.get("body", b""), not message.get("more_body"))
                self._changed.notify_all()
                await self._changed.wait_for(lambda: self._num_bytes < READ_AHEAD_BYTES)

    async def next_line(self) -> Line | None:
        """Returns the next line, or None after the last one. A call that is cancelled takes none."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._lines or self._ended)
            if not self._lines:
                return None
            line = self._lines.popleft()
            self._num_bytes -= len(line.content) + 1
            self._changed.notify_all()
            return line

    async def discard(self, seconds: float) -> None:
        """Forgets what is not read yet and drops what comes, until the body ends or some time is over.

        Args:
          seconds: That time.
        """
        self._dropping, self._num_bytes = True, 0
        self._lines.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                self._changed.notify_all()
                await self._changed.wait_for(lambda: self._ended)

    def _feed(self, data: bytes, last: bool) -> None:
        if self._dropping:
            self._ended |= last
            return
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._grow(part)
            self._end_line()
        self._grow(rest)
        if last and not self._ended:
            self._ended = True
            if self._partial or self._too_long:
                self._end_line()

    def _grow(self, part: bytes) -> None:
        self._too_long |= len(self._partial) + len(part) > self._max_bytes
        if self._too_long:
            self._partial.clear()
        else:
            self._partial += part

    def _end_line(self) -> None:
        self._lines.append(Line(bytes(self._partial), self._too_long))
        self._num_bytes += len(self._partial) + 1
        self._partial.clear()
        self._too_long = False


class Window:
    """How much is under way at once.

    Args:
      size: The most.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self.empty_since = time.monotonic()
        self._released = asyncio.Event()

    async def take(self, weight: int) -> None:
        """Waits until there is room; what alone is larger than the window waits until it is empty.

        Args:
          weight: How much is needed.
        """
        while self.used and self.used + weight > self.size:
            self._released.clear()
            await self._released.wait()
        self.used += weight

    def release(self, weight: int) -> None:
        """Gives room back.

        Args:
          weight: As it was taken.
        """
        self.used -= weight
        if not self.used:
            self.empty_since = time.monotonic()
        self._released.set()


class LineStream:
    """Answers the lines of one body.

    A line leaves the window when its answer was handed to the connection, so that neither lines nor answers pile up where the model is slower than the
    client sends, or the client reads more slowly than the model computes.

    Args:
      prepare: Makes of a line how many inputs it has and what computes them; raises RequestError where it is wrong.
      window: Inputs that may be under way.
      limits: What is admitted.
      request_id: What the log calls the request.
      ends: Whether the server takes no more lines.
    """

    def __init__(
        self,
        prepare: Callable[[bytes], tuple[int, Work]],
        *,
        window: int,
        limits: LimitsConfig,
        request_id: str,
        ends: Callable[[], bool],
    ) -> None:
        self._prepare = prepare
        self._window = Window(window)
        self._limits = limits
        self._request_id = request_id
        self._ends = ends
        self._ended_early = False
        self._order: asyncio.Queue[tuple[int, asyncio.Task[bytes]] | None] = asyncio.Queue()

    async def run(self, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> bool:
        """Sends the body of the answer, all but its end.

        Args:
          receive: As ASGI has it.
          send: As ASGI has it; the head of the answer was sent.

        Returns:
          Whether all lines were answered; else the body may go on.

        Raises:
          ClientGoneError: Nobody waits any more; all work was cancelled.
        """
        reader = LineReader(receive, self._limits.payload_limit)
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(reader.run())
                group.create_task(self._start(reader, group))
                await self._send_answers(send)
                if self._ended_early:  # a connection that is closed with bytes unread may take the last answers with it
                    await reader.discard(self._limits.receive_seconds)
                reading.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return not self._ended_early

    async def _start(self, reader: LineReader, group: asyncio.TaskGroup) -> None:
        """Starts the lines one after the other, as the window allows."""
        for index in itertools.count():
            try:
                line = await self._next_line(reader)
                if line is not None and self._ends():
                    raise RequestError("unhealthy", "The server ends; send this line and all after it again.")
            except RequestError as error:
                self._ended_early = True
                self._order.put_nowait((0, group.create_task(self._answer(index, _raising(error), end=True))))
                break
            if line is None:
                break
            num_inputs, work = self._read(line)
            await self._window.take(num_inputs)
            self._order.put_nowait((num_inputs, group.create_task(self._answer(index, work))))
        self._order.put_nowait(None)

    async def _next_line(self, reader: LineReader) -> Line | None:
        seconds = self._limits.receive_seconds
        begun = time.monotonic()
        while True:
            since = time.monotonic() - max(begun, self._window.empty_since)
            left = seconds if self._window.used else seconds - since
            if left <= 0:
                raise RequestError("timeout_receiving", f"No whole line arrived within {seconds:g} seconds.")
            try:
                async with asyncio.timeout(left):
                    return await reader.next_line()
            except TimeoutError:
                continue

    def _read(self, line: Line) -> tuple[int, Work]:
        try:
            if line.too_long:
                raise RequestError("too_large", f"The line has more than {self._limits.payload_limit} bytes.")
            return self._prepare(line.content)
        except RequestError as error:
            return 1, _raising(error)

    async def _answer(self, index: int, work: Work, end: bool = False) -> bytes:
        try:
            content = {"index": index, "result": await work()}
        except RequestError as error:
            content = _failure(index, error)
        except Exception:  # noqa: BLE001  whatever went wrong belongs to the line, and the log has the rest
            _LOG.exception("line %d of request %s failed", index, self._request_id)
            text = f"The server made a mistake; its log says more under {self._request_id}."
            content = {**_failure(index, RequestError("backend", text)), "status": 500}
        return json_bytes({**content, "end": True} if end else content) + b"\n"

    async def _send_answers(self, send: Callable[[Any], Awaitable[None]]) -> None:
        while (entry := await self._order.get()) is not None:
            num_inputs, task = entry
            await send({"type": "http.response.body", "body": await task, "more_body": True})
            self._window.release(num_inputs)


def _failure(index: int, error: RequestError) -> dict[str, Any]:
    return {"index": index, "error": error.message, "error_type": error.error_type, "status": error.status}


def _raising(error: RequestError) -> Work:
    async def work() -> Any:
        raise error

    return work
