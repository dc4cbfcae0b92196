"""An S3 of this machine for tests: moto's, one request at a time so that conditions on uploads hold, with faults to order."""

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

Fault = Callable[[str, str], str]
"""Given method and path of a request: ``refuse`` it, ``lose`` its answer once it was done, a status and code of S3, or an empty text."""


class ObjectStore:
    """The application before moto's, which counts requests and makes faults.

    Attributes:
      bucket: Name of the bucket; moto keeps those of one process together.
      requests: Method and path of every request.
      fault: What becomes of a request.
    """

    def __init__(self, application: Any) -> None:
        self._application = application
        self.bucket = f"models-{uuid.uuid4().hex}"
        self.requests: list[tuple[str, str]] = []
        self.fault: Fault = lambda method, path: ""

    @property
    def location(self) -> str:
        """URL of the bucket."""
        return f"s3://{self.bucket}"

    def __call__(self, environment: dict[str, Any], start: Any) -> Iterable[bytes]:
        """Answers a request of WSGI."""
        method, path = environment["REQUEST_METHOD"], environment["PATH_INFO"]
        self.requests.append((method, path))
        fault = self.fault(method, path)
        if not fault:
            return self._application(environment, start)
        if fault == "lose":
            list(self._application(environment, lambda *answer: None))
        else:
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        status, code = {"lose": ("500", "InternalError"), "refuse": ("403", "AccessDenied")}.get(fault) or fault.split()
        start(f"{status} {code}", [("content-type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>a fault of the test</Message></Error>".encode()]


@contextlib.contextmanager
def object_store(patch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """Runs the store and points the environment at it.

    Args:
      patch: Sets the variables.

    Yields:
      The store, with an empty bucket.
    """
    import s3fs
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    store = ObjectStore(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "2",
    }.items():
        patch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        s3fs.S3FileSystem().mkdir(store.bucket)
        yield store
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()
        server.server_close()
