"""The application: all routes, one form of errors, and what happens when it starts and ends."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import flaxbert
from flaxbert.config import AccessConfig, DriftConfig, LimitsConfig, RolloutConfig
from flaxbert.core.runtime import host_memory_limit_bytes
from flaxbert.serve import schemas
from flaxbert.serve.access import Access
from flaxbert.serve.api import Api, Status, call_of, json_response
from flaxbert.serve.compilations import count_compilations
from flaxbert.serve.errors import RequestError
from flaxbert.serve.fleet import Fleet
from flaxbert.serve.loading import EngineOptions, ModelSpec
from flaxbert.serve.metrics import Metrics
from flaxbert.serve.middleware import Gate
from flaxbert.serve.openapi import describe
from flaxbert.serve.routes import inference, invoke, kserve, openai, operations, page, stream
from flaxbert.serve.service import Service
from flaxbert.serve.strict_json import StrictRoute
from flaxbert.serve.tls import Certificates
from flaxbert.serve.tracing import Tracing

_LOG = logging.getLogger("flaxbert.serve")

_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Failure, "description": text}
    for status, text in (
        (400, "There is no input"),
        (401, "A key is missing"),
        (403, "Not for this key"),
        (404, "No such model"),
        (408, "The body did not arrive in time"),
        (409, "Not possible now"),
        (413, "Too many inputs, or too many bytes"),
        (422, "An input that the model does not take"),
        (424, "The model can not do this"),
        (429, "Too many requests"),
        (503, "Not ready"),
        (504, "Not in time"),
    )
}


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise RequestError("bad_request", f"The body is no JSON: {first['ctx'].get('error', first['msg'])}.")
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        raise RequestError("validation", f"{place or 'body'}: {first['msg']}.")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        kind = {404: "Not found", 405: "Method not allowed"}.get(error.status_code, "Error")
        content = {"error": f"{kind}: {request.method} {request.url.path}", "error_type": kind}
        return json_response(content, error.headers, error.status_code)

    @app.exception_handler(RequestError)
    async def failed(request: Request, error: RequestError) -> Response:
        raise error


def _named_model(model: Annotated[str, Path(description="Name of a served model")]) -> str:
    return model


def _add_routes(app: FastAPI, api: Api) -> None:
    options: dict[str, Any] = {"responses": _FAILURES}
    waits = [Depends(api.when_loaded)]
    for make in (inference.make_router, invoke.make_router, stream.make_router):
        app.include_router(make(api), dependencies=waits, **options)
        named = [Depends(_named_model), *waits]
        app.include_router(make(api), prefix="/models/{model}", dependencies=named, **options)
    for make in (openai.make_router, kserve.make_router):
        app.include_router(make(api), dependencies=waits, **options)
    app.include_router(operations.make_router(api), **options)
    app.include_router(page.make_router())
    for prefix in ("", "/models/{model}"):
        router = APIRouter(route_class=StrictRoute, tags=["operations"])
        operations.add_info(router, api)
        operations.add_drift(router, api)
        app.include_router(
            router, prefix=prefix, dependencies=[*waits, Depends(_named_model)][: 2 if prefix else 1], **options
        )

    async def own_task(body: schemas.InvokeRequest, request: Request) -> Response:
        answer = await invoke.Invocation(api, call_of(request), api.served(request))(body.inputs, body.parameters or {})
        return api.send(request, answer)

    summary = {"summary": "Whatever the model's task is", "tags": ["the model's own task"], **options}
    app.add_api_route("/", own_task, methods=["POST"], **summary)
    app.add_api_route("/models/{model}", own_task, methods=["POST"], dependencies=[Depends(_named_model)], **summary)


def make_app(
    specs: tuple[ModelSpec, ...],
    *,
    engine: EngineOptions = EngineOptions(),
    limits: LimitsConfig = LimitsConfig(),
    access: AccessConfig = AccessConfig(),
    rollout: RolloutConfig = RolloutConfig(),
    grpc_address: tuple[str, int] | None = None,
    drift: DriftConfig = DriftConfig(),
    tracing: Tracing | None = None,
    certificates: Certificates | None = None,
) -> FastAPI:
    """Returns the application of some models; they are loaded when it starts.

    Args:
      specs: What is served.
      engine: How it is run.
      limits: What is admitted.
      access: Who is admitted.
      rollout: How versions change.
      grpc_address: Host and port for gRPC, which is served beside; needs the extra ``grpc``. None: not at all.
      drift: How inputs and answers are watched.
      tracing: Where spans go; None sends none.
      certificates: What gRPC encrypts with; watched for changes. None: not encrypted. (The connections of HTTP are its server's.)

    Raises:
      ConfigError: A file of keys can not be read.
    """
    metrics = Metrics()
    service = Service(limits, engine.batching, metrics, drift)
    status, guard = Status(), Access(access)
    metrics.ready.set_function(lambda: float(status.ready and service.executor.alive))
    metrics.memory_limit.set(host_memory_limit_bytes())
    fleet = Fleet(specs, engine, rollout, service)
    api = Api(fleet, service, status, guard.has_admins)
    rpc = _make_rpc(api, guard, grpc_address, certificates)

    app = FastAPI(
        title="flaxbert",
        version=flaxbert.__version__,
        description="Encoders of the BERT family, for every task.",
        lifespan=_lifespan(api, rpc, tracing, certificates),
        redoc_url=None,
    )
    app.router.route_class = StrictRoute
    app.openapi = describe(app, [spec.name for spec in specs])  # type: ignore[method-assign]
    app.state.api = api
    app.state.rpc = rpc
    _handle_errors(app)
    _add_routes(app, api)
    app.add_middleware(Gate, limits=limits, access=guard, metrics=metrics, tracing=tracing)
    if access.cors_allow_origin:  # outside of the gate: browsers ask without a key whether they may ask
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.cors_allow_origin),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
        )
    return app


def _make_rpc(api: Api, guard: Access, address: tuple[str, int] | None, certificates: Certificates | None) -> Any:
    """Returns the server for gRPC, or None where there is none."""
    if address is None:
        return None
    from flaxbert.serve.rpc.server import RpcServer

    return RpcServer(api, guard, address, certificates)


def _lifespan(api: Api, rpc: Any, tracing: Tracing | None, certificates: Certificates | None) -> Any:
    """Returns what happens between the start and the end of the application."""
    service = api.service

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        loading = asyncio.ensure_future(_load(api, rpc))
        app.state.loading = loading
        watching = asyncio.ensure_future(_watch_after(loading, api.fleet))
        others = [asyncio.ensure_future(_judge(service))]
        if certificates is not None:
            others.append(asyncio.ensure_future(certificates.watch()))
        try:
            yield
        finally:
            if rpc is not None:
                await rpc.stop()
            for task in (*others, watching, loading):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
            service.stop()
            if tracing is not None:
                await tracing.close()

    return lifespan


async def _load(api: Api, rpc: Any) -> None:
    if rpc is not None:
        await rpc.start()
    await api.fleet.load_all()
    count_compilations(api.service.metrics.compilations)
    api.status.loaded.set()
    _LOG.info("ready: %s", ", ".join(api.fleet.slots))


async def _judge(service: Service) -> None:
    """Tells the log what drifts, whether anybody asks or not."""
    while service.drift.config.enabled:
        await asyncio.sleep(service.drift.config.check_seconds)
        service.drift.judge()


async def _watch_after(loading: "asyncio.Future[None]", fleet: Fleet) -> None:
    await loading
    await fleet.watch()
