"""One route for whatever the model's task is, in the forms of the hub's inference API, SageMaker, Vertex and KServe 1."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from flaxbert.serve import endpoints, schemas
from flaxbert.serve.api import Api, call_of
from flaxbert.serve.endpoints import Endpoint, Job, parse
from flaxbert.serve.errors import RequestError
from flaxbert.serve.functions import MASKED, SPARSE, VECTORS
from flaxbert.serve.loading import Served
from flaxbert.serve.operations import classification
from flaxbert.serve.service import Call
from flaxbert.serve.strict_json import StrictRoute

_PREDICT_OPTIONS = ("truncate", "truncation_direction", "raw_scores")


class Invocation:
    """One input of the model's own task.

    Args:
      api: What routes have at hand.
      call: The request.
      served: The model.
    """

    def __init__(self, api: Api, call: Call, served: Served) -> None:
        self._api = api
        self._call = call
        self._served = served

    async def __call__(self, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        """Returns the answer as the hub's inference API gives it.

        Args:
          inputs: What the task takes.
          parameters: Options.

        Raises:
          RequestError: They do not fit the task.
        """
        endpoint = self._endpoint(inputs, parameters)
        if endpoint is endpoints.PREDICT:
            job = self._labels(inputs, parameters)
        elif endpoint in (endpoints.EMBED, endpoints.EMBED_ALL, endpoints.EMBED_SPARSE):
            job = self._read(endpoint, {"inputs": inputs, **parameters})
        else:
            job = self._read(endpoint, {"inputs": inputs, "parameters": parameters})
        return await self._api.perform(self._call, self._served, job)

    def _endpoint(self, inputs: Any, parameters: Mapping[str, Any]) -> Endpoint:
        """Returns what the model is asked for."""
        functions, task = self._served.subject.functions, self._served.subject.model.task
        if "candidate_labels" in parameters:
            return endpoints.ZERO_SHOT
        if isinstance(inputs, Mapping) and "source_sentence" in inputs:
            return endpoints.SIMILARITY
        if task == "question-answering":
            return endpoints.QA
        if task == "token-classification":
            return endpoints.NER
        if task in classification.SEQUENCE_TASKS:
            return endpoints.PREDICT
        if MASKED in functions:
            return endpoints.FILL_MASK
        if SPARSE in functions:
            return endpoints.EMBED_SPARSE
        return endpoints.EMBED if VECTORS in functions else endpoints.EMBED_ALL

    def _read(self, endpoint: Endpoint, value: Any) -> Job:
        return endpoint.read(parse(endpoint.schema, value), self._api.truncation)

    def _labels(self, inputs: Any, parameters: Mapping[str, Any]) -> Job:
        """Returns a job for labels, which the hub's API gives as lists of lists, the best ``top_k`` alone."""
        known = {key: parameters[key] for key in _PREDICT_OPTIONS if key in parameters}
        if parameters.get("function_to_apply") == "none":
            known["raw_scores"] = True
        job = self._read(endpoints.PREDICT, {"inputs": inputs, **known})
        top_k = parameters.get("top_k")
        if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
            raise RequestError("validation", f"top_k is {top_k!r}, but must be a number from 1 on.")
        return dataclasses.replace(job, shape=lambda answer: [labels[:top_k] for labels in answer])


async def predictions_of(api: Api, request: Request, body: schemas.InstancesRequest, name: str = "") -> Response:
    """Answers ``{"instances": [...]}`` or the plain ``{"inputs": ...}`` with ``{"predictions": [...]}``.

    Args:
      api: What routes have at hand.
      request: The request.
      body: Its body.
      name: The model, where its path does not name it.

    Returns:
      The answer.

    Raises:
      RequestError: It holds neither.
    """
    served = api.served(request, name=name)
    invoke, parameters = Invocation(api, call_of(request), served), body.parameters or {}
    if body.instances is not None:
        api.check_batch(len(body.instances))
        opened = [
            entry["inputs"] if isinstance(entry, Mapping) and "inputs" in entry else entry for entry in body.instances
        ]
        if served.subject.model.task in classification.SEQUENCE_TASKS and all(isinstance(e, str) for e in opened):
            opened = [[entry] for entry in opened]
        return api.send(request, {"predictions": await invoke(opened, parameters)})
    if body.inputs is None:
        raise RequestError("validation", "The body has neither inputs nor instances.")
    inputs = body.inputs
    if served.subject.model.task in classification.SEQUENCE_TASKS and isinstance(inputs, list):
        inputs = [[entry] if isinstance(entry, str) else entry for entry in inputs]  # here a list is several texts
    return api.send(request, {"predictions": await invoke(inputs, parameters)})


def make_router(api: Api) -> APIRouter:
    """Returns these routes.

    Args:
      api: What they have at hand.
    """
    router = APIRouter(route_class=StrictRoute, tags=["the model's own task"])

    async def invoke(body: schemas.InvokeRequest, request: Request) -> Response:
        answer = await Invocation(api, call_of(request), api.served(request))(body.inputs, body.parameters or {})
        return api.send(request, answer)

    router.add_api_route("/invocations", invoke, methods=["POST"], summary="Whatever the model's task is")

    @router.post("/vertex", summary="The same for several inputs")
    async def vertex(body: schemas.InstancesRequest, request: Request) -> Response:
        return await predictions_of(api, request, body)

    return router
