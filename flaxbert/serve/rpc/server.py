"""The server of the Open Inference Protocol over gRPC: the same answers, limits, access and metrics as over HTTP."""

import asyncio
import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from flaxbert.errors import ConfigError
from flaxbert.serve.access import Access
from flaxbert.serve.api import Api, new_id
from flaxbert.serve.errors import RequestError
from flaxbert.serve.logs import Handled, log_request
from flaxbert.serve.middleware import id_of
from flaxbert.serve.routes.kserve import Inference, metadata_of, select_outputs, server_metadata, version_of
from flaxbert.serve.rpc import tensors
from flaxbert.serve.rpc.messages import MESSAGES, METHODS, PACKAGE, SERVICE
from flaxbert.serve.service import Call
from flaxbert.serve.tls import Certificates

_LOG = logging.getLogger("flaxbert.serve")

_Code = grpc.StatusCode

CODES: dict[str, grpc.StatusCode] = {
    "empty": _Code.INVALID_ARGUMENT,
    "bad_request": _Code.INVALID_ARGUMENT,
    "unauthorized": _Code.UNAUTHENTICATED,
    "forbidden": _Code.PERMISSION_DENIED,
    "not_found": _Code.NOT_FOUND,
    "timeout_receiving": _Code.DEADLINE_EXCEEDED,
    "conflict": _Code.FAILED_PRECONDITION,
    "too_large": _Code.RESOURCE_EXHAUSTED,
    "batch_too_large": _Code.INVALID_ARGUMENT,
    "validation": _Code.INVALID_ARGUMENT,
    "tokenizer": _Code.INVALID_ARGUMENT,
    "backend": _Code.FAILED_PRECONDITION,
    "overloaded": _Code.RESOURCE_EXHAUSTED,
    "unimplemented": _Code.UNIMPLEMENTED,
    "unhealthy": _Code.UNAVAILABLE,
    "deadline": _Code.DEADLINE_EXCEEDED,
}
"""Code by kind of error."""

_PREFIX = f"/{PACKAGE}.{SERVICE}/"
_QUIET = frozenset({"ServerLive", "ServerReady"})
_LONGEST_DETAILS = 500
"""Characters of a message; those who call take no more than some kilobytes of metadata."""


class _Handlers(grpc.GenericRpcHandler):
    """Gives every call to one function, so that none comes past access and metrics.

    Requests are read as streams of one message, which are the same on the wire, because only these are handed over before they are read.
    """

    def __init__(self, answer: Callable[[str, Any, Any], Awaitable[bytes]]) -> None:
        self._answer = answer

    def service(self, handler_call_details: Any) -> Any:
        """Returns what handles a call.

        Args:
          handler_call_details: The call.
        """
        return grpc.stream_unary_rpc_method_handler(functools.partial(self._answer, handler_call_details.method))


def _credentials(certificates: Certificates) -> Any:
    """Returns what gRPC encrypts with; it asks for the pair at every handshake."""
    used, authorities = certificates.pair, certificates.client_authorities

    def configuration(pair: tuple[bytes, bytes]) -> Any:
        return grpc.ssl_server_certificate_configuration([pair], None if authorities is None else authorities.encode())

    def changed() -> Any:
        nonlocal used
        now = certificates.pair
        if now == used:
            return None
        made = configuration(now)
        used = now
        return made

    return grpc.dynamic_ssl_server_credentials(
        configuration(used), changed, require_client_authentication=authorities is not None
    )


