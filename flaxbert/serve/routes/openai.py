"""``/v1/embeddings`` and ``/v1/models`` of OpenAI's API."""

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from flaxbert.serve import schemas
from flaxbert.serve.api import Api
from flaxbert.serve.endpoints import as_list
from flaxbert.serve.functions import VECTORS
from flaxbert.serve.operations import embedding
from flaxbert.serve.strict_json import StrictRoute


def _model_name(api: Api, name: str) -> str:
    """Returns the model that a client means; a name that is not served here, such as OpenAI's own, means the first."""
    return name if name in api.fleet.slots else ""


def _shown(vector: np.ndarray, encoding: str) -> Any:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector


def make_router(api: Api) -> APIRouter:
    """Returns these routes.

    Args:
      api: What they have at hand.
    """
    router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])

    @router.post("/v1/embeddings", summary="Vectors of texts")
    @router.post("/embeddings", include_in_schema=False)
    async def embeddings(body: schemas.OpenAIRequest, request: Request) -> Response:
        inputs = as_list(body.input)
        api.check_batch(len(inputs))
        vectors = await api.run(
            request,
            embedding.embed,
            suits=lambda served: VECTORS in served.subject.functions,
            name=_model_name(api, body.model),
            inputs=inputs,
            truncation=api.truncation(None),
            dimensions=body.dimensions,
        )
        data = [
            {"object": "embedding", "index": index, "embedding": _shown(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        timing = request.state.timing
        usage = {"prompt_tokens": timing.num_tokens, "total_tokens": timing.num_tokens}
        answer = {"object": "list", "data": data, "model": body.model or timing.model, "usage": usage}
        return api.send(request, answer)

    @router.get("/v1/models", summary="The models")
    async def models(request: Request) -> Response:
        entries = [{"id": name, "object": "model", "created": 0, "owned_by": "flaxbert"} for name in api.fleet.slots]
        return api.send(request, {"object": "list", "data": entries})

    return router
