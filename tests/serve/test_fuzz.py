"""Whatever is sent, the server does not make a mistake."""

import re
import shutil
import subprocess
import sys

import httpx2
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.running import SMALL, running
from tests.serve.test_routes import post

PATHS = (
    "/embed",
    "/embed_all",
    "/embed_sparse",
    "/predict",
    "/rerank",
    "/similarity",
    "/tokenize",
    "/decode",
    "/ner",
    "/qa",
    "/fill-mask",
    "/zero-shot",
    "/",
    "/models/reader",
    "/models/words",
    "/vertex",
    "/v1/embeddings",
    "/v1/models/film:predict",
    "/v2/models/film/infer",
    "/v2/models/reader/infer",
)

_WORDS = st.one_of(st.sampled_from(["a", "fine film", "[MASK]", ""]), st.text(max_size=20))
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(), _WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
_KEYS = st.sampled_from(
    [
        "inputs",
        "input",
        "query",
        "texts",
        "parameters",
        "candidate_labels",
        "ids",
        "instances",
        "truncate",
        "top_k",
        "question",
        "context",
        "source_sentence",
        "sentences",
        "dimensions",
        "name",
        "shape",
        "datatype",
        "data",
        "outputs",
    ]
)
_BODIES = st.dictionaries(_KEYS, st.one_of(_VALUES, st.dictionaries(_KEYS, _VALUES, max_size=4)), max_size=5)

OTHERS_DRAW = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
"""The server and its clients are threads of the same process and may draw random numbers of their own meanwhile."""

_FUZZED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def refuse_mistakes(answer):
    assert answer.status_code < 500, f"{answer.request.url} {answer.request.content!r} {answer.text}"
    if answer.status_code >= 400:
        assert answer.json()["error"]


@OTHERS_DRAW
@_FUZZED
@given(st.sampled_from(PATHS), _BODIES)
def test_bodies_of_any_shape(serving, path, body):
    content = orjson.dumps(body)  # NaN becomes null
    headers = {"content-type": "application/json"}
    refuse_mistakes(httpx2.post(f"{serving.url}{path}", content=content, headers=headers, timeout=60))


@OTHERS_DRAW
@_FUZZED
@given(st.sampled_from(PATHS), st.binary(max_size=200), st.sampled_from([None, "0", "5", "-1", "x", "99999", "²"]))
def test_bodies_that_are_no_json(serving, path, content, length):
    headers = {b"content-type": b"application/json"}
    if length is not None:
        headers[b"inference-header-content-length"] = length.encode()
    refuse_mistakes(httpx2.post(f"{serving.url}{path}", content=content, headers=headers, timeout=60))


@OTHERS_DRAW
@_FUZZED
@given(
    st.sampled_from(["text", "text_pair", "input_ids", "attention_mask", "question"]),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(["BYTES", "INT64", "FP32", "UINT8", "BOOL", "BF16"]),
    st.one_of(st.none(), st.integers(-2, 40)),
    st.binary(max_size=32),
    st.one_of(
        st.none(),
        st.lists(st.one_of(st.integers(), st.text(max_size=4), st.lists(st.integers(), max_size=2)), max_size=4),
    ),
)
def test_tensors_of_any_kind(serving, name, shape, datatype, size, raw, data):
    tensor = {"name": name, "shape": shape, "datatype": datatype, "data": data}
    if size is not None:
        tensor["parameters"] = {"binary_data_size": size}
    try:
        head = orjson.dumps({"inputs": [tensor]})
    except TypeError:  # a number of more than 64 bits
        return
    headers = {"inference-header-content-length": str(len(head))}
    url = f"{serving.url}/v2/models/vectors/infer"
    refuse_mistakes(httpx2.post(url, content=head + raw, headers=headers, timeout=60))


def test_texts_of_any_kind_keep_their_neighbours_right(serving):
    """Texts with controls, other scripts, joined emojis and no words at all do not change what the others get."""
    strange = ["\x00", "a\u0300" * 10, "\u202egnirts", "😀\u200d🚒", "電影很好", "\ufffe", " \t ", "ﷺ" * 5]
    (expected,) = post(serving, "/embed", {"inputs": ["a fine film ."]})
    for text in strange:
        answer = httpx2.post(f"{serving.url}/embed", json={"inputs": [text, "a fine film ."]}, timeout=60)
        refuse_mistakes(answer)
        if answer.status_code == 200:
            assert answer.json()[1] == pytest.approx(expected, abs=1e-5)


@OTHERS_DRAW
@_FUZZED
@given(
    st.sampled_from(["embed", "predict", "ner", "qa", "zero-shot", "rerank"]),
    st.lists(st.one_of(st.binary(max_size=60), _BODIES.map(orjson.dumps), _WORDS.map(orjson.dumps)), max_size=6),
)
def test_streams_of_any_lines(serving, name, lines):
    content = b"\n".join(lines)
    answer = httpx2.post(f"{serving.url}/stream/{name}", content=content, timeout=60)
    answers = [orjson.loads(line) for line in answer.text.split("\n") if line]
    expected = content.split(b"\n")[:-1] if content.endswith(b"\n") or not content else content.split(b"\n")
    assert [entry["index"] for entry in answers] == list(range(len(expected)))
    assert all("result" in entry or 400 <= entry["status"] < 500 for entry in answers)


@pytest.mark.slow
def test_everything_that_the_description_allows(tmp_path):
    """schemathesis makes requests of the description, valid and not."""
    from flaxbert.config import AccessConfig
    from flaxbert.serve.app import make_app
    from flaxbert.serve.loading import parse_specs
    from tests.serve.conftest import write_models

    keys = tmp_path / "keys"
    keys.write_text("key\n")
    keys.chmod(0o600)
    folders = write_models(tmp_path)
    specs = parse_specs(tuple(f"{name}={folder}" for name, folder in folders.items()))
    program = shutil.which("schemathesis", path=str(sys.prefix) + "/bin")
    assert program is not None
    with running(make_app(specs, engine=SMALL, access=AccessConfig(admin_keys_file=str(keys)))) as url:
        words = [program, "run", f"{url}/openapi.json", "--max-examples", "25", "-c", "not_a_server_error"]
        words += ["--header", "Authorization: Bearer key", "--no-color"]
        words += ["--exclude-path-regex", "/stream/"]  # it writes no lines of JSON; test_streams_of_any_lines does
        result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-4000:]
    counts = re.search(r"(\d+) generated, (\d+) passed", result.stdout)
    assert counts is not None
    assert int(counts[1]) == int(counts[2]) > 1000
