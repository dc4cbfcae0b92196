"""The Open Inference Protocol over gRPC answers what it answers over HTTP, for Triton's client unchanged."""

import asyncio
import contextlib
import re
import socket
import threading
import time

import grpc
import httpx2
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from flaxbert.config import AccessConfig, LimitsConfig
from flaxbert.errors import ConfigError
from flaxbert.serve.app import make_app
from flaxbert.serve.errors import KINDS
from flaxbert.serve.loading import parse_specs
from flaxbert.serve.rpc.messages import METHODS, describe_protocol
from flaxbert.serve.rpc.server import CODES
from tests.serve.conftest import BASE
from tests.serve.running import SMALL, held_back, running
from tests.serve.test_routes import TEXTS, TOLERANCE, close, post
from tests.weights.tiny import write_tiny

SERVICE = "/inference.GRPCInferenceService/"
TEXT = "a fine film ."


@contextlib.contextmanager
def connected(app):
    client = triton.InferenceServerClient(f"127.0.0.1:{app.state.rpc.port}")
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def channel_of(app):
    """What sends messages as they are; Triton's client makes its own only."""
    with grpc.insecure_channel(f"127.0.0.1:{app.state.rpc.port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def client(serving):
    with connected(serving.app) as found:
        yield found


@pytest.fixture(scope="module")
def channel(serving):
    with channel_of(serving.app) as found:
        yield found


def text_tensor(name, texts):
    tensor = triton.InferInput(name, [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.asarray(texts, object))
    return tensor


def send(channel, request, method="ModelInfer", **options):
    response = getattr(service_pb2, f"{method}Response")
    call = channel.unary_unary(f"{SERVICE}{method}", lambda message: message.SerializeToString(), response.FromString)
    return call(request, timeout=60, **options)


def request_of(model, contents, **more):
    """A request whose values stand in typed fields: name to datatype, shape and values."""
    fields = {"BYTES": "bytes_contents", "INT64": "int64_contents", "INT32": "int_contents", "BOOL": "bool_contents"}
    request = service_pb2.ModelInferRequest(model_name=model, **more)
    for name, (datatype, shape, values) in contents.items():
        tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
        getattr(tensor.contents, fields[datatype]).extend(values)
    return request


class Alike(str):
    """A text that equals one of the same numbers but for rounding: batches are shared, and others have other sums."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        numbers = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
        mine, theirs = (np.asarray(numbers.findall(text), np.float64) for text in (self, other))
        return numbers.sub("#", self) == numbers.sub("#", other) and np.allclose(mine, theirs, rtol=0, atol=TOLERANCE)


def fields_of(message):
    return {
        (f.number, f.name, f.type, f.label, f.type_name, f.HasField("oneof_index"), message.options.map_entry)
        for f in message.field
    }


def flat(messages, prefix=""):
    for message in messages:
        yield f"{prefix}{message.name}", message
        yield from flat(message.nested_type, f"{prefix}{message.name}.")


def test_the_messages_are_those_of_the_protocol():
    ours, theirs = describe_protocol(), type(describe_protocol())()
    service_pb2.DESCRIPTOR.CopyToProto(theirs)
    known = dict(flat(theirs.message_type))
    found = dict(flat(ours.message_type))
    assert len(found) > 20
    for name, message in found.items():
        assert fields_of(message) == fields_of(known[name]), name
    methods = {(m.name, m.input_type, m.output_type) for m in theirs.service[0].method}
    assert (ours.package, ours.service[0].name) == (theirs.package, theirs.service[0].name)
    assert {(m.name, m.input_type, m.output_type) for m in ours.service[0].method} <= methods
    assert len(ours.service[0].method) == len(METHODS) == 6


def test_the_server_says_how_it_is_and_what_it_has(serving, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("vectors")
    assert client.is_model_ready("vectors", "1")
    server = client.get_server_metadata(as_json=True)
    assert server == httpx2.get(f"{serving.url}/v2").json()
    for name in serving.models:
        expected = httpx2.get(f"{serving.url}/v2/models/{name}").json()
        found = client.get_model_metadata(name)
        assert (found.name, list(found.versions), found.platform) == (name, ["1"], expected["platform"])
        for side in ("inputs", "outputs"):
            tensors = [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(found, side)]
            assert tensors == expected[side]


def test_vectors_are_those_of_the_model(serving, client):
    expected = serving.models["vectors"].encode(TEXTS)
    wanted = [triton.InferRequestedOutput("embedding")]
    for outputs in (wanted, None):
        answer = client.infer("vectors", [text_tensor("text", TEXTS)], outputs=outputs, request_id="7")
        close(answer.as_numpy("embedding"), expected)
        assert answer.get_response().id == "7"
        assert len(answer.get_response().raw_output_contents) == 1
    ids = np.zeros((3, 8), np.int64)
    for place, text in enumerate(TEXTS):
        numbers = serving.models["vectors"].tokenizer(text)["input_ids"]
        ids[place, : len(numbers)] = numbers
    tensors = []
    for name, array in (("input_ids", ids), ("attention_mask", (ids != 0).astype(np.int64))):
        tensors.append(triton.InferInput(name, list(array.shape), "INT64"))
        tensors[-1].set_data_from_numpy(array)
    close(client.infer("vectors", tensors, model_version="1").as_numpy("embedding"), expected)


def test_labels_are_those_of_the_model(serving, client):
    answer = client.infer("film", [text_tensor("text", TEXTS)], compression_algorithm="gzip")
    expected = serving.models["film"].predict(TEXTS)
    assert [label.decode() for label in answer.as_numpy("label")] == [p.label for p in expected]
    names = serving.models["film"].config.label_names
    close(answer.as_numpy("scores"), [[p.scores[name] for name in names] for p in expected])


CASES = [
    ("vectors", {"text": TEXTS}),
    ("film", {"text": TEXTS}),
    ("nli", {"text": TEXTS[:1], "text_pair": TEXTS[1:2]}),
    ("ranker", {"text": TEXTS}),
    ("tagger", {"text": TEXTS}),
    ("reader", {"question": ["was it bad"], "context": ["the film was fine . a bad film ."]}),
    ("words", {"text": ["a [MASK] film"]}),
]


@pytest.mark.parametrize(("model", "texts"), CASES)
def test_answers_are_those_of_http_raw_and_in_typed_fields(serving, client, channel, model, texts):
    inputs = [{"name": n, "datatype": "BYTES", "shape": [len(t)], "data": t} for n, t in texts.items()]
    expected = post(serving, f"/v2/models/{model}/infer", {"inputs": inputs})
    raw = client.infer(model, [text_tensor(name, values) for name, values in texts.items()])
    contents = {n: ("BYTES", [len(t)], [text.encode() for text in t]) for n, t in texts.items()}
    typed = send(channel, request_of(model, contents))
    assert not typed.raw_output_contents
    assert (typed.model_name, typed.model_version) == (expected["model_name"], expected["model_version"])
    assert len(expected["outputs"]) == len(typed.outputs)
    for tensor, found in zip(expected["outputs"], typed.outputs, strict=True):
        assert (found.name, found.datatype, list(found.shape)) == (tensor["name"], tensor["datatype"], tensor["shape"])
        if found.datatype == "BYTES":
            for texts in (found.contents.bytes_contents, raw.as_numpy(found.name)):
                assert [text.decode() for text in texts] == [Alike(text) for text in tensor["data"]]
        else:
            close(found.contents.fp32_contents, tensor["data"])
            close(raw.as_numpy(found.name).reshape(-1), tensor["data"])


def test_parameters_reach_the_task(client):
    words = client.infer("words", [text_tensor("text", ["a [MASK] film"])], parameters={"top_k": 2})
    assert words.as_numpy("json")[0].count(b'"token"') == 2
    with pytest.raises(InferenceServerException, match="top_k") as refused:
        client.infer("words", [text_tensor("text", ["a [MASK] film"])], parameters={"top_k": "many"})
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


INVALID = "INVALID_ARGUMENT"
REFUSED = [
    ("films", {"text": ("BYTES", [1], [b"a"])}, {}, "NOT_FOUND", "'film'"),
    ("film", {"text": ("BYTES", [1], [b"a"])}, {"model_version": "9"}, "NOT_FOUND", "not loaded"),
    ("", {"text": ("BYTES", [1], [b"a"])}, {}, INVALID, "names no model"),
    ("film", {}, {}, INVALID, "'text'"),
    ("film", {"text": ("BYTES", [0], [])}, {}, INVALID, "no input"),
    ("film", {"text": ("BYTES", [33], [b"a"] * 33)}, {}, INVALID, "33 inputs"),
    ("film", {"text": ("BYTES", [2], [b"a"])}, {}, INVALID, "1 entries"),
    ("film", {"text": ("BYTES", [-1], [b"a"])}, {}, INVALID, "shape"),
    ("film", {"text": ("BYTES", [1] * 65, [b"a"])}, {}, INVALID, "shape"),
    ("film", {"text": ("BYTES", [1], [b"\xff"])}, {}, INVALID, "UTF-8"),
    ("film", {"text": ("BYTES", [1], [b"film " * 40])}, {}, INVALID, "32 tokens"),
    ("film", {"text": ("INT64", [1], [1])}, {}, INVALID, "BYTES"),
    ("vectors", {"input_ids": ("INT64", [1, 1], [99])}, {}, INVALID, "0 to 30"),
    ("vectors", {"input_ids": ("INT64", [2**31 - 1, 0], [])}, {}, INVALID, "inputs"),
    ("vectors", {"input_ids": ("BOOL", [1, 1], [True])}, {}, INVALID, "whole numbers"),
    ("film", {"text": ("BYTES", [1], [b"a"])}, {"outputs": ["wrong"]}, INVALID, "no output 'wrong'"),
    ("film", {"text": ("BYTES", [1], [b"a"])}, {"raw_input_contents": [b"a", b"b"]}, INVALID, "2 raw_input_contents"),
    ("film", {"text": ("BYTES", [1], [b"a"])}, {"raw_input_contents": [b"\x01\0\0\0a"]}, INVALID, "too"),
]


@pytest.mark.parametrize(("model", "contents", "more", "code", "words"), REFUSED)
def test_what_the_server_does_not_take_is_said(channel, model, contents, more, code, words):
    outputs = [service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=n) for n in more.get("outputs", ())]
    with pytest.raises(grpc.RpcError) as refused:
        send(channel, request_of(model, contents, **{**more, "outputs": outputs}))
    assert refused.value.code().name == code, refused.value.details()
    assert words in refused.value.details()
    assert dict(refused.value.trailing_metadata())["x-request-id"]


def test_rows_without_tokens_are_counted_before_they_are_made(serving):
    tensor = {"name": "input_ids", "shape": [2**31 - 1, 0], "datatype": "INT64", "data": []}
    assert "inputs" in post(serving, "/v2/models/vectors/infer", {"inputs": [tensor]}, 413)["error"]


def test_values_in_the_field_of_another_type_are_refused(channel):
    request = request_of("film", {"text": ("INT64", [1], [1])})
    request.inputs[0].datatype = "BYTES"
    with pytest.raises(grpc.RpcError, match="int64_contents") as refused:
        send(channel, request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_every_kind_of_error_has_a_code():
    assert set(CODES) == set(KINDS)
    assert not {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.OK} & set(CODES.values())


def test_other_methods_and_messages_that_are_none_are_refused(client, channel):
    with pytest.raises(InferenceServerException) as other:
        client.get_inference_statistics("film")
    assert other.value.status() == "StatusCode.UNIMPLEMENTED"
    with pytest.raises(grpc.RpcError) as nowhere:
        channel.unary_unary("/somewhere/Else")(b"", timeout=30)
    assert nowhere.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as none:
        channel.unary_unary(f"{SERVICE}ModelInfer")(b"\xff\xff", timeout=30)
    assert none.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_calls_are_counted_beside_those_of_http(serving, client):
    client.infer("film", [text_tensor("text", TEXTS)])
    with contextlib.suppress(InferenceServerException):
        client.infer("film", [text_tensor("text", [""])])
    lines = httpx2.get(f"{serving.url}/metrics").text.splitlines()
    counted = {line.rpartition(" ")[0] for line in lines}
    for code in ("OK", "INVALID_ARGUMENT"):
        labels = f'model="film",route="grpc/ModelInfer",status="{code}",version="1"'
        assert f"flaxbert_requests_total{{{labels}}}" in counted


def test_ids_are_given_back(channel):
    request = request_of("film", {"text": ("BYTES", [1], [b"a"])})
    call = channel.unary_unary(f"{SERVICE}ModelInfer", lambda message: message.SerializeToString())
    for given_id, expected in (("mine-1", "mine-1"), ("no id", None)):
        _, made = call.with_call(request, metadata=(("x-request-id", given_id),), timeout=30)
        found = dict(made.trailing_metadata())["x-request-id"]
        assert found == (expected or found)
        assert expected or len(found) == 32


OTHERS_DRAW = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
"""The server and its clients are threads of the same process and may draw random numbers of their own meanwhile."""

_FUZZED = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def refuse_mistakes(call):
    error = None
    try:
        call()
    except grpc.RpcError as raised:
        error = raised
    if error is not None:
        assert error.code() not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), error.details()
        assert error.details()


@OTHERS_DRAW
@_FUZZED
@given(
    st.sampled_from(["vectors", "film", "reader", "words"]),
    st.lists(
        st.tuples(
            st.sampled_from(["text", "text_pair", "input_ids", "attention_mask", "question", "context"]),
            st.lists(st.one_of(st.integers(0, 4), st.integers(-(2**63), 2**63 - 1)), max_size=3),
            st.sampled_from(["BYTES", "INT64", "FP32", "FP16", "UINT8", "BOOL", "BF16", ""]),
            st.one_of(
                st.none(),
                st.tuples(st.just("bytes_contents"), st.lists(st.binary(max_size=6), max_size=3)),
                st.tuples(st.just("int64_contents"), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)),
                st.tuples(st.just("uint_contents"), st.lists(st.integers(0, 2**32 - 1), max_size=4)),
                st.tuples(st.just("fp32_contents"), st.lists(st.floats(width=32), max_size=4)),
            ),
        ),
        max_size=3,
    ),
    st.lists(st.one_of(st.binary(max_size=32), st.just(b"\x01\0\0\0a")), max_size=3),
    st.dictionaries(st.text(max_size=8), st.integers(-5, 5), max_size=2),
)
def test_messages_of_any_kind(channel, model, inputs, raw, parameters):
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=raw)
    for name, shape, datatype, contents in inputs:
        tensor = request.inputs.add(name=name, shape=shape, datatype=datatype)
        if contents is not None:
            getattr(tensor.contents, contents[0]).extend(contents[1])
    for key, value in parameters.items():
        request.parameters[key].int64_param = value
    refuse_mistakes(lambda: send(channel, request))


@OTHERS_DRAW
@_FUZZED
@given(st.sampled_from([*METHODS, "ModelStreamInfer", ""]), st.binary(max_size=100))
def test_bytes_that_are_no_message(channel, method, content):
    refuse_mistakes(lambda: channel.unary_unary(f"{SERVICE}{method}")(content, timeout=60))


LIMITS = LimitsConfig(
    max_concurrent_requests=2, max_client_batch_size=4, payload_limit=2000, deadline_seconds=2.0, receive_seconds=0.5
)
KEY = {"authorization": "Bearer first-key"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with keys and low limits."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = folder / "keys"
    keys.write_text("first-key\nsecond-key\n")
    keys.chmod(0o600)
    model = write_tiny(folder / "film", config=BASE)
    access = AccessConfig(api_keys_file=str(keys))
    app = make_app(
        parse_specs((str(model),)), engine=SMALL, limits=LIMITS, access=access, grpc_address=("127.0.0.1", 0)
    )
    with running(app):
        yield app


@pytest.fixture
def slow(guarded, monkeypatch):
    """That server with an engine that waits until it is let go."""
    engine = guarded.state.api.fleet.slots["film"].versions["champion"].engine
    with held_back(engine, 10.0, monkeypatch) as let_go:
        yield guarded, let_go
    wait_for(lambda: num_requests(guarded) == 0)


def num_requests(app):
    return app.state.api.service.num_requests


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def infer(client, text=TEXT, headers=KEY, **options):
    return client.infer("film", [text_tensor("text", [text])], headers=headers, **options)


def code_of(call):
    with pytest.raises(InferenceServerException) as refused:
        call()
    return refused.value.status().removeprefix("StatusCode.")


def test_every_method_but_one_asks_for_a_key(guarded):
    with connected(guarded) as client, channel_of(guarded) as channel:
        assert client.is_server_live()
        assert client.is_server_ready(headers=KEY)
        assert infer(client, headers={"authorization": "bearer second-key"}).as_numpy("label").shape == (1,)
        for key in (None, "Bearer -", "Bearer first-key2", "Bearer first", "Bearer FIRST-KEY", "first-key", "Bearer "):
            headers = None if key is None else {"authorization": key}
            assert code_of(lambda h=headers: infer(client, headers=h)) == "UNAUTHENTICATED"
        for method in (*METHODS[1:], "ModelStreamInfer", "Nothing"):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"{SERVICE}{method}")(b"", timeout=30)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, method


def test_what_is_too_large_is_refused(guarded):
    with connected(guarded) as client, channel_of(guarded) as channel:
        assert code_of(lambda: infer(client, "film " * 1000)) == "RESOURCE_EXHAUSTED"
        bomb = b"\0" * 100_000
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(f"{SERVICE}ModelInfer")(
                bomb, timeout=30, metadata=tuple(KEY.items()), compression=grpc.Compression.Gzip
            )
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        five = text_tensor("text", [TEXT] * 5)
        assert code_of(lambda: client.infer("film", [five], headers=KEY)) == "INVALID_ARGUMENT"


def test_messages_that_do_not_arrive_are_given_up(guarded):
    let_go = threading.Event()

    def nothing():
        let_go.wait(20)
        yield from ()

    with channel_of(guarded) as channel:
        call = channel.stream_unary(f"{SERVICE}ModelInfer")
        with pytest.raises(grpc.RpcError, match=r"within 0\.5 seconds") as refused:
            call(nothing(), timeout=20, metadata=tuple(KEY.items()))
        let_go.set()
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_more_requests_than_it_takes_are_refused(slow):
    app, let_go = slow
    answers = []
    with connected(app) as client:
        for _ in range(2):
            tensors = [text_tensor("text", [TEXT])]
            client.async_infer("film", tensors, lambda result, error: answers.append(error), headers=KEY)
        wait_for(lambda: num_requests(app) == 2)
        assert code_of(lambda: infer(client)) == "RESOURCE_EXHAUSTED"
        let_go.set()
        wait_for(lambda: len(answers) == 2)
        assert answers == [None, None]


def test_what_takes_too_long_is_given_up(slow):
    app, _ = slow
    with connected(app) as client:
        begun = time.monotonic()
        with pytest.raises(InferenceServerException, match="more than 2 seconds") as late:
            infer(client)
        assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        assert time.monotonic() - begun < 5.0


def test_the_clients_deadline_counts_where_it_is_earlier(slow):
    app, _ = slow
    with connected(app) as client:
        begun = time.monotonic()
        assert code_of(lambda: infer(client, client_timeout=0.3)) == "DEADLINE_EXCEEDED"
        wait_for(lambda: num_requests(app) == 0)
        assert time.monotonic() - begun < 1.5  # the place was free before the server's own deadline


def test_clients_that_cancel_hold_no_place(slow):
    app, let_go = slow
    with connected(app) as client:
        for _ in range(4):
            tensors = [text_tensor("text", [TEXT])]
            call = client.async_infer("film", tensors, lambda result, error: None, headers=KEY)
            wait_for(lambda: num_requests(app) == 1)
            call.cancel()
            wait_for(lambda: num_requests(app) == 0)
        let_go.set()
        wait_for(lambda: infer(client).as_numpy("label").shape == (1,))


def test_a_server_that_drains_or_loads_is_not_ready(guarded):
    status = guarded.state.api.status
    with connected(guarded) as client:
        status.draining = True
        assert not client.is_server_ready(headers=KEY)
        assert infer(client).as_numpy("label").shape == (1,)  # what still comes is answered
        status.draining = False
        loaded = status.loaded
        status.loaded = asyncio.Event()
        try:
            assert client.is_server_live()
            assert not client.is_server_ready(headers=KEY)
            assert code_of(lambda: infer(client)) == "UNAVAILABLE"
            assert code_of(lambda: client.is_model_ready("film", headers=KEY)) == "UNAVAILABLE"
        finally:
            status.loaded = loaded
        assert client.is_server_ready(headers=KEY)


def test_calls_under_way_are_finished_when_the_server_ends(tmp_path, monkeypatch):
    folder = write_tiny(tmp_path / "film", config=BASE)
    app = make_app(parse_specs((str(folder),)), engine=SMALL, grpc_address=("127.0.0.1", 0))
    answers = []
    with contextlib.ExitStack() as afterwards:
        with running(app):
            client = afterwards.enter_context(connected(app))
            engine = app.state.api.fleet.slots["film"].versions["champion"].engine
            start = engine.start

            def wait(function, batch):
                time.sleep(0.5)
                return start(function, batch)

            monkeypatch.setattr(engine, "start", wait)
            tensors = [text_tensor("text", [TEXT])]
            client.async_infer("film", tensors, lambda result, error: answers.append(error))
            wait_for(lambda: num_requests(app) == 1)
        wait_for(lambda: answers == [None])
        assert code_of(lambda: infer(client, client_timeout=5)) == "UNAVAILABLE"


def test_a_port_that_is_taken_is_an_error_before_models_are_loaded(tmp_path):
    folder = write_tiny(tmp_path / "film", config=BASE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = ("127.0.0.1", taken.getsockname()[1])
        app = make_app(parse_specs((str(folder),)), engine=SMALL, grpc_address=address)
        with pytest.raises(ConfigError, match="--grpc_port"), running(app):
            pass
    assert not app.state.api.status.loaded.is_set()
