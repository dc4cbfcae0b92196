"""A body that fits is answered without FastAPI's reading of arguments; every other one is told what is wrong as on any route."""

import pydantic
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.testclient import TestClient

from flaxbert.serve.strict_json import StrictRoute, direct_route


class Body(pydantic.BaseModel):
    inputs: str
    count: int = 1


@pytest.fixture
def served():
    """A client of an application with the same route in both ways, and the list of what happened."""
    seen = []

    async def ready(request: Request) -> None:
        seen.append("ready")

    def answer_with(name):
        async def answer(body: Body, request: Request) -> JSONResponse:
            seen.append(name)
            return JSONResponse({"inputs": body.inputs, "count": body.count, "path": request.url.path})

        return answer

    app = FastAPI()
    app.router.route_class = StrictRoute
    app.add_api_route("/plain", answer_with("plain"), methods=["POST"])
    answer = answer_with("direct")
    app.router.add_api_route(
        "/direct", answer, methods=["POST"], route_class_override=direct_route(Body, answer, ready)
    )
    return TestClient(app), seen


def ask(client, path, content, kind="application/json"):
    answer = client.post(path, content=content, headers={"content-type": kind} if kind else {})
    return answer.status_code, answer.json()


@pytest.mark.parametrize("content", [b'{"inputs": "a film"}', b'{"inputs": "\\u00e4", "count": 3, "more": [1]}'])
def test_a_body_that_fits_is_answered_alike(served, content):
    client, seen = served
    status, found = ask(client, "/direct", content)
    assert seen == ["ready", "direct"]  # "ready" comes on the direct way alone
    expected_status, expected = ask(client, "/plain", content)
    assert status == expected_status == 200
    assert {**found, "path": ""} == {**expected, "path": ""}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b'{"inputs": NaN}', "application/json"),
        (b'{"inputs": "\xff"}', "application/json"),
        (b"[" * 2000 + b"]" * 2000, "application/json"),
        (b"{}", "application/json"),
        (b"null", "application/json"),
        (b"", "application/json"),
        (b'{"inputs": 3}', "application/json"),
        (b'{"inputs": "a", "count": "many"}', "application/json"),
        (b'{"inputs": "a"}', "text/plain"),
        (b'{"inputs": "a"}', ""),
    ],
)
def test_mistakes_are_told_as_everywhere(served, content, kind):
    client, seen = served
    found, expected = ask(client, "/direct", content, kind), ask(client, "/plain", content, kind)
    assert found == expected
    assert found[0] == 422
    assert seen == []


def test_other_kinds_of_json_are_read_by_fastapi(served):
    client, seen = served
    assert ask(client, "/direct", b'{"inputs": "a"}', "application/json; charset=utf-8")[0] == 200
    assert seen == ["direct"]
