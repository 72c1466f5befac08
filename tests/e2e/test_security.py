"""TLS, bearer tokens with scopes, and listeners that refuse to be open by accident."""

import datetime
import hashlib
import subprocess

import grpc
import pytest
from conftest import Client, launch, refused


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True)
    assert datetime.datetime.now()
    return folder


@pytest.fixture()
def tokens(tmp_path):
    path = tmp_path / "tokens.yaml"
    entries = [("sesame", "[infer, read]"), ("watcher", "[read]"), ("root", "[infer, read, admin]")]
    path.write_text("".join(
        f"- sha256: {hashlib.sha256(token.encode()).hexdigest()}\n"
        f"  scopes: {scopes}\n  tenant: t-{token}\n" for token, scopes in entries))
    return path


def secure(server, certificate, name="inference"):
    credentials = grpc.ssl_channel_credentials((certificate / "cert.pem").read_bytes())
    return grpc.secure_channel(server.address(name), credentials)


def bearer(token):
    return [("authorization", f"Bearer {token}")]


def tiny():
    from morphserve.v1 import inference_pb2 as pb

    message = pb.GenerateRequest(text="hi")
    message.options.stopping.max_tokens = 2
    return message


def test_tls_and_scopes(start, certificate, tokens):
    from morphserve.v1 import admin_pb2, admin_pb2_grpc, models_pb2

    server = start({"tls.cert": certificate / "cert.pem", "tls.key": certificate / "key.pem",
                    "auth.tokens_file": tokens})
    with secure(server, certificate) as channel, \
            secure(server, certificate, "admin") as admin_channel:
        client = Client(channel)
        admin = admin_pb2_grpc.AdminStub(admin_channel)
        unauthenticated = grpc.StatusCode.UNAUTHENTICATED
        denied = grpc.StatusCode.PERMISSION_DENIED
        assert client.inference.Generate(tiny(), metadata=bearer("sesame")).done
        refused(lambda: client.inference.Generate(tiny()), unauthenticated, "CREDENTIAL")
        refused(lambda: client.inference.Generate(tiny(), metadata=bearer("wrong")),
                unauthenticated, "CREDENTIAL")
        refused(lambda: client.inference.Generate(tiny(), metadata=bearer("watcher")), denied,
                "SCOPE_MISSING")
        refused(lambda: client.stream(tiny(), metadata=bearer("watcher")), denied)
        assert client.models.ListModels(models_pb2.ListModelsRequest(),
                                        metadata=bearer("watcher")).models
        assert admin.GetLoad(admin_pb2.GetLoadRequest(), metadata=bearer("watcher"))
        drain = admin_pb2.DrainRequest()
        refused(lambda: admin.Drain(drain, metadata=bearer("sesame")), denied, "SCOPE_MISSING")
        refused(lambda: admin.Abort(admin_pb2.AbortRequest(all=True)), unauthenticated)
    with server.channel() as plain:
        refused(lambda: Client(plain).inference.Generate(tiny(), timeout=5),
                grpc.StatusCode.UNAVAILABLE)
    for secret in ("sesame", "watcher", "root\""):
        assert secret not in server.log()


@pytest.mark.parametrize("settings,word", [
    ({"listen.inference": "0.0.0.0:0"}, "security.allow_insecure"),
    ({"auth.tokens_file": "absent.yaml"}, "tokens"),
    ({"tls.cert": "absent.pem", "tls.key": "absent.pem"}, "tls"),
    ({"model.branches": "x"}, "model.branches"),
    ({"no.such_key": "1"}, "no.such_key"),
    ({"scheduler.sequences_max": "0"}, "scheduler.sequences_max"),
])
def test_settings_that_cannot_be_obeyed_stop_the_start(tmp_path, model_path, settings, word):
    arguments = ["--model", model_path]
    for key, value in {"listen.inference": "127.0.0.1:0", "listen.http": "127.0.0.1:0",
                       "listen.admin": "127.0.0.1:0", **settings}.items():
        arguments += ["--set", f"{key}={value}"]
    process, log = launch(tmp_path, arguments)
    assert process.wait(20) not in (0, -6, -11)
    assert word in log.read_text()
