"""Cancels, deadlines, overload, slow readers, drain, restart, health, and pages that come home."""

import concurrent.futures
import json
import signal
import socket
import threading
import time
import urllib.request

import grpc
import pytest
from conftest import BIN, Client, info_of, launch, reason_of, refused


def long_request(max_tokens=3000, text="Tell me a very long story."):
    from morphserve.v1 import inference_pb2 as pb

    message = pb.GenerateRequest(text=text)
    message.options.stopping.max_tokens = max_tokens
    message.options.stopping.ignore_eos = True
    message.options.sampling.temperature = 0
    return message


def load(server):
    from morphserve.v1 import admin_pb2, admin_pb2_grpc

    with server.channel("admin") as channel:
        return admin_pb2_grpc.AdminStub(channel).GetLoad(admin_pb2.GetLoadRequest())


def eventually(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come to pass"
        time.sleep(0.02)


@pytest.mark.smoke
def test_cancel_and_disconnect_give_everything_back(client, server):
    call = client.stream(long_request())
    for _ in range(3):
        next(call)
    assert load(server).running == 1
    call.cancel()
    eventually(lambda: load(server).running == 0 and load(server).pages.running == 0)
    channel = server.channel()
    dropped = Client(channel).stream(long_request())
    next(dropped)
    channel.close()
    eventually(lambda: load(server).running == 0 and load(server).pages.running == 0)


@pytest.mark.smoke
def test_deadline_ends_a_running_request(client, server):
    begin = time.monotonic()
    error = refused(lambda: client.stream(long_request(), timeout=1.0),
                    grpc.StatusCode.DEADLINE_EXCEEDED)
    assert time.monotonic() - begin < 5
    assert error is not None
    eventually(lambda: load(server).running == 0)


def test_a_deadline_that_cannot_be_met_is_refused_at_once(client):
    message = long_request(max_tokens=10, text="word " * 5000)
    begin = time.monotonic()
    error = refused(lambda: client.inference.Generate(message, timeout=0.5),
                    grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE")
    assert time.monotonic() - begin < 2
    metadata = info_of(error).metadata
    assert int(metadata["needed_ms"]) > int(metadata["left_ms"]) > 0
    assert metadata["basis"] == "prefill"


def test_overload_refuses_clearly_and_serves_the_rest(start, connect):
    server = start({"queue.requests_max": "20", "scheduler.sequences_max": "4"})
    client = connect(server)

    def ask(i):
        try:
            message = long_request(max_tokens=4, text=f"Number {i}")
            return client.inference.Generate(message).done.usage.completion_tokens
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error.details()
            assert reason_of(error) == "QUEUE_FULL"
            assert "grpc-retry-pushback-ms" in dict(error.trailing_metadata())
            return "refused"

    with concurrent.futures.ThreadPoolExecutor(300) as pool:
        outcomes = list(pool.map(ask, range(300)))
    assert set(outcomes) == {4, "refused"}
    assert client.inference.Generate(long_request(max_tokens=2)).done.usage.completion_tokens == 2
    eventually(lambda: load(server).pages.running == 0)


def test_a_reader_that_stops_reading_is_ended_and_others_are_not(start, connect):
    server = start({"stream.write_stall_s": "1", "stream.outbox_bytes_max": "4KiB"})
    # A client whose flow-control window stays small and which never reads.
    channel = grpc.insecure_channel(server.address(), options=[
        ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0),
        ("grpc.max_receive_message_length", 64 << 20)])
    message = long_request(max_tokens=7000)
    message.options.output.logprobs = 20
    stalled = Client(channel).stream(message)
    other = connect(server)
    assert other.inference.Generate(long_request(max_tokens=8)).done.usage.completion_tokens == 8
    eventually(lambda: load(server).running == 0, seconds=90)
    with pytest.raises(grpc.RpcError) as caught:
        list(stalled)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(caught.value) == "SLOW_READER"
    channel.close()


@pytest.mark.smoke
def test_sigterm_finishes_what_runs_and_exits_zero(start, connect):
    server = start()
    client = connect(server)
    call = client.stream(long_request(max_tokens=40))
    next(call)
    server.signal(signal.SIGTERM)
    events = list(call)
    assert events[-1].HasField("done") and events[-1].done.usage.completion_tokens == 40
    assert server.wait() == 0


def test_new_requests_are_refused_while_draining(start, connect):
    server = start()
    client = connect(server)
    client.inference.Generate(long_request(max_tokens=1))
    running = client.stream(long_request(max_tokens=1500))
    next(running)
    server.signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(grpc.RpcError) as caught:
        client.inference.Generate(long_request(max_tokens=1))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    running.cancel()
    assert server.wait() == 0


def test_a_second_signal_exits_at_once(start, connect):
    server = start()
    call = connect(server).stream(long_request())
    next(call)
    server.signal(signal.SIGTERM)
    time.sleep(0.3)
    assert server.process.poll() is None
    server.signal(signal.SIGTERM)
    server.wait(5)


def test_the_drain_timeout_ends_what_is_left(start, connect):
    server = start({"drain.timeout_s": "1"})
    call = connect(server).stream(long_request(max_tokens=7000))
    next(call)
    server.signal(signal.SIGTERM)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 0


def test_a_restart_serves_the_same(start, connect):
    texts = []
    for _ in range(2):
        server = start()
        texts.append(connect(server).inference.Generate(
            long_request(max_tokens=12)).completions[0].text)
        server.signal(signal.SIGINT)
        assert server.wait() == 0
    assert texts[0] == texts[1]


@pytest.mark.smoke
def test_standard_health_client(server):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with server.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "readiness", "liveness", "morphserve.v1.Inference",
                     "morphserve.v1.Models"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
        refused(lambda: stub.Check(health_pb2.HealthCheckRequest(service="nonsense")),
                grpc.StatusCode.NOT_FOUND)


def test_health_watch_sees_the_drain(start):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    server = start({"drain.withdraw_s": "1"})
    with server.channel() as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="readiness"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert server.wait() == 0


def test_reflection_lists_the_public_services(server):
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase)

    with server.channel() as channel:
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {"morphserve.v1.Inference", "morphserve.v1.Models", "grpc.health.v1.Health"} <= services
    assert "morphserve.v1.Admin" not in services
    with server.channel("admin") as channel:
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert "morphserve.v1.Admin" in services and "morphserve.v1.Inference" not in services


def get(server, path):
    with urllib.request.urlopen(f"http://{server.address('http')}{path}", timeout=10) as answer:
        return answer.read().decode()


@pytest.mark.smoke
def test_http_pages(client, server):
    client.inference.Generate(long_request(max_tokens=4))
    metrics = get(server, "/metrics")
    for name in ("morphserve_num_requests_running", "morphserve_generation_tokens_total",
                 "morphserve_time_to_first_token_seconds_bucket", "morphserve_build_info"):
        assert name in metrics, name
    assert get(server, "/livez") and get(server, "/readyz")
    status = get(server, "/statusz")
    assert "Tell me" not in status


def test_counters_count(client, server):
    def total(name):
        return sum(float(line.rsplit(" ", 1)[1]) for line in get(server, "/metrics").splitlines()
                   if line.startswith(name) and not line.startswith("#"))

    before = total("morphserve_generation_tokens_total")
    client.inference.Generate(long_request(max_tokens=7))
    eventually(lambda: total("morphserve_generation_tokens_total") == before + 7)


@pytest.mark.smoke
def test_sigterm_while_loading_exits_within_a_second(tmp_path, model_path):
    process, log = launch(tmp_path, ["--model", model_path, "--set", "listen.inference=127.0.0.1:0",
                                     "--set", "listen.http=127.0.0.1:0",
                                     "--set", "listen.admin=127.0.0.1:0"])
    time.sleep(0.08)
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    process.wait(20)
    assert time.monotonic() - begin < 5, log.read_text()


def test_a_file_that_is_no_model_is_refused(tmp_path):
    for name, content in (("empty.gguf", b""), ("text.gguf", b"hello"),
                          ("short.gguf", b"GGUF\x03\x00\x00\x00")):
        path = tmp_path / name
        path.write_bytes(content)
        process, log = launch(tmp_path, ["--model", str(path),
                                         "--set", "listen.inference=127.0.0.1:0",
                                         "--set", "listen.http=127.0.0.1:0",
                                         "--set", "listen.admin=127.0.0.1:0"])
        assert process.wait(20) not in (0, -6, -11), log.read_text()
        assert log.read_text().strip()


def test_a_taken_port_is_named(server, tmp_path, model_path):
    process, log = launch(tmp_path, ["--model", model_path, "--set",
                                     f"listen.inference={server.address()}",
                                     "--set", "listen.http=127.0.0.1:0",
                                     "--set", "listen.admin=127.0.0.1:0"])
    assert process.wait(60) != 0
    assert server.address() in log.read_text()


def test_a_peer_that_speaks_no_grpc_disturbs_nobody(client, server):
    host, port = server.address().rsplit(":", 1)
    stop = threading.Event()

    def babble():
        while not stop.is_set():
            with socket.create_connection((host, int(port)), timeout=5) as peer:
                peer.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)))

    noise = threading.Thread(target=babble)
    noise.start()
    try:
        assert client.inference.Generate(
            long_request(max_tokens=20)).done.usage.completion_tokens == 20
    finally:
        stop.set()
        noise.join()


def test_probe_tells_by_exit_code(server):
    import subprocess

    def probe(target):
        return subprocess.run([BIN / "morphserve", f"--probe={target}"], capture_output=True,
                              timeout=20).returncode

    assert probe(server.address()) == 0
    assert probe(f"{server.address()},liveness") == 0
    assert probe("127.0.0.1:1") != 0


def test_ready_file_holds_the_bound_ports(server):
    assert json.loads(json.dumps(server.ports)).keys() >= {"inference", "http", "admin"}
