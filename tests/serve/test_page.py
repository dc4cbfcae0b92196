"""The files of the page, and who may read them."""

import importlib.resources
import re

import httpx2
import pytest

from flaxbert.serve.access import is_open
from flaxbert.serve.routes.page import FILES, INDEX
from tests.serve.conftest import KEY

FOLDER = importlib.resources.files("flaxbert.serve") / "page"
TEXT = "a fine film ."


@pytest.mark.parametrize("name", ["", *FILES])
def test_every_file_is_sent_as_what_it_is_and_may_run_nothing_from_elsewhere(serving, name):
    answer = httpx2.get(f"{serving.url}/page/{name}" if name else f"{serving.url}/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"{FILES.get(name, 'text/html')}; charset=utf-8"
    assert answer.content == (FOLDER / (name or INDEX)).read_bytes()
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    again = httpx2.get(answer.url, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_list_of_files_is_that_of_the_folder():
    assert {file.name for file in FOLDER.iterdir()} == {*FILES, INDEX}


@pytest.mark.parametrize(
    "name", ["access.py", "..%2Faccess.py", "%2e%2e/access.py", "style.css%00", "style.css/", "%3Cb%3E"]
)
def test_no_other_file_is_sent(serving, name):
    answer = httpx2.get(f"{serving.url}/page/{name}", follow_redirects=False)
    assert answer.status_code in (404, 307)
    assert b"KeyFile" not in answer.content


@pytest.mark.parametrize("name", [INDEX, *FILES])
def test_no_file_names_another_server_or_reads_text_as_markup(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text)) - {"http://www.w3.org/2000/svg"}
    assert not addresses
    for way in (
        r"inner" + "HTML",
        r"outer" + "HTML",
        "insertAdjacent" + "HTML",
        r"document\.write",
        r"\beval\b",
        r"new Function",
        "DOMParser",
        "srcdoc",
    ):
        assert not re.search(way, text), way
    if name == INDEX:
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


def test_the_page_needs_no_key_but_everything_that_it_shows_does(locked):
    for path in ("/", "/page/main.js", "/page/nothing"):
        assert httpx2.get(f"{locked}{path}").status_code == (404 if "nothing" in path else 200)
    for path in ("/models", "/metrics", "/info", "/openapi.json", "/pages", "/page"):
        assert httpx2.get(f"{locked}{path}").status_code == 401, path
    for path in ("/", "/page/main.js", "/models/film/predict"):
        assert httpx2.post(f"{locked}{path}", json={"inputs": TEXT}).status_code == 401, path
    given = {"authorization": f"Bearer {KEY}"}
    assert httpx2.post(f"{locked}/", json={"inputs": TEXT}, headers=given).status_code == 200


def test_only_reading_the_page_is_open():
    assert is_open("/", "GET")
    assert is_open("/page/main.js", "GET")
    assert not any(is_open(path, "GET") for path in ("", "//", "/pages/", "/models", "/admin/models/film"))
    assert not any(is_open(path, method) for path in ("/", "/page/main.js") for method in ("POST", "PUT", "DELETE"))


def test_models_say_what_the_page_offers(serving):
    listed = httpx2.get(f"{serving.url}/models").json()["models"]
    versions = {model["name"]: model["versions"]["champion"] for model in listed}
    assert versions["words"]["mask_token"] == "[MASK]"
    assert versions["words"]["functions"] == ["masked"]
    assert versions["film"]["mask_token"] is None
    assert "vectors" in versions["vectors"]["functions"]
