"""What all routes share: finding the model, running an operation, sending the answer."""

import asyncio
import dataclasses
import functools
import math
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orjson
from fastapi import Request
from fastapi.responses import Response

from flaxbert.config import LimitsConfig
from flaxbert.serve.endpoints import Job
from flaxbert.serve.errors import RequestError
from flaxbert.serve.fleet import SHADOW, Fleet
from flaxbert.serve.loading import Served
from flaxbert.serve.operations.work import Subject, Truncation, Work
from flaxbert.serve.schemas import Truncated
from flaxbert.serve.service import Call, Service, Timing

_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


@dataclasses.dataclass(eq=False)
class Status:
    """Whether the server takes requests.

    Attributes:
      loaded: Set when every model is loaded.
      draining: It was told to end.
    """

    loaded: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    draining: bool = False

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.loaded.is_set() and not self.draining


@dataclasses.dataclass(frozen=True, eq=False)
class Api:
    """What routes have at hand.

    Attributes:
      fleet: The models.
      service: What computes.
      status: Whether the server takes requests.
      has_admins: Whether anybody may change what is served.
    """

    fleet: Fleet
    service: Service
    status: Status
    has_admins: bool = False

    @property
    def limits(self) -> LimitsConfig:
        """What is admitted."""
        return self.service.limits

    async def when_loaded(self, request: Request) -> None:
        """Lets a request wait while the models are loaded, so that a restart costs clients time and no errors.

        Args:
          request: The request; those that ask how the server is do not wait.

        Raises:
          RequestError: It takes too long, or too many wait.
        """
        if "/health/" not in request.url.path:
            await self.wait_until_loaded()

    async def wait_until_loaded(self, deadline: float = math.inf) -> None:
        """Returns when the models are loaded.

        Args:
          deadline: When the client stops waiting, on the monotonic clock.

        Raises:
          RequestError: It takes too long, or too many wait.
        """
        if self.status.loaded.is_set():
            return
        try:
            with self.service.admitted():
                async with asyncio.timeout(self.service.seconds_until(deadline)):
                    await self.status.loaded.wait()
        except TimeoutError:
            raise RequestError("unhealthy", "The models are being loaded.", 5.0) from None

    def truncation(self, body: Truncated | None) -> Truncation:
        """Returns what happens to texts that are too long.

        Args:
          body: What the client says.
        """
        if body is None:
            return Truncation(self.limits.auto_truncate)
        allowed = self.limits.auto_truncate if body.truncate is None else body.truncate
        return Truncation(allowed, body.truncation_direction.lower())

    def check_batch(self, size: int) -> None:
        """Refuses a request with no or too many inputs.

        Args:
          size: Number of its inputs.

        Raises:
          RequestError: It has none, or more than the server takes.
        """
        if size == 0:
            raise RequestError("empty", "There is no input.")
        if size > self.limits.max_client_batch_size:
            raise RequestError(
                "batch_too_large",
                f"There are {size} inputs, but a request may have {self.limits.max_client_batch_size}.",
            )

    def served(self, request: Request, suits: Callable[[Served], bool] = lambda served: True, name: str = "") -> Served:
        """Returns the version that answers a request.

        Args:
          request: The request; a model in its path counts.
          suits: What the model must be able to do, where none is named.
          name: The model that its body names.

        Raises:
          RequestError: There is none.
        """
        return self.chosen(call_of(request), suits, name)

    def chosen(self, call: Call, suits: Callable[[Served], bool] = lambda served: True, name: str = "") -> Served:
        """Returns the version that answers a call.

        Args:
          call: The call.
          suits: What the model must be able to do, where none is named.
          name: The model that its body names.

        Raises:
          RequestError: There is none.
        """
        return self.fleet.choose(self.fleet.find(call.model or name or None, suits), call.request_id)

    async def run(
        self,
        request: Request,
        operation: Callable[..., Work],
        *,
        suits: Callable[[Served], bool] = lambda served: True,
        name: str = "",
        **arguments: Any,
    ) -> Any:
        """Returns what an operation answers.

        Args:
          request: The request.
          operation: Takes a model and the arguments.
          suits: What the model must be able to do, where none is named.
          name: The model that the body names.
          **arguments: The arguments.
        """
        call = call_of(request)
        return await self.answer(call, self.chosen(call, suits, name), operation, **arguments)

    async def answer(self, call: Call, served: Served, operation: Callable[..., Work], **arguments: Any) -> Any:
        """Returns what an operation answers, whichever way it was called.

        Args:
          call: The call.
          served: The version that answers it.
          operation: Takes a model and the arguments.
          **arguments: The arguments.
        """
        bound: Callable[[Subject], Work] = functools.partial(operation, **arguments)
        answer = await self.service.run(served, bound, call.timing, call.deadline, in_turn=call.in_turn)
        shadow = self.fleet.slots[served.name].versions.get(SHADOW)
        if shadow is not None and shadow is not served:
            self.service.shadow(shadow, bound, answer)
        return answer

    async def perform(self, call: Call, served: Served, job: Job) -> Any:
        """Returns what the client gets for a job.

        Args:
          call: The call that it belongs to.
          served: The version that does it.
          job: What a body, or a line of one, asks for.

        Raises:
          RequestError: It asks for too much, or can not be answered.
        """
        self._check(job)
        return await self._shaped(call, served, job)

    def _check(self, job: Job) -> None:
        for size in job.sizes:
            self.check_batch(size)

    async def _shaped(self, call: Call, served: Served, job: Job) -> Any:
        return job.shape(await self.answer(call, served, job.operation, **job.arguments))

    async def perform_for(
        self, request: Request, job: Job, suits: Callable[[Served], bool], line: Timing | None = None
    ) -> Any:
        """Returns what the client gets for a job of a request.

        Args:
          request: The request.
          job: What its body, or a line of it, asks for.
          suits: What the model must be able to do, where none is named.
          line: Where this is but a line of the request: what happens to it. It waits for a place.

        Raises:
          RequestError: It asks for too much, or can not be answered.
        """
        self._check(job)
        call = call_of(request, line)
        return await self._shaped(call, self.chosen(call, suits), job)

    def send(self, request: Request, content: Any, headers: Mapping[str, str] | None = None) -> Response:
        """Returns the answer of a request, with what it took in its headers.

        Args:
          request: The request.
          content: What becomes JSON; arrays may be in it.
          headers: Further headers.
        """
        return json_response(content, {**timing_headers(request.state.timing), **(headers or {})})