class RpcServer:
    """Answers the methods of the protocol.

    Args:
      api: What methods have at hand.
      access: Who is admitted.
      address: Host and port; port 0 lets the system choose.
      certificates: What calls are encrypted with; None: not at all.
    """

    def __init__(
        self, api: Api, access: Access, address: tuple[str, int], certificates: Certificates | None = None
    ) -> None:
        self._api = api
        self._access = access
        self._address = address
        self._certificates = certificates
        self._server: Any = None
        self._stopping: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Begins to listen.

        Raises:
          ConfigError: Another process has the port.
        """
        limits = self._api.limits
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limits.payload_limit),
            ("grpc.max_allowed_incoming_connections", limits.max_connections),
            ("grpc.server_handshake_timeout_ms", math.ceil(1000 * limits.receive_seconds)),
        ]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=limits.max_connections)
        server.add_generic_rpc_handlers((_Handlers(self._answer),))
        host, port = self._address
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._certificates is None:
                self.port = server.add_insecure_port(place)
            else:
                self.port = server.add_secure_port(place, _credentials(self._certificates))
        except RuntimeError as error:
            raise ConfigError(f"{place} can not be listened on for gRPC. Choose another --grpc_port.") from error
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Takes no more calls and waits for those under way, at most for their deadline."""
        if self._server is None:
            return
        if self._stopping is None:
            ending = self._server.stop(self._api.limits.deadline_seconds)
            self._stopping = asyncio.get_running_loop().create_task(ending)
        await self._stopping

    async def _answer(self, path: str, messages: Any, context: Any) -> bytes:
        del messages  # they are read from the context
        headers = {
            key.encode(): value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
            for key, value in context.invocation_metadata()
        }
        remaining = context.time_remaining()
        deadline = math.inf if remaining is None else time.monotonic() + remaining
        call = Call(id_of(headers), deadline=deadline)
        name = path.removeprefix(_PREFIX)
        try:
            self._access.check(path, headers)
            if name not in METHODS:
                raise RequestError("unimplemented", f"There is no method {path[:100]} here.")
            answer = await self._perform(name, call, context)
        except RequestError as error:
            code, failure = CODES[error.kind], error
        except asyncio.CancelledError:  # the client went away, or waits no longer
            self._note(path, call, _Code.CANCELLED, _Code.CANCELLED.name)
            raise
        except Exception:  # noqa: BLE001  whatever went wrong, the client gets an answer and the log the rest
            _LOG.exception("request %s failed", call.request_id)
            code = _Code.INTERNAL
            failure = RequestError("backend", f"The server made a mistake; its log says more under {call.request_id}.")
        else:
            self._note(path, call, _Code.OK, "")
            context.set_trailing_metadata((("x-request-id", call.request_id),))
            return answer
        self._note(path, call, code, failure.error_type)
        return await _abort(context, call, code, failure)

    async def _perform(self, name: str, call: Call, context: Any) -> bytes:
        if name == "ServerLive":
            return MESSAGES["ServerLiveResponse"](live=True).SerializeToString()
        if name == "ServerReady":
            return MESSAGES["ServerReadyResponse"](ready=self._api.status.ready).SerializeToString()
        request = await self._read(name, context)
        await self._api.wait_until_loaded(call.deadline)
        if name == "ServerMetadata":
            return MESSAGES["ServerMetadataResponse"](**server_metadata()).SerializeToString()
        if name == "ModelInfer":
            response = await self._infer(request, self._named(call, request.model_name))
            return response.SerializeToString()
        named = self._named(call, request.name)
        served = version_of(self._api, named, request.version)
        if name == "ModelReady":
            return MESSAGES["ModelReadyResponse"](ready=True).SerializeToString()
        return MESSAGES["ModelMetadataResponse"](**metadata_of(served, named.model)).SerializeToString()

    async def _read(self, name: str, context: Any) -> Any:
        limits = self._api.limits
        try:
            async with asyncio.timeout(limits.receive_seconds):
                content = await context.read()
        except TimeoutError:
            raise RequestError(
                "timeout_receiving", f"The message did not arrive within {limits.receive_seconds:g} seconds."
            ) from None
        if not isinstance(content, bytes):  # the end of the call; messages that are too large are refused below Python
            raise RequestError("too_large", f"There is no message of at most {limits.payload_limit} bytes.")
        try:
            return MESSAGES[f"{name}Request"].FromString(content)
        except DecodeError as error:
            raise RequestError("bad_request", f"The message is no {name}Request.") from error

    def _named(self, call: Call, name: str) -> Call:
        if not name:
            names = ", ".join(self._api.fleet.slots)
            raise RequestError("validation", f"The request names no model; there is {names}.")
        return Call(call.request_id, name, call.deadline, call.timing)

    async def _infer(self, request: Any, call: Call) -> Any:
        served = version_of(self._api, call, request.model_version)
        inputs = tensors.read_inputs(request)
        parameters = tensors.read_parameters(request.parameters)
        outputs = await Inference(self._api, call, served)(inputs.values, inputs.shapes, parameters)
        response = MESSAGES["ModelInferResponse"](
            model_name=call.model, model_version=served.version, id=request.id or new_id()
        )
        chosen = select_outputs(outputs, [output.name for output in request.outputs])
        tensors.write_outputs(response, chosen, inputs.raw)
        return response

    def _note(self, path: str, call: Call, code: grpc.StatusCode, failure: str) -> None:
        name = path.removeprefix(_PREFIX)
        route = f"grpc/{name if name in METHODS else 'other'}"
        self._api.service.metrics.count_request(route, call.timing, code.name, failure)
        handled = Handled("GRPC", path[:100], code.name, call.request_id)
        log_request(handled, call.timing, logging.DEBUG if name in _QUIET else logging.INFO)


async def _abort(context: Any, call: Call, code: grpc.StatusCode, failure: RequestError) -> bytes:
    """Ends a call with an error; never returns."""
    trailing = [("x-request-id", call.request_id)]
    if failure.retry_after:
        trailing.append(("grpc-retry-pushback-ms", str(math.ceil(1000 * failure.retry_after))))
    return await context.abort(code, failure.message[:_LONGEST_DETAILS], tuple(trailing))
