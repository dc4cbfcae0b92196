"""One stream of lines over one connection, both ways at once.

Clients of HTTP send a body before they read the answer. The server of streams stops reading while its answers are not read, so both have to happen at once;
the bytes are made and read by h11, which httpx2 is built on, too.
"""

import asyncio
import contextlib
import dataclasses
import json
import selectors
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any

import h11
import httpx2

from flaxbert.client.attempts import refusal, unreachable
from flaxbert.errors import ServerError

_READ_BYTES = 65536
_GOODBYE_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class StreamAnswer:
    """The answer of one body of a stream.

    Attributes:
      index: Number of the body, from 0.
      result: What the route of the same name answers; None where there is an error.
      error: Why there is no result, or None.
    """

    index: int
    result: Any
    error: ServerError | None = None


class Conversation:
    """Bytes of a request, and answers of bytes.

    Nothing but ``head`` is to be sent before the server has ``accepted`` it: where it closes the connection while it is written to, its refusal may be lost.

    Args:
      request: Its address and headers.
    """

    def __init__(self, request: httpx2.Request) -> None:
        self._protocol = h11.Connection(h11.CLIENT)
        headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"content-length"]
        headers.append((b"transfer-encoding", b"chunked"))
        target = request.url.raw_path
        self.head = self._send(h11.Request(method="POST", target=target, headers=headers))
        self.accepted = False
        self.ended = False
        self._status = 0
        self._headers: dict[str, str] = {}
        self._partial = b""

    def _send(self, event: Any) -> bytes:
        return self._protocol.send(event) or b""

    def line(self, body: Any) -> bytes:
        """Returns the bytes of one body.

        Args:
          body: What becomes a line of JSON.
        """
        return self._send(h11.Data(json.dumps(body).encode() + b"\n"))

    def end(self) -> bytes:
        """Returns the bytes after the last body."""
        return self._send(h11.EndOfMessage())

    def feed(self, data: bytes) -> Iterator[StreamAnswer]:
        """Yields the answers that bytes of the server complete.

        Args:
          data: What was received; empty where the connection ended.

        Raises:
          ServerError: The server refused the stream, ended it, or went away.
        """
        try:
            self._protocol.receive_data(data)
            while not self.ended:
                event = self._protocol.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return
                yield from self._take(event)
        except h11.RemoteProtocolError as error:
            raise ServerError(f"The connection ended before the answer did: {error}", 0, "unreachable") from error

    def _take(self, event: Any) -> Iterator[StreamAnswer]:
        if isinstance(event, h11.InformationalResponse):
            self.accepted |= event.status_code == 100
        elif isinstance(event, h11.Response):
            self._status = event.status_code
            self.accepted |= self._status == 200
            self._headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
        elif isinstance(event, h11.Data):
            *lines, self._partial = (self._partial + bytes(event.data)).split(b"\n")
            if self._status != 200:
                self._partial = b"\n".join([*lines, self._partial])
                return
            for line in lines:
                yield _answer(json.loads(line))
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            self.ended = True
            if self._status != 200:
                raise refusal(self._status, self._headers, self._partial)


def _answer(line: dict[str, Any]) -> StreamAnswer:
    if "error" not in line:
        return StreamAnswer(line["index"], line["result"])
    error = ServerError(line["error"], line["status"], line["error_type"])
    if line.get("end"):
        raise error
    return StreamAnswer(line["index"], None, error)


