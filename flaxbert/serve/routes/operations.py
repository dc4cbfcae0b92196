"""What operators need: health, what is served, metrics, and moving aliases."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

import flaxbert
from flaxbert.errors import FlaxbertError, RegistryError
from flaxbert.registry import Reference, Registry
from flaxbert.registry.names import CHAMPION
from flaxbert.serve.api import Api, json_response
from flaxbert.serve.drift import Judgement
from flaxbert.serve.errors import RequestError
from flaxbert.serve.fleet import Slot
from flaxbert.serve.functions import MASKED
from flaxbert.serve.loading import open_registry, reference_of
from flaxbert.serve.model_type import model_type
from flaxbert.serve.strict_json import StrictRoute

_REGISTRY_RETRY_SECONDS = 5.0


class MoveRequest(BaseModel):
    """Where an alias goes."""

    version: int
    alias: str = CHAMPION
    force: str = ""


class RollbackRequest(BaseModel):
    """Which alias goes back."""

    alias: str = CHAMPION


def info_of(api: Api, slot: Slot) -> dict[str, Any]:
    """Returns what a model is, as text-embeddings-inference says it.

    Args:
      api: What routes have at hand.
      slot: The model.
    """
    served = api.fleet.choose(slot, "")
    plan, limits = served.engine.plan, api.limits
    return {
        "model_id": slot.spec.source,
        "model_sha": served.digest,
        "model_dtype": served.dtype,
        "served_model_name": slot.spec.name,
        "model_type": model_type(served.subject),
        "task": served.subject.model.task,
        "model_version": served.version,
        "engine": served.engine.name,
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_input_length": served.subject.max_length,
        "max_batch_tokens": plan.max_batch_tokens,
        "max_batch_requests": plan.rows[-1],
        "max_client_batch_size": limits.max_client_batch_size,
        "auto_truncate": limits.auto_truncate,
        "tokenization_workers": served.subject.tokenizers.size,
        "version": flaxbert.__version__,
        "sha": None,
        "docker_label": None,
    }


def _described(slot: Slot) -> dict[str, Any]:
    versions = {
        role: {
            "version": served.version,
            "digest": served.digest,
            "dtype": served.dtype,
            "engine": served.engine.name,
            "task": served.subject.model.task,
            "functions": list(served.subject.functions),
            "mask_token": served.subject.model.tokenizer.mask_token if MASKED in served.subject.functions else None,
            "labels": list(served.subject.model.config.label_names or ()),
            "metrics": served.record.get("metrics", {}),
            "size_bytes": served.size_bytes,
        }
        for role, served in slot.versions.items()
    }
    return {"name": slot.spec.name, "source": slot.spec.source, "versions": versions, "failed": dict(slot.failed)}


def add_health(router: APIRouter, api: Api) -> None:
    """Adds the routes that say how the server is.

    Args:
      router: Where they go.
      api: What they have at hand.
    """

    @router.get("/health/live", summary="Whether the process lives")
    async def live() -> Response:
        return json_response({"live": True})

    async def health() -> Response:
        if api.status.ready and api.service.executor.alive:
            return Response(status_code=200)
        raise RequestError(
            "unhealthy", "The server ends." if api.status.draining else "The models are being loaded.", 1.0
        )

    router.add_api_route("/health", health, methods=["GET"], summary="Whether it takes requests")
    router.add_api_route("/health/ready", health, methods=["GET"], summary="The same")
    router.add_api_route("/ping", health, methods=["GET"], include_in_schema=False)

    @router.get("/metrics", summary="Metrics for Prometheus")
    async def metrics() -> Response:
        return Response(api.service.metrics.expose(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/models", summary="The models and their versions")
    async def models() -> Response:
        return json_response({"models": [_described(slot) for slot in api.fleet.slots.values()]})


def add_drift(router: APIRouter, api: Api) -> None:
    """Adds the route that compares what comes in and goes out with the training data.

    Args:
      router: Where it goes.
      api: What it has at hand.
    """

    @router.get("/drift", summary="How far inputs and answers are from those of training")
    async def drift(request: Request) -> Response:
        name, found = request.path_params.get("model"), api.service.drift.judge()
        slots = [api.fleet.find(name)] if name else list(api.fleet.slots.values())
        models = [_drift_of(slot, found) for slot in slots]
        return json_response(models[0] if name else {"enabled": api.service.drift.config.enabled, "models": models})


def _drift_of(slot: Slot, found: Mapping[tuple[str, str], Sequence[Judgement]]) -> dict[str, Any]:
    roles: dict[str, list[str]] = {}
    for role, served in slot.versions.items():
        roles.setdefault(served.version, []).append(role)
    versions = [
        {
            "version": version,
            "roles": several,
            "measures": [judgement.to_json() for judgement in found.get((slot.spec.name, version), ())],
        }
        for version, several in roles.items()
    ]
    alert = any(measure["alert"] for version in versions for measure in version["measures"])
    return {"name": slot.spec.name, "alert": alert, "versions": versions}


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Answers what a registry refuses with 409, and one that can not be reached with 503."""
    try:
        yield
    except RegistryError as error:
        raise RequestError("unhealthy", str(error), _REGISTRY_RETRY_SECONDS) from error
    except FlaxbertError as error:
        raise RequestError("conflict", str(error)) from error


def add_admin(router: APIRouter, api: Api) -> None:
    """Adds the routes that change what is served.

    Args:
      router: Where they go.
      api: What they have at hand.
    """

    def registered(name: str) -> tuple[Slot, str]:
        slot = api.fleet.find(name)
        if not slot.spec.from_registry:
            raise RequestError("conflict", f"The model '{name}' is a folder; only models of a registry have versions.")
        return slot, reference_of(slot.spec).name

    async def change(name: str, move: Any) -> Response:
        slot, model = registered(name)
        with _refusals():
            await api.service.in_thread(move, open_registry(), model)
        slot.failed.clear()
        await api.fleet.refresh_safely(slot)  # the alias has moved, whatever comes of that here
        return json_response(_described(slot))

    @router.get("/admin/models/{name}", summary="All versions of a model")
    async def versions(name: str) -> Response:
        slot, model = registered(name)
        with _refusals():
            state = await api.service.in_thread(lambda: open_registry().state(model))
        known = [
            {"version": record.number, "metrics": dict(record.metrics), "time": record.time, "note": record.note}
            for record in state.versions.values()
        ]
        return json_response({**_described(slot), "aliases": dict(state.aliases), "known": known})

    @router.post("/admin/models/{name}/promote", summary="Move an alias to a version, if its rule allows it")
    async def promote(name: str, body: MoveRequest) -> Response:
        def move(registry: Registry, model: str) -> None:
            registry.promote(Reference(model, body.version), body.alias, force=body.force)

        return await change(name, move)

    @router.post("/admin/models/{name}/rollback", summary="Move an alias to where it stood before")
    async def rollback(name: str, body: RollbackRequest) -> Response:
        return await change(name, lambda registry, model: registry.roll_back(model, body.alias))


def make_router(api: Api) -> APIRouter:
    """Returns these routes.

    Args:
      api: What they have at hand.
    """
    router = APIRouter(route_class=StrictRoute, tags=["operations"])
    add_health(router, api)
    add_admin(router, api)
    return router


def add_info(router: APIRouter, api: Api) -> None:
    """Adds the route that says what a model is.

    Args:
      router: Where it goes.
      api: What it has at hand.
    """

    @router.get("/info", summary="What the model is")
    async def info(request: Request) -> Response:
        return json_response(info_of(api, api.fleet.find(request.path_params.get("model"))))
