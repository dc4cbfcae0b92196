"""Routes of text-embeddings-inference, and those that it lacks: entities, answers, masks, zero-shot labels."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from flaxbert.serve import schemas
from flaxbert.serve.api import Api
from flaxbert.serve.endpoints import ENDPOINTS, Endpoint, as_list
from flaxbert.serve.errors import RequestError
from flaxbert.serve.operations import text
from flaxbert.serve.strict_json import StrictRoute, direct_route
from flaxbert.weights.sentence_transformers import SentencePooling


def add_endpoint(router: APIRouter, api: Api, endpoint: Endpoint) -> None:
    """Adds the route of an endpoint.

    Args:
      router: Where it goes.
      api: What it has at hand.
      endpoint: What it answers.
    """

    async def answer(body: endpoint.schema, request: Request) -> Response:
        job = endpoint.read(body, api.truncation)
        return api.send(request, await api.perform_for(request, job, endpoint.suits))

    router.add_api_route(
        f"/{endpoint.name}",
        answer,
        methods=["POST"],
        summary=endpoint.summary,
        name=endpoint.name.replace("-", "_"),
        route_class_override=direct_route(endpoint.schema, answer, api.when_loaded),
    )


def add_tokens(router: APIRouter, api: Api) -> None:
    """Adds the routes that only read and write tokens.

    Args:
      router: Where they go.
      api: What they have at hand.
    """

    @router.post("/tokenize", summary="Tokens of texts")
    async def tokenize(body: schemas.TokenizeRequest, request: Request) -> Response:
        texts = as_list(body.inputs)
        api.check_batch(len(texts))
        subject = api.served(request).subject
        pooling = subject.model.pooling or SentencePooling()
        try:
            lead = pooling.find_prompt(body.prompt_name)
        except ValueError as error:
            raise RequestError("validation", str(error)) from error
        special = body.add_special_tokens

        def work() -> Any:
            return text.tokenize_texts(subject, texts, add_special_tokens=special, lead=lead)

        return api.send(request, await api.service.in_thread(work))

    @router.post("/decode", summary="Texts of tokens")
    async def decode(body: schemas.DecodeRequest, request: Request) -> Response:
        ids = as_list(body.ids)
        api.check_batch(len(ids))
        subject, skip = api.served(request).subject, body.skip_special_tokens

        def work() -> Any:
            return text.decode_ids(subject, ids, skip_special_tokens=skip)

        return api.send(request, await api.service.in_thread(work))


def make_router(api: Api) -> APIRouter:
    """Returns these routes.

    Args:
      api: What they have at hand.
    """
    router = APIRouter(route_class=StrictRoute, tags=["inference"])
    for endpoint in ENDPOINTS.values():
        add_endpoint(router, api, endpoint)
    add_tokens(router, api)
    return router
