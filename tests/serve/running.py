"""A server in a thread of the test's own process."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import httpx2
import uvicorn

from flaxbert.config import BatchingConfig
from flaxbert.serve.loading import EngineOptions
from flaxbert.serve.supervisor import open_socket
from flaxbert.serve.worker import PatientProtocol, encryption

SMALL = EngineOptions(batching=BatchingConfig(max_length=32, max_batch_tokens=64, max_batch_requests=4))
"""Few shapes, so that little is compiled."""

_WAIT_SECONDS = 300.0


@contextlib.contextmanager
def running(app, certificates=None, verify=True) -> Iterator[str]:
    """Runs an application, waits until it is ready, and gives its URL; with certificates its connections are encrypted."""
    sock = open_socket("127.0.0.1", 0)
    config = uvicorn.Config(
        app, http=PatientProtocol, log_config=None, ws="none", lifespan="on", **encryption(certificates)
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])), daemon=True)
    thread.start()
    url = f"{'http' if certificates is None else 'https'}://127.0.0.1:{sock.getsockname()[1]}"
    try:
        wait_until_ready(app, url, verify)
        yield url
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def held_back(engine, most_seconds, monkeypatch) -> Iterator[threading.Event]:
    """Lets an engine begin nothing until the event is set, at most some seconds a batch."""
    let_go, start = threading.Event(), engine.start

    def wait(function, batch):
        let_go.wait(most_seconds)
        return start(function, batch)

    monkeypatch.setattr(engine, "start", wait)
    try:
        yield let_go
    finally:
        let_go.set()


def wait_until_ready(app, url: str, verify=True) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        loading = getattr(app.state, "loading", None)
        if loading is not None and loading.done():
            loading.result()
            if httpx2.get(f"{url}/health/live", timeout=10, verify=verify).status_code == 200:
                return
        time.sleep(0.02)
    raise TimeoutError("the server did not become ready")
