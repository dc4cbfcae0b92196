"""The Open Inference Protocol (KServe 2) over REST, with its binary extension, and KServe 1."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError

import flaxbert
from flaxbert.serve import schemas, tensors
from flaxbert.serve.api import Api, call_of, json_bytes, json_response, new_id
from flaxbert.serve.errors import RequestError
from flaxbert.serve.functions import VECTORS
from flaxbert.serve.loading import Served
from flaxbert.serve.operations import classification, embedding
from flaxbert.serve.routes.invoke import Invocation, predictions_of
from flaxbert.serve.service import Call
from flaxbert.serve.strict_json import StrictRoute
from flaxbert.weights.sentence_transformers import SentencePooling

LENGTH_HEADER = "Inference-Header-Content-Length"

Output = tuple[str, Any, Sequence[int]]
"""Name, values and shape."""


def server_metadata() -> dict[str, Any]:
    """Returns what the server is."""
    return {"name": "flaxbert", "version": flaxbert.__version__, "extensions": ["binary_tensor_data"]}


def metadata_of(served: Served, name: str) -> dict[str, Any]:
    """Returns the inputs and outputs of a model.

    Args:
      served: The model.
      name: What clients call it.
    """
    text = lambda key: {"name": key, "datatype": tensors.BYTES, "shape": [-1]}
    model = served.subject.model
    if VECTORS in served.subject.functions:
        width = (model.pooling or SentencePooling()).output_size(model.config.hidden_size)
        inputs = [text("text"), {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]}]
        outputs = [{"name": "embedding", "datatype": "FP32", "shape": [-1, width]}]
    elif model.task in classification.SEQUENCE_TASKS:
        inputs = [text("text"), text("text_pair")]
        num_labels = len(classification.label_names(served.subject))
        outputs = [text("label"), {"name": "scores", "datatype": "FP32", "shape": [-1, num_labels]}]
    elif model.task == "question-answering":
        inputs, outputs = [text("question"), text("context")], [text("json")]
    else:
        inputs, outputs = [text("text")], [text("json")]
    return {
        "name": name,
        "versions": [served.version],
        "platform": f"flaxbert_{served.engine.name}",
        "inputs": inputs,
        "outputs": outputs,
    }


def _texts(values: Mapping[str, Any], name: str) -> list[str]:
    found = values.get(name)
    if not isinstance(found, list):
        raise RequestError("validation", f"The model takes a tensor '{name}' of type BYTES.")
    return found


def _ids(
    values: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], check_batch: Callable[[int], None]
) -> list[list[int]]:
    ids, mask = values["input_ids"], values.get("attention_mask")
    shape = shapes["input_ids"]
    if len(shape) != 2 or not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
        raise RequestError("validation", "input_ids must be whole numbers of shape [texts, tokens].")
    check_batch(shape[0])  # of rows without tokens there may be billions
    rows = ids.reshape(shape)
    if mask is None:
        return rows.tolist()
    if not isinstance(mask, np.ndarray) or list(shapes["attention_mask"]) != list(shape):
        raise RequestError("validation", "attention_mask must have the shape of input_ids.")
    return [row[keep.astype(bool)].tolist() for row, keep in zip(rows, mask.reshape(shape), strict=True)]


class Inference:
    """One request of the protocol.

    Args:
      api: What routes have at hand.
      call: The request.
      served: The model.
    """

    def __init__(self, api: Api, call: Call, served: Served) -> None:
        self._api = api
        self._call = call
        self._served = served

    async def __call__(
        self, values: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], parameters: Mapping[str, Any]
    ) -> list[Output]:
        """Returns the outputs.

        Args:
          values: Inputs by name, flat.
          shapes: Their shapes.
          parameters: Options.

        Raises:
          RequestError: The inputs do not fit the model.
        """
        if VECTORS in self._served.subject.functions:
            return await self._embed(values, shapes)
        if self._served.subject.model.task in classification.SEQUENCE_TASKS:
            return await self._classify(values)
        if self._served.subject.model.task == "question-answering":
            questions, contexts = _texts(values, "question"), _texts(values, "context")
            if len(questions) != len(contexts):
                raise RequestError("validation", "There must be as many contexts as questions.")
            inputs: Any = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
        else:
            inputs = _texts(values, "text")
        answer = await Invocation(self._api, self._call, self._served)(inputs, parameters)
        lines = [json_bytes(entry).decode() for entry in answer]
        return [("json", lines, [len(lines)])]

    async def _run(self, operation: Any, **arguments: Any) -> Any:
        return await self._api.answer(self._call, self._served, operation, **arguments)

    async def _embed(self, values: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> list[Output]:
        if "input_ids" in values:
            inputs: Any = _ids(values, shapes, self._api.check_batch)
        else:
            inputs = _texts(values, "text")
            self._api.check_batch(len(inputs))
        pooling = self._served.subject.model.pooling or SentencePooling()
        vectors = await self._run(
            embedding.embed, inputs=inputs, truncation=self._api.truncation(None), normalize=pooling.normalize
        )
        return [("embedding", vectors, vectors.shape)]

    async def _classify(self, values: Mapping[str, Any]) -> list[Output]:
        texts = _texts(values, "text")
        pairs = _texts(values, "text_pair") if "text_pair" in values else None
        if pairs is not None and len(pairs) != len(texts):
            raise RequestError("validation", "There must be as many second texts as texts.")
        self._api.check_batch(len(texts))
        answer = await self._run(
            classification.classify, texts=texts, pairs=pairs, truncation=self._api.truncation(None)
        )
        names = classification.label_names(self._served.subject)
        scores = [[{e["label"]: e["score"] for e in row}[name] for name in names] for row in answer]
        labels = [row[0]["label"] for row in answer]
        array = np.asarray(scores, np.float32).reshape(len(texts), len(names))
        return [("label", labels, [len(labels)]), ("scores", array, array.shape)]


def _parse(body: bytes) -> schemas.InferRequest:
    try:
        return schemas.InferRequest.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise RequestError("bad_request", f"The body is no JSON: {error}.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RequestError("validation", f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}.") from error


def select_outputs(outputs: Sequence[Output], names: Sequence[str]) -> list[Output]:
    """Returns the outputs that a client asked for, in its order; all where it names none.

    Args:
      outputs: What there is.
      names: What it asked for.

    Raises:
      RequestError: There is no such output.
    """
    by_name = {output[0]: output for output in outputs}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise RequestError("validation", f"There is no output '{unknown[0]}'; there are {', '.join(by_name)}.")
    return [by_name[name] for name in names or by_name]


def _answer(body: schemas.InferRequest, served: Served, name: str, outputs: Sequence[Output]) -> Response:
    """Returns the outputs that a client asked for, as JSON or bytes."""
    wanted = body.outputs or [schemas.TensorWanted(name=output[0]) for output in outputs]
    all_binary = tensors.wants_binary(body.parameters, "binary_data_output")
    described, raw = [], []
    chosen = select_outputs(outputs, [entry.name for entry in wanted])
    for entry, (_, values, shape) in zip(wanted, chosen, strict=True):
        tensor = tensors.describe(entry.name, values, shape)
        if tensors.wants_binary(entry.parameters, "binary_data") or (not body.outputs and all_binary):
            raw.append(tensors.to_bytes(values))
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = values.reshape(-1) if isinstance(values, np.ndarray) else values
        described.append(tensor)
    content = {"model_name": name, "model_version": served.version, "id": body.id or new_id(), "outputs": described}
    head = json_bytes(content)
    if not raw:
        return Response(head, media_type="application/json")
    headers = {LENGTH_HEADER: str(len(head))}
    return Response(b"".join([head, *raw]), headers=headers, media_type="application/octet-stream")


_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}},
    }
}
"""The body is read by hand, because bytes may follow the JSON; ``serve.openapi`` describes it."""


def add_infer(router: APIRouter, api: Api) -> None:
    """Adds the route that computes.

    Args:
      router: Where it goes.
      api: What it has at hand.
    """

    async def infer(request: Request, model: str, version: str = "") -> Response:
        call, content = call_of(request), await request.body()
        served = version_of(api, call, version)  # nothing is awaited from here on until it counts the request
        head, raw = tensors.split_body(content, request.headers.get(LENGTH_HEADER))
        body = _parse(head)
        values = tensors.read_inputs(body.inputs, raw)
        shapes = {tensor.name: tensor.shape for tensor in body.inputs}
        outputs = await Inference(api, call, served)(values, shapes, body.parameters or {})
        return _answer(body, served, model, outputs)

    async def infer_latest(request: Request, model: str) -> Response:
        return await infer(request, model)

    extra: dict[str, Any] = {"openapi_extra": _SCHEMA, "methods": ["POST"], "summary": "Tensors in, tensors out"}
    router.add_api_route("/v2/models/{model}/infer", infer_latest, **extra)
    router.add_api_route("/v2/models/{model}/versions/{version}/infer", infer, **extra)


def version_of(api: Api, call: Call, version: str) -> Served:
    """Returns the version of a model that a client asked for.

    Args:
      api: What routes have at hand.
      call: Its request, which names the model.
      version: The version, or empty for whichever answers this request.

    Raises:
      RequestError: There is none.
    """
    slot = api.fleet.find(call.model)
    served = api.fleet.choose(slot, call.request_id)
    if version:
        loaded = {entry.version: entry for entry in slot.versions.values()}
        if version not in loaded:
            raise RequestError(
                "not_found", f"Version {version[:20]!r} of '{call.model}' is not loaded; there is {', '.join(loaded)}."
            )
        served = loaded[version]
    return served


def add_state(router: APIRouter, api: Api) -> None:
    """Adds the routes that say what there is.

    Args:
      router: Where they go.
      api: What they have at hand.
    """

    @router.get("/v2", summary="The server")
    async def server() -> Response:
        return json_response(server_metadata())

    @router.get("/v2/health/live", summary="Whether it lives")
    async def live() -> Response:
        return json_response({"live": True})

    @router.get("/v2/health/ready", summary="Whether all models can answer")
    async def ready() -> Response:
        state = api.status.ready
        return json_response({"ready": state}, status=200 if state else 503)

    async def metadata(request: Request, model: str, version: str = "") -> Response:
        return json_response(metadata_of(version_of(api, call_of(request), version), model))

    async def metadata_latest(request: Request, model: str) -> Response:
        return await metadata(request, model)

    async def model_ready(request: Request, model: str, version: str = "") -> Response:
        version_of(api, call_of(request), version)
        return json_response({"name": model, "ready": True})

    async def model_ready_latest(request: Request, model: str) -> Response:
        return await model_ready(request, model)

    router.add_api_route("/v2/models/{model}", metadata_latest, methods=["GET"], summary="Inputs and outputs")
    router.add_api_route("/v2/models/{model}/versions/{version}", metadata, methods=["GET"], summary="The same")
    router.add_api_route("/v2/models/{model}/ready", model_ready_latest, methods=["GET"], summary="Whether it answers")
    router.add_api_route(
        "/v2/models/{model}/versions/{version}/ready", model_ready, methods=["GET"], summary="The same"
    )


def add_first(router: APIRouter, api: Api) -> None:
    """Adds the routes of KServe 1.

    Args:
      router: Where they go.
      api: What they have at hand.
    """

    @router.get("/v1/models/{model}", summary="Whether a model answers")
    async def state(model: str, request: Request) -> Response:
        version_of(api, call_of(request), "")
        entry = {"name": model, "ready": True, "id": model, "object": "model", "created": 0, "owned_by": "flaxbert"}
        return json_response(entry)

    @router.post("/v1/models/{model}:predict", summary="Several inputs of the model's own task")
    async def predict(model: str, body: schemas.InstancesRequest, request: Request) -> Response:
        return await predictions_of(api, request, body, model)


def make_router(api: Api) -> APIRouter:
    """Returns these routes.

    Args:
      api: What they have at hand.
    """
    router = APIRouter(route_class=StrictRoute, tags=["KServe"])
    add_state(router, api)
    add_infer(router, api)
    add_first(router, api)
    return router
