"""Encrypted connections: HTTP, streams and gRPC; certificates that change; clients that must show one; files that are none."""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import shutil
import signal
import socket
import ssl
import time

import grpc
import httpx2
import psutil
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from tritonclient.grpc import service_pb2

import flaxbert
from flaxbert.client import AsyncClient, Client
from flaxbert.config import TlsConfig
from flaxbert.errors import ConfigError, ServerError
from flaxbert.serve.app import make_app
from flaxbert.serve.loading import parse_specs
from flaxbert.serve.tls import Certificates
from tests.helpers import run_python
from tests.serve.conftest import BASE
from tests.serve.running import SMALL, running, wait_for
from tests.serve.test_supervisor import started
from tests.weights.tiny import write_tiny

TEXT = "a fine film ."
NUM_LINES = 400


@dataclasses.dataclass
class Authority:
    """An authority, and what those who trust it ask of a connection."""

    ca: trustme.CA = dataclasses.field(default_factory=trustme.CA)

    def write(self, folder):
        """Writes a certificate of this machine and its key."""
        issued = self.ca.issue_cert("127.0.0.1", "localhost")
        folder.mkdir(exist_ok=True)
        issued.private_key_pem.write_to_path(str(folder / "key.pem"))
        (folder / "certificate.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return TlsConfig(str(folder / "certificate.pem"), str(folder / "key.pem"))

    def trusting(self, client=None):
        context = ssl.create_default_context(cadata=self.ca.cert_pem.bytes().decode())
        if client is not None:
            client.configure_cert(context)
        return context

    @property
    def pem(self):
        return self.ca.cert_pem.bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models") / "film", config=BASE)


@pytest.fixture(scope="module")
def authority():
    return Authority()


def app_of(folder, certificates):
    specs = parse_specs((f"film={folder}",))
    return make_app(specs, engine=SMALL, grpc_address=("127.0.0.1", 0), certificates=certificates)


@pytest.fixture(scope="module")
def secure(folder, authority, tmp_path_factory):
    certificates = Certificates(authority.write(tmp_path_factory.mktemp("server")))
    app = app_of(folder, certificates)
    with running(app, certificates, authority.trusting()) as url:
        yield url, app


@pytest.fixture(scope="module")
def expected(folder):
    return flaxbert.load(folder).predict([TEXT])[0].scores


def is_expected(result, expected):
    return {entry["label"]: entry["score"] for entry in result} == pytest.approx(expected, abs=1e-5)


def lines():
    return itertools.repeat(TEXT, NUM_LINES)


def infer(port, root, client=(None, None)):
    """Returns the scores of the text over gRPC."""
    credentials = grpc.ssl_channel_credentials(root, *client)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        return _infer(channel)


def _infer(channel):
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )
    request = service_pb2.ModelInferRequest(model_name="film")
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(TEXT.encode())
    return list(call(request, timeout=20).outputs[1].contents.fp32_contents)


def test_requests_and_streams(secure, authority, expected):
    url, _ = secure
    with Client(url, ssl_context=authority.trusting()) as client:
        assert is_expected(client.predict([TEXT])[0], expected)
        answers = list(client.stream("predict", lines()))
    assert [answer.index for answer in answers] == list(range(NUM_LINES))
    assert all(is_expected(answer.result, expected) for answer in answers)


def test_requests_and_streams_that_are_awaited(secure, authority, expected):
    async def talk():
        async with AsyncClient(secure[0], ssl_context=authority.trusting()) as client:
            first = (await client.predict([TEXT]))[0]
            return first, [answer async for answer in client.stream("predict", lines())]

    first, answers = asyncio.run(talk())
    assert is_expected(first, expected)
    assert len(answers) == NUM_LINES
    assert all(is_expected(answer.result, expected) for answer in answers)


