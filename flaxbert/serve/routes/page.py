"""The page that a browser shows: files of this package, which hold no data and load nothing from elsewhere."""

import hashlib
import importlib.resources

from fastapi import APIRouter, Request
from fastapi.responses import Response

from flaxbert.serve.access import PAGE_PATH, PAGE_PREFIX
from flaxbert.serve.errors import RequestError

_HTML, _CSS, _SCRIPT, _IMAGE = "text/html", "text/css", "text/javascript", "image/svg+xml"

INDEX = "index.html"

FILES = {
    "style.css": _CSS,
    "icon.svg": _IMAGE,
    "theme.js": _SCRIPT,
    "main.js": _SCRIPT,
    "api.js": _SCRIPT,
    "dom.js": _SCRIPT,
    "tasks.js": _SCRIPT,
    "results.js": _SCRIPT,
    "monitor.js": _SCRIPT,
    "registry.js": _SCRIPT,
}
"""Content type of each file that is sent; no other is."""

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""What browsers are told about each file: to run nothing but these files, and to ask whether a file changed."""


class _File:
    """A file as it is sent."""

    def __init__(self, name: str, content_type: str) -> None:
        self._content = (importlib.resources.files("flaxbert.serve") / "page" / name).read_bytes()
        self._headers = {
            **HEADERS,
            "content-type": f"{content_type}; charset=utf-8",
            "etag": f'"{hashlib.sha256(self._content).hexdigest()[:32]}"',
        }

    def answer(self, request: Request) -> Response:
        """Returns the file, or only that it is the one that the browser has."""
        if self._headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, headers=self._headers)


def make_router() -> APIRouter:
    """Returns these routes."""
    router = APIRouter(include_in_schema=False)
    index = _File(INDEX, _HTML)
    files = {name: _File(name, content_type) for name, content_type in FILES.items()}

    @router.get(PAGE_PATH)
    async def page(request: Request) -> Response:
        return index.answer(request)

    @router.get(PAGE_PREFIX + "{file}")
    async def part(file: str, request: Request) -> Response:
        if file not in files:
            raise RequestError("not_found", f"The page has no file '{file}'.")
        return files[file].answer(request)

    return router
