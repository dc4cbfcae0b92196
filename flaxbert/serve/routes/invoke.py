"""One route for whatever the model's task is, in the forms of the hub's inference API, SageMaker, Vertex and KServe 1."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from flaxbert.serve import schemas
from flaxbert.serve.api import Api, call_of
from flaxbert.serve.errors import RequestError
from flaxbert.serve.functions import MASKED, SPARSE, TOKENS, VECTORS
from flaxbert.serve.loading import Served
from flaxbert.serve.operations import classification, embedding, masks, spans
from flaxbert.serve.routes.inference import as_list, split_pairs
from flaxbert.serve.service import Call
from flaxbert.serve.strict_json import StrictRoute


def _parse(schema: type[BaseModel], value: Any) -> Any:
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RequestError("validation", f"{place or 'inputs'}: {first['msg']}.") from error


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
        functions, model = self._served.subject.functions, self._served.subject.model
        if "candidate_labels" in parameters:
            return await self._zero_shot(inputs, parameters)
        if isinstance(inputs, Mapping) and "source_sentence" in inputs:
            return await self._similarity(inputs, parameters)
        if model.task == "question-answering":
            return await self._answer(inputs, parameters)
        if model.task == "token-classification":
            return await self._tag(inputs)
        if model.task in classification.SEQUENCE_TASKS:
            return await self._classify(inputs, parameters)
        if MASKED in functions:
            return await self._fill(inputs, parameters)
        return await self._embed(inputs, parameters)

    async def _run(self, operation: Any, **arguments: Any) -> Any:
        return await self._api.answer(self._call, self._served, operation, **arguments)

    async def _zero_shot(self, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        body = _parse(schemas.ZeroShotRequest, {"inputs": inputs, "parameters": parameters})
        texts, options = as_list(body.inputs), body.parameters
        self._api.check_batch(len(texts))
        self._api.check_batch(len(options.candidate_labels))
        answer = await self._run(
            classification.zero_shot,
            texts=texts,
            labels=options.candidate_labels,
            truncation=self._api.truncation(options),
            multi_label=options.multi_label,
            template=options.hypothesis_template,
        )
        return answer[0] if isinstance(body.inputs, str) else answer

    async def _similarity(self, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        body = _parse(schemas.SimilarityRequest, {"inputs": inputs, "parameters": parameters})
        self._api.check_batch(len(body.inputs.sentences))
        return await self._run(
            embedding.similarity,
            source=body.inputs.source_sentence,
            sentences=body.inputs.sentences,
            truncation=self._api.truncation(body.parameters),
            prompt_name=body.parameters.prompt_name,
        )

    async def _answer(self, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        body = _parse(schemas.QaRequest, {"inputs": inputs, "parameters": parameters})
        several = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        self._api.check_batch(len(several))
        answer = await self._run(
            spans.answer,
            questions=[entry.question for entry in several],
            contexts=[entry.context for entry in several],
            top_k=body.parameters.top_k,
            max_answer_length=body.parameters.max_answer_len or 0,
            allow_none=body.parameters.handle_impossible_answer,
        )
        if body.parameters.top_k == 1:
            answer = [found[0] for found in answer]
        return answer if isinstance(body.inputs, list) else answer[0]

    async def _tag(self, inputs: Any) -> Any:
        body = _parse(schemas.NerRequest, {"inputs": inputs})
        texts = as_list(body.inputs)
        self._api.check_batch(len(texts))
        answer = await self._run(spans.tag, texts=texts)
        return answer[0] if isinstance(body.inputs, str) else answer

    async def _classify(self, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        known = {
            key: parameters[key] for key in ("truncate", "truncation_direction", "raw_scores") if key in parameters
        }
        if parameters.get("function_to_apply") == "none":
            known["raw_scores"] = True
        body = _parse(schemas.PredictRequest, {"inputs": inputs, **known})
        texts, pairs, _ = split_pairs(body.inputs)
        self._api.check_batch(len(texts))
        answer = await self._run(
            classification.classify,
            texts=texts,
            pairs=pairs,
            truncation=self._api.truncation(body),
            raw_scores=body.raw_scores,
        )
        top_k = parameters.get("top_k")
        if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
            raise RequestError("validation", f"top_k is {top_k!r}, but must be a number from 1 on.")
        return [labels[:top_k] for labels in answer]

    async def _fill(self, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        body = _parse(schemas.FillMaskRequest, {"inputs": inputs, "parameters": parameters})
        texts, options = as_list(body.inputs), body.parameters
        self._api.check_batch(len(texts))
        answer = await self._run(
            masks.fill_mask,
            texts=texts,
            truncation=self._api.truncation(options),
            top_k=options.top_k,
            targets=options.targets,
        )
        found = [several[0] if len(several) == 1 else several for several in answer]
        return found[0] if isinstance(body.inputs, str) else found

    async def _embed(self, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        body = _parse(schemas.EmbedRequest, {"inputs": inputs, **parameters})
        texts = as_list(body.inputs)
        self._api.check_batch(len(texts))
        options: dict[str, Any] = {"inputs": texts, "truncation": self._api.truncation(body)}
        if SPARSE in self._served.subject.functions:
            return await self._run(embedding.embed_sparse, **options)
        options["prompt_name"] = body.prompt_name
        if VECTORS in self._served.subject.functions:
            return await self._run(embedding.embed, **options, normalize=body.normalize, dimensions=body.dimensions)
        self._served.subject.require(TOKENS, "vectors of tokens")
        return [row.tolist() for row in await self._run(embedding.embed_tokens, **options)]


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