def connect(request: httpx2.Request, timeout_seconds: float, tls: ssl.SSLContext) -> socket.socket:
    """Returns a connection to the server of a request.

    Args:
      request: The request.
      timeout_seconds: Time that it may take.
      tls: What is asked of an encrypted connection.
    """
    host, port, context = _place(request, tls)
    connection = socket.create_connection((host, port), timeout_seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is None:
        return connection
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise


def _place(request: httpx2.Request, tls: ssl.SSLContext) -> tuple[str, int, ssl.SSLContext | None]:
    url = request.url
    secure = url.scheme == "https"
    return url.host, url.port or (443 if secure else 80), tls if secure else None


def converse(
    connection: socket.socket, conversation: Conversation, bodies: Iterable[Any], timeout_seconds: float
) -> Iterator[StreamAnswer]:
    """Sends bodies and yields their answers, whichever is possible, in one thread.

    Args:
      connection: From ``connect``.
      conversation: What is said on it.
      bodies: The bodies.
      timeout_seconds: Longest time in which nothing moves.

    Yields:
      The answers.

    Raises:
      ServerError: The server refused or ended the stream, or went away.
    """
    connection.setblocking(False)
    outgoing, waiting = conversation.head, _lines(conversation, bodies)
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while not conversation.ended:
            received = _receive(connection)
            if received is not None:
                yield from conversation.feed(received)
                continue
            if conversation.accepted:
                outgoing = outgoing or next(waiting, b"")
            sent = _send(connection, outgoing)
            if sent is None:  # what the server said before it closed is read
                outgoing, waiting = b"", iter(())
            elif sent:
                outgoing = outgoing[sent:]
                continue
            selector.modify(connection, selectors.EVENT_READ | (selectors.EVENT_WRITE if outgoing else 0))
            if not selector.select(timeout_seconds):
                raise unreachable(TimeoutError(f"nothing came for {timeout_seconds:g} seconds"))


def _lines(conversation: Conversation, bodies: Iterable[Any]) -> Iterator[bytes]:
    for body in bodies:
        yield conversation.line(body)
    yield conversation.end()


_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def _receive(connection: socket.socket) -> bytes | None:
    """Returns what has come, or None where nothing has."""
    try:
        return connection.recv(_READ_BYTES)
    except _NOT_NOW:
        return None
    except (ConnectionError, ssl.SSLError) as error:
        raise unreachable(error) from error


def _send(connection: socket.socket, data: bytes) -> int | None:
    """Returns the number of bytes that could be sent, or None where the connection takes none any more."""
    try:
        return connection.send(data) if data else 0
    except _NOT_NOW:
        return 0
    except (ConnectionError, ssl.SSLError):
        return None


async def connect_async(
    request: httpx2.Request, timeout_seconds: float, tls: ssl.SSLContext
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Returns a connection to the server of a request.

    Args:
      request: The request.
      timeout_seconds: Time that it may take.
      tls: What is asked of an encrypted connection.
    """
    host, port, context = _place(request, tls)
    async with asyncio.timeout(timeout_seconds):
        return await asyncio.open_connection(host, port, ssl=context)


class AsyncTalk:
    """Sends bodies and yields their answers, both at once.

    Args:
      reader: From ``connect_async``.
      writer: From ``connect_async``.
      conversation: What is said on the connection.
      timeout_seconds: Longest time without an answer while no body is waited for.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        conversation: Conversation,
        timeout_seconds: float,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._conversation = conversation
        self._timeout_seconds = timeout_seconds
        self._wants_body = False

    async def answers(self, bodies: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[StreamAnswer, None]:
        """Yields the answers.

        Args:
          bodies: The bodies.

        Raises:
          ServerError: The server refused or ended the stream, or went away.
        """
        accepted = asyncio.Event()
        sending = asyncio.ensure_future(self._send(bodies, accepted))
        reading: asyncio.Future[bytes] | None = None
        try:
            while not self._conversation.ended:
                reading = reading or asyncio.ensure_future(self._reader.read(_READ_BYTES))
                both = {reading} if sending.done() else {reading, sending}
                done, _ = await asyncio.wait(both, timeout=self._timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
                if sending in done:
                    sending.result()  # what the bodies raised
                if reading in done:
                    received, reading = _result(reading), None
                    for answer in self._conversation.feed(received):
                        yield answer
                    if self._conversation.accepted:
                        accepted.set()
                if not done and not self._wants_body:
                    raise unreachable(TimeoutError(f"nothing came for {self._timeout_seconds:g} seconds"))
        finally:
            for task in (sending, reading):
                if task is not None:
                    task.cancel()
            await asyncio.gather(sending, *([] if reading is None else [reading]), return_exceptions=True)
            await self._close()

    async def _close(self) -> None:
        """Closes the connection. An encrypted one says goodbye first and waits for the answer, but not where the talk was broken off."""
        if self._conversation.ended:
            self._writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_GOODBYE_SECONDS):
                    await self._writer.wait_closed()
        self._writer.transport.abort()

    async def _send(self, bodies: Iterable[Any] | AsyncIterable[Any], accepted: asyncio.Event) -> None:
        self._writer.write(self._conversation.head)
        await accepted.wait()
        self._wants_body = True
        async for body in _each(bodies):
            self._wants_body = False
            if not await self._write(self._conversation.line(body)):
                return
            self._wants_body = True
        self._wants_body = False
        await self._write(self._conversation.end())

    async def _write(self, data: bytes) -> bool:
        """Sends bytes and returns whether the connection took them; what the server said before it closed is still read."""
        self._writer.write(data)
        try:
            await self._writer.drain()
        except (ConnectionError, ssl.SSLError):
            return False
        return True


def _result(reading: "asyncio.Future[bytes]") -> bytes:
    try:
        return reading.result()
    except (ConnectionError, ssl.SSLError) as error:
        raise unreachable(error) from error


async def _each(bodies: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(bodies, AsyncIterable):
        async for body in bodies:
            yield body
    else:
        for body in bodies:
            yield body
            await asyncio.sleep(0)  # answers are read in between