def call_of(request: Request, line: Timing | None = None) -> Call:
    """Returns a request, or a line of it, without what only HTTP has.

    Args:
      request: The request, after the gate.
      line: What happens to a line; None for the whole request.
    """
    state = request.state
    model = request.path_params.get("model", "")
    return Call(state.request_id, model, timing=line or state.timing, in_turn=line is not None)


def json_response(content: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """Returns JSON as a response.

    Args:
      content: What becomes JSON.
      headers: Further headers.
      status: Its status.
    """
    return Response(json_bytes(content), status, dict(headers or {}), "application/json")


def json_bytes(content: Any) -> bytes:
    """Returns content as JSON.

    Args:
      content: What becomes JSON; arrays may be in it.
    """
    return orjson.dumps(content, option=_JSON)


def timing_headers(timing: Timing) -> dict[str, str]:
    """Returns the headers that text-embeddings-inference sends, times in milliseconds.

    Args:
      timing: What happened to the request.
    """
    milliseconds = lambda seconds: str(round(1000 * seconds))
    return {
        "x-compute-type": jax.default_backend(),
        "x-compute-time": milliseconds(time.monotonic() - timing.started),
        "x-compute-characters": str(timing.num_characters),
        "x-compute-tokens": str(timing.num_tokens),
        "x-total-time": milliseconds(time.monotonic() - timing.started),
        "x-tokenization-time": milliseconds(timing.tokenization),
        "x-queue-time": milliseconds(timing.queue),
        "x-inference-time": milliseconds(timing.inference),
        "x-model-version": timing.version,
    }


def new_id() -> str:
    """Returns a short name that nobody has to guess."""
    return secrets.token_hex(8)
