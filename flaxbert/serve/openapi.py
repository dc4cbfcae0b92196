"""The description of all routes: what FastAPI finds, with the names of the models and the bodies that are read by hand."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from flaxbert.serve import schemas

_NAMED = frozenset({"model", "name"})


def describe(app: FastAPI, names: Sequence[str]) -> Callable[[], dict[str, Any]]:
    """Returns what makes the description of an application, once.

    Args:
      app: The application.
      names: Its models.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for operation in _operations(document):
                for parameter in operation.get("parameters", ()):
                    if parameter["in"] == "path" and parameter["name"] in _NAMED:
                        parameter["schema"] = {"type": "string", "enum": list(names)}
            body = schemas.InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            parts = body.pop("$defs", {})
            document["components"]["schemas"].update({**parts, "InferRequest": body})
            app.openapi_schema = document
        return app.openapi_schema

    return openapi


def _operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]
