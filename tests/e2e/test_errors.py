"""Bad input: a clear status, the field, the reason; and the server goes on."""

import grpc
import pytest
from conftest import Client, fields_of, reason_of, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def _generate(**sampling):
    from morphserve.v1 import inference_pb2 as pb

    message = pb.GenerateRequest(text="hi")
    message.options.stopping.max_tokens = 2
    for key, value in sampling.items():
        setattr(message.options.sampling, key, value)
    return message


@pytest.fixture(autouse=True)
def still_alive(client):
    """After whatever a test did, the same server answers."""
    yield
    assert client.inference.Generate(_generate(temperature=0)).done.usage.completion_tokens > 0


@pytest.mark.parametrize("key,value", [
    ("temperature", -0.1), ("temperature", 100.0), ("temperature", float("nan")),
    ("temperature", float("inf")), ("top_p", 0.0), ("top_p", 1.5), ("top_p", float("nan")),
    ("min_p", -0.1), ("min_p", 1.1), ("presence_penalty", 2.5), ("frequency_penalty", -2.5),
    ("repetition_penalty", 0.0), ("repetition_penalty", -1.0), ("n", 0), ("n", 9),
    ("top_k", 4294967295),
])
@pytest.mark.smoke
def test_sampling_out_of_range_is_refused_by_field(client, key, value):
    error = refused(lambda: client.inference.Generate(_generate(**{key: value})), INVALID,
                    "FIELD_INVALID")
    assert fields_of(error) == [f"options.sampling.{key}"], error.details()
    assert key in error.details()


def test_every_fault_is_named_at_once(client):
    message = _generate(temperature=-1, top_p=2)
    message.options.stopping.stop.append("")
    error = refused(lambda: client.inference.Generate(message), INVALID, "FIELD_INVALID")
    assert len(fields_of(error)) == 3


@pytest.mark.parametrize("change", [
    lambda m: m.options.stopping.stop.extend(["x"] * 17),
    lambda m: m.options.stopping.stop.append("x" * 257),
    lambda m: m.options.stopping.stop_token_ids.append(49152),
    lambda m: m.options.stopping.stop_token_ids.extend(range(65)),
    lambda m: m.options.sampling.logit_bias.update({49152: 1.0}),
    lambda m: m.options.sampling.logit_bias.update({1: float("nan")}),
    lambda m: m.options.sampling.banned_token_ids.append(1 << 31),
    lambda m: m.options.sampling.allowed_token_ids.append(49152),
    lambda m: setattr(m.options.stopping, "max_tokens", 0),
    lambda m: setattr(m.options.stopping, "min_tokens", 3),
    lambda m: setattr(m.options.output, "logprobs", 21),
    lambda m: setattr(m.options.scheduling, "priority", 101),
    lambda m: setattr(m.options, "request_id", "no spaces allowed"),
    lambda m: setattr(m.options, "request_id", "x" * 65),
    lambda m: m.ClearField("text"),
    lambda m: setattr(m, "text", ""),
])
def test_other_fields_out_of_range_are_refused(client, change):
    message = _generate()
    change(message)
    error = refused(lambda: client.inference.Generate(message), INVALID)
    assert reason_of(error) == "FIELD_INVALID", error.details()


def test_prompt_and_answer_over_the_context(client):
    message = _generate()
    message.options.stopping.max_tokens = 100000
    refused(lambda: client.inference.Generate(message), INVALID, "CONTEXT_TOO_LONG")
    message = _generate()
    message.text = "word " * 9000
    refused(lambda: client.inference.Generate(message), INVALID, "CONTEXT_TOO_LONG")


def test_ten_megabytes_of_prompt(client):
    message = _generate()
    message.text = "a" * (10 << 20)
    refused(lambda: client.inference.Generate(message), grpc.StatusCode.RESOURCE_EXHAUSTED)
    message.text = "a" * (5 << 20)
    refused(lambda: client.inference.Generate(message), INVALID)


@pytest.mark.smoke
@pytest.mark.parametrize("method", ["Generate", "Chat", "Tokenize"])
def test_bytes_that_are_no_message(client, method):
    call = client.channel.unary_unary(f"/morphserve.v1.Inference/{method}",
                                      request_serializer=bytes, response_deserializer=bytes)
    invalid_utf8 = b"\x12\x02\xff\xfe"   # Field 2, two bytes that are no UTF-8.
    truncated = b"\x12\x7fhi"            # A length past the end.
    for payload in (truncated, invalid_utf8):
        error = refused(lambda: call(payload), INVALID, "FIELD_INVALID")
        assert error.details()


def test_bad_bytes_on_a_stream(client):
    call = client.channel.unary_stream("/morphserve.v1.Inference/GenerateStream",
                                       request_serializer=bytes, response_deserializer=bytes)
    refused(lambda: call(b"\x12\x7fhi"), INVALID, "FIELD_INVALID")


@pytest.mark.parametrize("marks", [[0], [9999], [1] * 9])
def test_snapshot_marks_lie_inside_the_prompt_and_are_few(client, marks):
    message = _generate()
    message.options.cache.snapshot_at.extend(marks)
    error = refused(lambda: client.inference.Generate(message), INVALID, "FIELD_INVALID")
    assert fields_of(error)[0].startswith("options.cache.snapshot_at"), error.details()


def test_unknown_model_plan_and_method(client):
    message = _generate()
    message.model = "no-such-model"
    refused(lambda: client.inference.Generate(message), grpc.StatusCode.NOT_FOUND,
            "MODEL_NOT_FOUND")
    message = _generate()
    message.options.plan.plan_id = "p-0123456789abcdef"
    refused(lambda: client.inference.Generate(message), grpc.StatusCode.NOT_FOUND,
            "PLAN_NOT_FOUND")
    call = client.channel.unary_unary("/morphserve.v1.Inference/Nonsense",
                                      request_serializer=bytes, response_deserializer=bytes)
    refused(lambda: call(b""), grpc.StatusCode.UNIMPLEMENTED)


@pytest.mark.parametrize("change", [
    lambda m: setattr(m.options.constraint, "regex", "a+"),
    lambda m: setattr(m.options.plan, "prefer_warm", True),
    lambda m: setattr(m.options.scheduling, "ttft_slo_ms", 5.0),
    lambda m: setattr(m.options.plan, "prefer_warm", True),
])
def test_what_is_not_built_is_refused_not_ignored(client, change):
    message = _generate()
    change(message)
    refused(lambda: client.inference.Generate(message), grpc.StatusCode.UNIMPLEMENTED,
            "FEATURE_UNAVAILABLE")


def test_chat_faults(client):
    from morphserve.v1 import inference_pb2 as pb

    refused(lambda: client.inference.Chat(pb.ChatRequest()), INVALID, "FIELD_INVALID")
    no_role = pb.ChatRequest(messages=[pb.ChatMessage(content="x")])
    refused(lambda: client.inference.Chat(no_role), INVALID, "FIELD_INVALID")
    arguments = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="x")],
                               template_args_json="{not json")
    refused(lambda: client.inference.Chat(arguments), INVALID)


def test_a_request_id_is_taken_only_once(client, server):
    message = _generate()
    message.options.request_id = "twice"
    message.options.stopping.max_tokens = 2000
    message.options.stopping.ignore_eos = True
    first = client.stream(message)
    next(first)
    with server.channel() as channel:
        refused(lambda: Client(channel).inference.Generate(message),
                grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_IN_USE")
    first.cancel()
