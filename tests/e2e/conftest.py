"""Starts the real binary on free ports; talks to it with a client made from the public protos."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import grpc
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("MORPHSERVE_BIN_DIR", ROOT / "build" / "release" / "bin"))
START_TIMEOUT_S = 120


@pytest.fixture(scope="session", autouse=True)
def protos(tmp_path_factory):
    """Generates the Python client into a folder of its own, as a user would."""
    from grpc_tools import protoc

    out = tmp_path_factory.mktemp("protos")
    files = sorted((ROOT / "proto" / "morphserve" / "v1").glob("*.proto"))
    include = pathlib.Path(protoc.__file__).parent / "_proto"
    code = protoc.main(
        ["protoc", f"-I{ROOT / 'proto'}", f"-I{include}", f"--python_out={out}",
         f"--grpc_python_out={out}", *map(str, files)])
    assert code == 0, "the public protos do not compile"
    sys.path.insert(0, str(out))
    return out


@pytest.fixture(scope="session")
def model_path():
    path = os.environ.get("MORPHSERVE_TEST_MODEL", "")
    if not path or not pathlib.Path(path).exists():
        pytest.skip("MORPHSERVE_TEST_MODEL names no file: the default model is not installed")
    return path


class Server:
    """One running process. `client` has a stub for every public service."""

    def __init__(self, process, ports, log_path):
        self.process = process
        self.ports = ports
        self.log_path = log_path

    def address(self, name="inference"):
        return f"127.0.0.1:{self.ports[name]}"

    def log(self):
        return self.log_path.read_text(errors="replace")

    def channel(self, name="inference"):
        return grpc.insecure_channel(
            self.address(name), options=[("grpc.max_receive_message_length", 64 << 20)])

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=60):
        return self.process.wait(timeout)


def launch(tmp, arguments, env=None):
    """Starts the binary without waiting for anything."""
    log_path = tmp / f"server-{time.monotonic_ns()}.log"
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            [str(BIN / "morphserve"), *arguments], stdout=log, stderr=log,
            env={**os.environ, **(env or {})})
    return process, log_path


@contextlib.contextmanager
def serving(tmp, model, settings=None, env=None, wait=True):
    ready = tmp / f"ready-{time.monotonic_ns()}.json"
    merged = {
        "listen.inference": "127.0.0.1:0", "listen.http": "127.0.0.1:0",
        "listen.admin": "127.0.0.1:0", "drain.withdraw_s": "0", "drain.timeout_s": "20",
        "cache.arena_bytes": "512MiB", **(settings or {})}
    arguments = ["--model", str(model), "--ready_file", str(ready)]
    for key, value in merged.items():
        arguments += ["--set", f"{key}={value}"]
    process, log_path = launch(tmp, arguments, env)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while wait and not ready.exists():
            assert process.poll() is None, f"the server ended:\n{log_path.read_text()}"
            assert time.monotonic() < deadline, f"not ready in time:\n{log_path.read_text()}"
            time.sleep(0.02)
        ports = json.loads(ready.read_text()) if wait else {}
        yield Server(process, ports, log_path)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    text = log_path.read_text(errors="replace")
    for word in ("CHECK failed", "AddressSanitizer", "runtime error:", "LeakSanitizer"):
        assert word not in text, f"found {word!r} in the server's log:\n{text[-4000:]}"


@pytest.fixture(scope="session")
def server(tmp_path_factory, model_path):
    with serving(tmp_path_factory.mktemp("server"), model_path) as running:
        yield running


@pytest.fixture()
def start(tmp_path, model_path):
    """start(settings) -> a server of the test's own, ended after it."""
    with contextlib.ExitStack() as stack:
        yield lambda settings=None, **kw: stack.enter_context(
            serving(tmp_path, model_path, settings, **kw))


class Client:
    def __init__(self, channel):
        from morphserve.v1 import inference_pb2_grpc, models_pb2_grpc

        self.channel = channel
        self.inference = inference_pb2_grpc.InferenceStub(channel)
        self.models = models_pb2_grpc.ModelsStub(channel)

    def stream(self, request, **kw):
        return self.inference.GenerateStream(request, **kw)


@pytest.fixture()
def client(server):
    with server.channel() as channel:
        yield Client(channel)


@pytest.fixture()
def connect():
    """connect(server) -> a client on a channel of its own."""
    with contextlib.ExitStack() as stack:
        yield lambda server, name="inference": Client(stack.enter_context(server.channel(name)))


def info_of(error):
    """The ErrorInfo in the error's details, decoded with googleapis' own messages, or None."""
    from google.rpc import error_details_pb2, status_pb2

    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    assert info.domain == "morphserve"
                    return info
    return None


def reason_of(error):
    info = info_of(error)
    return info.reason if info else None


def fields_of(error):
    from google.rpc import error_details_pb2, status_pb2

    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                bad = error_details_pb2.BadRequest()
                if detail.Unpack(bad):
                    return [violation.field for violation in bad.field_violations]
    return []


def refused(call, code, reason=None):
    """The error of a call that must fail with this code and reason."""
    with pytest.raises(grpc.RpcError) as caught:
        result = call()
        if hasattr(result, "__iter__"):
            list(result)
    assert caught.value.code() == code, caught.value.details()
    if reason is not None:
        assert reason_of(caught.value) == reason, caught.value.details()
    return caught.value