def test_a_stream_that_is_broken_off_closes_its_connection(secure, authority):
    async def talk():
        async with (
            AsyncClient(secure[0], ssl_context=authority.trusting()) as client,
            contextlib.aclosing(client.stream("predict", lines())) as answers,
        ):
            return await anext(answers)

    port = int(secure[0].rpartition(":")[2])

    def connections():
        found = psutil.Process().net_connections("tcp")
        return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in found)

    wait_for(lambda: connections() == 0)
    assert asyncio.run(talk()).index == 0
    wait_for(lambda: connections() == 0, 10.0)
    with Client(secure[0], ssl_context=authority.trusting()) as client:
        with contextlib.closing(client.stream("predict", lines())) as answers:
            assert next(answers).index == 0
            assert connections() == 1
        wait_for(lambda: connections() == 0, 10.0)
        assert client.health()


def test_calls_of_grpc(secure, authority, expected):
    port = secure[1].state.rpc.port
    assert infer(port, authority.pem) == pytest.approx([expected[name] for name in BASE.label_names], abs=1e-5)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
        _infer(channel)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_clients_find_out_whom_they_talk_to(secure, authority):
    url, app = secure
    stranger = Authority()
    with Client(url, retries=0, ssl_context=stranger.trusting()) as client:
        with pytest.raises(ServerError, match="certificate verify failed") as refused:
            client.predict([TEXT])
        assert refused.value.error_type == "unreachable"
        with pytest.raises(ServerError, match="certificate verify failed"):
            list(client.stream("predict", lines()))
    with Client(url, retries=0) as client, pytest.raises(ServerError, match="certificate verify failed"):
        client.predict([TEXT])  # an authority that the system does not know
    with pytest.raises(grpc.RpcError):
        infer(app.state.rpc.port, stranger.pem)
    with pytest.raises(httpx2.TransportError):  # not encrypted
        httpx2.get(url.replace("https", "http"))
    assert httpx2.get(f"{url}/health", verify=authority.trusting()).status_code == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_of_the_protocol_are_refused(secure, authority):
    host, port = secure[0].removeprefix("https://").split(":")

    def connect(newest):
        context = authority.trusting()
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
        context.set_ciphers("ALL:@SECLEVEL=0")
        with (
            socket.create_connection((host, int(port))) as connection,
            context.wrap_socket(connection, server_hostname="127.0.0.1") as secured,
        ):
            return secured.version()

    assert connect(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.raises((ssl.SSLError, ConnectionError)) as refused:
        connect(ssl.TLSVersion.TLSv1_1)
    assert "NO_PROTOCOLS" not in str(refused.value)  # which would be this client's own refusal


def test_a_new_certificate_is_used_and_half_of_one_is_not(folder, tmp_path, caplog):
    old, new = Authority(), Authority()
    config = old.write(tmp_path / "server")
    certificates = Certificates(config)
    app = app_of(folder, certificates)
    with running(app, certificates, old.trusting()) as url, caplog.at_level(logging.INFO, "flaxbert.serve"):

        def get(trusted):
            return httpx2.get(f"{url}/health", verify=trusted.trusting()).status_code

        new.write(tmp_path / "new")
        shutil.copy(tmp_path / "new" / "key.pem", tmp_path / "server" / "key.pem")
        wait_for(lambda: "the certificate stays as it is" in caplog.text)
        time.sleep(2.5)  # looks twice more
        assert caplog.text.count("the certificate stays as it is") == 1
        assert get(old) == 200
        assert infer(app.state.rpc.port, old.pem)
        shutil.copy(tmp_path / "new" / "certificate.pem", tmp_path / "server" / "certificate.pem")
        wait_for(lambda: "was read again" in caplog.text)
        assert get(new) == 200
        assert infer(app.state.rpc.port, new.pem)
        with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
            get(old)


async def stream_of(url, context):
    async with AsyncClient(url, retries=0, ssl_context=context) as client:
        return [answer async for answer in client.stream("predict", lines())]


def test_an_idle_connection_does_not_hold_up_the_end(folder, authority, tmp_path):
    certificates = Certificates(authority.write(tmp_path / "server"))
    app = app_of(folder, certificates)
    with httpx2.Client(verify=authority.trusting()) as client:
        with running(app, certificates, authority.trusting()) as url:
            assert client.get(f"{url}/health").status_code == 200
            begun = time.monotonic()
        assert time.monotonic() - begun < 15


def test_clients_must_show_a_certificate_where_one_is_asked_for(folder, authority, tmp_path):
    clients = Authority()
    (tmp_path / "clients.pem").write_bytes("Behörde\n".encode() + clients.pem)  # words beside certificates are usual
    config = dataclasses.replace(authority.write(tmp_path / "server"), client_ca_file=str(tmp_path / "clients.pem"))
    certificates = Certificates(config)
    app = app_of(folder, certificates)
    known, unknown = clients.ca.issue_cert("client"), Authority().ca.issue_cert("client")
    with running(app, certificates, authority.trusting(known)) as url:
        with Client(url, ssl_context=authority.trusting(known)) as client:
            assert client.health()
            assert len(list(client.stream("predict", lines()))) == NUM_LINES
        for shown in (None, unknown):
            with pytest.raises(ServerError):
                asyncio.run(stream_of(url, authority.trusting(shown)))
            with Client(url, retries=0, ssl_context=authority.trusting(shown)) as client:
                with pytest.raises(ServerError):
                    client.predict([TEXT])
                with pytest.raises(ServerError):
                    list(client.stream("predict", lines()))
        port, key = app.state.rpc.port, known.private_key_pem.bytes()
        assert infer(port, authority.pem, (key, known.cert_chain_pems[0].bytes()))
        with pytest.raises(grpc.RpcError):
            infer(port, authority.pem)


def test_files_that_are_no_certificate_with_its_key_are_refused(authority, tmp_path):
    config = authority.write(tmp_path / "server")
    other = authority.write(tmp_path / "other")
    (tmp_path / "words").write_text("no certificate")
    key = load_pem_private_key((tmp_path / "server" / "key.pem").read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    for changes, message in (
        ({"certificate_file": str(tmp_path / "nothing")}, "nothing can not be read: No such file"),
        ({"certificate_file": str(tmp_path / "words")}, "no certificate with its key"),
        ({"key_file": other.key_file}, "no certificate with its key"),
        ({"key_file": str(locked)}, "not encrypted"),
        ({"key_file": ""}, "no certificate with its key"),
        ({"client_ca_file": str(tmp_path / "words")}, "holds no certificates"),
        ({"client_ca_file": str(tmp_path / "nothing")}, "holds no certificates"),
    ):
        with pytest.raises(ConfigError, match=message):
            Certificates(dataclasses.replace(config, **changes))
    with pytest.raises(ConfigError, match=r"tls\.key_file needs a certificate"):
        TlsConfig(key_file=config.key_file)
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join((tmp_path / "server" / name).read_bytes() for name in ("key.pem", "certificate.pem")))
    assert Certificates(TlsConfig(str(both))).context


def test_the_command(folder, authority, tmp_path):
    config = authority.write(tmp_path / "server")
    words = ("--tls.certificate_file", config.certificate_file, "--tls.key_file")
    with started(str(folder), *words, config.key_file) as (process, url):
        assert url.startswith("https://")
        context = authority.trusting()

        def ready():
            with Client(url, ssl_context=context, retries=0) as client:
                try:
                    return client.health()
                except ServerError:
                    return False

        wait_for(ready, 120.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    asked = run_python(["-m", "flaxbert", "serve", str(folder), *words, os.devnull], folder=tmp_path)
    assert asked.returncode == 1
    assert asked.stderr.startswith(
        f"flaxbert: error: tls: {config.certificate_file} and {os.devnull} are no certificate"
    )
    assert len(asked.stderr.splitlines()) == 1
