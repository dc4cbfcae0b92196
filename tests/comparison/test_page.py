"""The page is whole, escapes what others wrote, and stands beside data that keep to their schema."""

import dataclasses
import html.parser
import importlib.resources
import json
import pathlib

import jsonschema
import pytest

from flaxbert.comparison.page import DATA_FILE, PAGE_FILE, render_page, write_comparison
from flaxbert.comparison.results import finite

VOID = {"meta", "img", "source", "br", "hr", "input", "link"}


class Document(html.parser.HTMLParser):
    """Collects a page's elements; raises where tags do not nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> names an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(comparison):
    return Document(render_page(comparison))


def test_the_page_needs_nothing_else(page):
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    addresses = [a.get("src") or a.get("srcset") for tag in ("img", "source") for a in page.all(tag)]
    assert len(addresses) == 4
    assert all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert {a["href"] for a in page.all("a")} <= {
        f"#{a['id']}" for tag in ("section",) for a in page.all(tag) if "id" in a
    }
    assert "url(" not in "".join(page.words)
    assert "prefers-color-scheme: dark" in "".join(page.words)


def test_tables_and_pictures_can_be_read_aloud(page):
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    assert all(a["aria-labelledby"] in identifiers for _, a in page.elements if "aria-labelledby" in a)
    assert len(page.all("table")) == len(page.all("caption")) > 5
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    assert all("Pareto front" in a["alt"] for a in page.all("img"))
    assert page.all("html") == [{"lang": "en"}]
    assert [a["content"] for a in page.all("meta") if a.get("name") == "viewport"] == [
        "width=device-width, initial-scale=1"
    ]


def test_the_page_says_what_was_found(comparison, page):
    text = " ".join(" ".join(page.words).split())
    for model in comparison.models:
        assert model.folder.name in text
    assert "int8 products" in text
    assert "stored only: written out for each product, float32 products" in text
    assert comparison.versions["jax"] in text
    assert comparison.command in text
    assert "prune" in text  # in the lineage of the model that was compressed twice


def test_names_are_text_and_never_html(comparison):
    evil = '<script>alert("x")</script>'
    first, *others = comparison.models
    worst = dataclasses.replace(
        others[0],
        folder=dataclasses.replace(
            others[0].folder,
            name=evil,
            report={
                "transform": evil,
                "leaves": [],
                "notes": [evil],
                "lineage": {"base_model": evil, "steps": [{"transform": evil}]},
            },
        ),
        refused={"speed": evil},
    )
    changed = dataclasses.replace(comparison, models=(first, worst, *others[1:]), source=evil, command=evil)
    text = render_page(changed)
    assert "<script" not in text
    assert Document(text).all("script") == []
    assert "&lt;script&gt;" in text


def test_the_data_keep_to_their_schema(comparison, tmp_path):
    page, data = write_comparison(comparison, tmp_path / "out")
    assert (page.name, data.name) == (PAGE_FILE, DATA_FILE)
    assert sorted(path.name for path in page.parent.iterdir()) == [PAGE_FILE, DATA_FILE]
    document = json.loads(data.read_text("utf-8"))
    text = importlib.resources.files("flaxbert.comparison").joinpath("comparison.schema.json").read_text("utf-8")
    schema = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)
    assert document["models"][1]["compression_report"]["transform"] == "quantize"
    assert str(pathlib.Path(comparison.settings.examples).parent) not in data.read_text("utf-8")
    document["models"][0]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(document)


def test_numbers_that_json_does_not_have_become_null():
    assert finite({"a": [float("nan"), (1.0, float("inf"))], "b": "nan"}) == {"a": [None, [1.0, None]], "b": "nan"}


def test_nothing_half_written_is_left(comparison, tmp_path, monkeypatch):
    original = pathlib.Path.write_text

    def fail(path, *arguments, **keywords):
        if PAGE_FILE in path.name:
            raise OSError(28, "No space left on device")
        return original(path, *arguments, **keywords)

    monkeypatch.setattr(pathlib.Path, "write_text", fail)
    with pytest.raises(OSError, match="No space"):
        write_comparison(comparison, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
