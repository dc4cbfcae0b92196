"""What servers are attacked with: slow and half-closed connections, bodies that are too large or no JSON, clients that go away, crowds."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

import httpx2

ALLOWED = frozenset({503, 504})
"""Statuses from 500 on that a server may give on purpose."""


class Target(Protocol):
    """What is attacked.

    Attributes:
      url: Its address.
      port: Its port.
    """

    url: str
    port: int

    def note(self, text: str) -> None:
        """Keeps a sentence about what went wrong.

        Args:
          text: The sentence.
        """

    def note_status(self, status: int) -> None:
        """Counts an answer.

        Args:
          status: Its status.
        """


async def _raw(
    target: Target, content: bytes, pause: float = 0.0, half_close: bool = False, read: bool = True
) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    try:
        for start in range(0, len(content), max(1, len(content) // 4)):
            writer.write(content[start : start + max(1, len(content) // 4)])
            await writer.drain()
            await asyncio.sleep(pause)
        if half_close:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(4096), 10.0) if read else b""
    finally:
        writer.close()


def _post(body: bytes, length: int | None = None, path: str = "/predict") -> bytes:
    size = len(body) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n".encode()
        + body
    )


async def _slow_head(target: Target) -> None:
    await _raw(target, b"POST /predict HTTP/1.1\r\nhost: x", pause=2.0)


async def _slow_body(target: Target) -> None:
    await _raw(target, _post(b'{"in', 100), pause=2.0)


async def _half_closed(target: Target) -> None:
    await _raw(target, _post(b'{"inputs": "the film"}'), half_close=True)


async def _huge(target: Target) -> None:
    await _raw(target, _post(b"x" * 100_000, 100_000_000))


async def _bodies(target: Target) -> None:
    bad = [
        b"[" * 50_000, b'{"inputs": "\\ud800"}', b'{"inputs": NaN}', b"\xff\xfe\xfd", b'{"inputs": []}', b"{}",
        b'{"inputs": ' + b'{"a":' * 2_000 + b"1" + b"}" * 2_000 + b"}", b'{"inputs": "' + b"film " * 5_000 + b'"}', b"null", b'"',
        b'{"inputs": [["a"], ["a", "b"]]}', b'{"inputs": 1e999}',
    ]  # fmt: skip
    async with httpx2.AsyncClient(timeout=30) as client:
        for body in bad:
            for path in ("/predict", "/models/vectors/embed", "/v2/models/film/infer"):
                answer = await client.post(
                    target.url + path, content=body, headers={"content-type": "application/json"}
                )
                target.note_status(answer.status_code)
                if answer.status_code >= 500 and answer.status_code not in ALLOWED:
                    target.note(f"{answer.status_code} for {path} {body[:60]!r}")


async def _gone(target: Target) -> None:
    for _ in range(20):
        await _raw(target, _post(json.dumps({"inputs": [["the film " * 40]] * 16}).encode()), read=False)


async def _crowd(target: Target) -> None:
    """Opens many connections at once and lets them stand."""
    sockets = []
    try:
        for _ in range(CROWD):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(("127.0.0.1", target.port))
            sockets.append(sock)
        await asyncio.sleep(5.0)
    finally:
        for sock in sockets:
            sock.close()


CROWD = 1000
ATTACKS: dict[str, Callable[[Target], Awaitable[None]]] = {
    "slow head": _slow_head,
    "slow body": _slow_body,
    "half closed": _half_closed,
    "100 MB": _huge,
    "bad bodies": _bodies,
    "gone in mid-batch": _gone,
    "crowd": _crowd,
}
