"""``/stream/NAME``: many bodies of the route NAME in one request, a line each."""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from flaxbert.errors import nearest
from flaxbert.serve.api import Api
from flaxbert.serve.endpoints import ENDPOINTS, Endpoint, Job, parse
from flaxbert.serve.errors import RequestError
from flaxbert.serve.service import Timing
from flaxbert.serve.streaming import LineStream, Work
from flaxbert.serve.strict_json import StrictRoute

MEDIA_TYPE = "application/x-ndjson"

BATCHES_UNDER_WAY = 4
"""Full batches of inputs of a stream that are under way: one is computed, one is started on accelerators, and two are tokenized or sent."""

_BODY: dict[str, Any] = {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}


def read_line(endpoint: Endpoint, line: bytes, api: Api) -> Job:
    """Returns what a line asks for.

    Args:
      endpoint: What it is for.
      line: A body as the route of the same name takes it; where that may be a text alone, the text as a JSON string.
      api: What routes have at hand.

    Raises:
      RequestError: It is no such body.
    """
    if not line.strip():
        raise RequestError("empty", "The line is empty.")
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise RequestError("bad_request", f"The line is no JSON: {str(error).split(':')[0]}.") from error
    if isinstance(value, str) and endpoint.takes_texts:
        value = {"inputs": value}
    return endpoint.read(parse(endpoint.schema, value, "line"), api.truncation)


@dataclasses.dataclass(frozen=True, eq=False)
class Lines:
    """Makes work of the lines of one request.

    Attributes:
      api: What routes have at hand.
      request: The request.
      endpoint: What its lines are for.
    """

    api: Api
    request: Request
    endpoint: Endpoint

    def prepare(self, line: bytes) -> tuple[int, Work]:
        """Returns the number of inputs of a line and what computes its result.

        Args:
          line: The line.

        Raises:
          RequestError: It is wrong.
        """
        job = read_line(self.endpoint, line, self.api)

        async def work() -> Any:
            return await self._answer(job)

        return max(1, job.num_inputs), work

    async def _answer(self, job: Job) -> Any:
        """Returns the result of a job, and counts it as a request of its own."""
        timing, failure = Timing(), "499"
        try:
            answer = await self.api.perform_for(self.request, job, self.endpoint.suits, timing)
            failure = ""
        except RequestError as error:
            failure = error.error_type
            raise
        finally:
            if timing.model:
                self.api.service.metrics.count_line(timing, failure)
                self.request.state.timing.add(timing)
        return answer


class StreamedResponse(Response):
    """An answer that is made while the body arrives.

    Args:
      lines: What makes it.
      version: Version of the model that answers the first lines.
    """

    media_type = MEDIA_TYPE

    def __init__(self, lines: LineStream, version: str) -> None:
        self.status_code = 200
        self.background = None
        self._lines = lines
        self.init_headers({"x-model-version": version})

    async def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Sends the answer.

        Args:
          scope: As ASGI has it.
          receive: As ASGI has it; nothing of the body was read.
          send: As ASGI has it.
        """
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if not await self._lines.run(receive, send):
            scope["state"].get("end_connection", lambda: None)()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def make_router(api: Api) -> APIRouter:
    """Returns this route.

    Args:
      api: What it has at hand.
    """
    router = APIRouter(route_class=StrictRoute, tags=["streams"])
    names = Path(description="Name of a route", json_schema_extra={"enum": list(ENDPOINTS)})

    @router.post(
        "/stream/{operation}",
        summary="Many bodies of a route, a line each, answered line by line",
        responses={200: {**_BODY, "description": "A line of JSON for each line"}},
        openapi_extra={"requestBody": {**_BODY, "required": True}},
    )
    async def stream(operation: Annotated[str, names], request: Request) -> Response:
        endpoint = ENDPOINTS.get(operation)
        if endpoint is None:
            raise RequestError("not_found", f"There is no stream '{operation}'.{nearest(operation, ENDPOINTS)}")
        served = api.served(request, endpoint.suits)
        lines = LineStream(
            Lines(api, request, endpoint).prepare,
            window=BATCHES_UNDER_WAY * served.engine.plan.rows[-1],
            limits=api.limits,
            request_id=request.state.request_id,
            ends=lambda: api.status.draining,
        )
        return StreamedResponse(lines, served.version)

    return router
