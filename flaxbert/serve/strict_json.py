"""Routes that read JSON strictly: no NaN, no lone surrogates, no endless nesting."""

import json
from collections.abc import Callable
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute


class _StrictRequest(Request):
    """A request whose JSON is read so."""

    async def json(self) -> Any:
        """Returns the body.

        Raises:
          json.JSONDecodeError: It is no JSON.
        """
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                self._json = orjson.loads(body)
            except orjson.JSONDecodeError as error:
                raise json.JSONDecodeError(str(error).split(":")[0], "", 0) from error
        return self._json


class StrictRoute(APIRoute):
    """A route with such requests."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Returns what answers a request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict
