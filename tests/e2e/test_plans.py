"""Layer plans and the prefix cache through the real server: the same prompt under several plans,
plans mixed in one batch, what a chat's next turn finds, and what operators see of it all."""

import concurrent.futures
import json
import re
import subprocess
import urllib.request

import grpc
import pytest
from conftest import BIN, ROOT, Client, refused, serving

LONG = "The history of the sea is long. " * 20
BRANCHES = ROOT / "deploy" / "models" / "smollm2-135m-instruct.branches.safetensors"


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory, model_path):
    """A server with the branches that come with the default model."""
    folder = tmp_path_factory.mktemp("hybrid")
    with serving(folder, model_path, {"model.branches": str(BRANCHES)}) as running:
        yield running


@pytest.fixture(scope="module")
def windowed(tmp_path_factory, model_path):
    """A server whose branches need no file."""
    folder = tmp_path_factory.mktemp("windowed")
    with serving(folder, model_path, {"model.branches": "window:128"}) as running:
        yield running


@pytest.fixture()
def client(hybrid):
    with hybrid.channel() as channel:
        yield Client(channel)


@pytest.fixture(params=["file", "window"])
def each_client(request):
    """The tests that take it run on branches of both kinds."""
    running = request.getfixturevalue("hybrid" if request.param == "file" else "windowed")
    with running.channel() as channel:
        yield Client(channel)


@pytest.fixture()
def operator(hybrid):
    """Stubs of the admin listener."""
    from morphserve.v1 import admin_pb2_grpc, morph_pb2_grpc

    class Stubs:
        pass

    with hybrid.channel("admin") as channel:
        stubs = Stubs()
        stubs.admin = admin_pb2_grpc.AdminStub(channel)
        stubs.morph = morph_pb2_grpc.MorphStub(channel)
        yield stubs


def ask(text=LONG, max_tokens=16, **plan):
    from morphserve.v1 import inference_pb2 as pb

    message = pb.GenerateRequest(text=text)
    message.options.sampling.temperature = 0
    message.options.stopping.max_tokens = max_tokens
    message.options.stopping.ignore_eos = True
    message.options.output.token_ids = True
    for key, value in plan.items():
        setattr(message.options.plan, key, value)
    return message


def run(client, request):
    """(token ids, Started, usage) of one request."""
    response = client.inference.Generate(request)
    return list(response.completions[0].token_ids), response.started, response.done.usage


def without_cache(request):
    request.options.cache.bypass = True
    return request


def metric(server, name, **labels):
    """The sum of the series of a family whose labels match."""
    url = f"http://{server.address('http')}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    total = 0.0
    for line in re.findall(rf"^{name}\{{.*$", text, re.MULTILINE):
        if all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total


@pytest.mark.smoke
def test_the_same_prompt_runs_under_full_and_hybrid_plans(each_client):
    from morphserve.v1 import models_pb2 as models

    client = each_client
    layers = client.models.GetModelInfo(models.GetModelInfoRequest()).layers
    plain, active, _ = run(client, ask())
    full, started, _ = run(client, ask(full_layers=layers))
    assert full == plain and started.plan.plan_id == active.plan.plan_id
    seen = {started.plan.plan_id}
    for k in (layers // 2, 0):
        call = client.inference.Generate.with_call(ask(full_layers=k))
        plan = call[0].started.plan
        assert (plan.full_layers, plan.layers) == (k, layers)
        assert dict(call[1].trailing_metadata())["morphserve-plan"] == plan.plan_id
        assert len(call[0].completions[0].token_ids) == 16
        by_id, again, _ = run(client, ask(plan_id=plan.plan_id[:10]))
        assert again.plan.plan_id == plan.plan_id
        assert by_id == list(call[0].completions[0].token_ids)
        seen.add(plan.plan_id)
    assert len(seen) == 3


def test_plans_mix_in_one_batch_without_touching_each_other(client, hybrid):
    prompts = [f"{i} facts about " + "the sea and its fish, " * i for i in range(1, 9)]
    budgets = [i % 4 * 8 for i in range(len(prompts))]
    requests = [without_cache(ask(text, 16, full_layers=k))
                for text, k in zip(prompts, budgets, strict=True)]
    alone = [run(client, request)[0] for request in requests]
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: run(client, request)[0], requests))
    assert together == alone
    mixed = metric(hybrid, "morphserve_step_plans_count") - metric(
        hybrid, "morphserve_step_plans_bucket", le="1")
    assert mixed > 0, "no step held two plans"


@pytest.mark.parametrize("budget", [30, 8, 0])
def test_a_hit_gives_what_a_miss_gives(each_client, budget):
    def salted():
        request = ask(full_layers=budget)
        request.options.cache.salt = f"hit and miss {budget}"
        return request

    missed, _, first = run(each_client, salted())
    hit, started, second = run(each_client, salted())
    assert first.cached_tokens == 0 < second.cached_tokens <= second.prompt_tokens - 1
    assert started.cached_tokens == second.cached_tokens
    assert hit == missed
    bypassed, _, third = run(each_client, without_cache(salted()))
    assert third.cached_tokens == 0 and bypassed == missed


def chat(messages, budget, max_tokens=24):
    from morphserve.v1 import inference_pb2 as pb

    request = pb.ChatRequest()
    for role, content in messages:
        request.messages.add(role=role, content=content)
    request.options.sampling.temperature = 0
    request.options.stopping.max_tokens = max_tokens
    request.options.plan.full_layers = budget
    return request


@pytest.mark.parametrize("budget", [30, 8])
def test_the_next_turn_of_a_chat_finds_the_last(each_client, budget):
    client = each_client
    messages = [("user", f"Tell me about the sea. Budget {budget}. " + LONG)]
    first = client.inference.Chat(chat(messages, budget))
    messages += [("assistant", first.choices[0].message.content), ("user", "And the fish?")]
    second = client.inference.Chat(chat(messages, budget))
    usage = second.done.usage
    assert usage.cached_tokens == second.started.cached_tokens
    # All of the first prompt but its last tokens, at the least.
    assert usage.cached_tokens >= first.done.usage.prompt_tokens - 64
    assert usage.cached_tokens < usage.prompt_tokens


def test_plans_and_salts_do_not_share_entries(client, operator):
    from morphserve.v1 import admin_pb2 as admin

    operator.admin.FlushPrefixCache(admin.FlushPrefixCacheRequest())
    run(client, ask(full_layers=30))
    assert run(client, ask(full_layers=8))[2].cached_tokens == 0
    salted = ask(full_layers=30)
    salted.options.cache.salt = "apart"
    assert run(client, salted)[2].cached_tokens == 0
    assert run(client, salted)[2].cached_tokens > 0


def test_counting_tells_what_is_cached(client, operator):
    from morphserve.v1 import admin_pb2 as admin
    from morphserve.v1 import inference_pb2 as pb

    operator.admin.FlushPrefixCache(admin.FlushPrefixCacheRequest())
    count = pb.CountTokensRequest(text=LONG)
    count.plan.full_layers = 30
    before = client.inference.CountTokens(count)
    _, started, _ = run(client, ask(full_layers=30))
    after = client.inference.CountTokens(count)
    assert before.cached_tokens == 0 < after.cached_tokens <= after.tokens
    assert after.plan_id == started.plan.plan_id


def test_flushing_empties_the_cache(client, operator):
    from morphserve.v1 import admin_pb2 as admin

    run(client, ask(full_layers=8))
    load = operator.admin.GetLoad(admin.GetLoadRequest())
    assert load.pages.cached > 0 and load.slots.cached > 0
    flushed = operator.admin.FlushPrefixCache(admin.FlushPrefixCacheRequest())
    assert flushed.entries > 0 and flushed.bytes > 0
    assert run(client, ask(full_layers=8))[2].cached_tokens == 0


@pytest.mark.smoke
def test_unknown_and_impossible_plans_are_refused(client):
    code = grpc.StatusCode
    refused(lambda: client.inference.Generate(ask(plan_id="p-0000000000000000")),
            code.NOT_FOUND, "PLAN_NOT_FOUND")
    refused(lambda: client.inference.Generate(ask(full_layers=31)), code.INVALID_ARGUMENT,
            "FIELD_INVALID")
    refused(lambda: client.inference.Generate(ask(tpot_ms_max=-5.0)), code.INVALID_ARGUMENT,
            "FIELD_INVALID")
    refused(lambda: client.inference.Generate(ask(tpot_ms_max=5.0)), code.FAILED_PRECONDITION,
            "COSTS_UNKNOWN")


def test_a_dense_server_refuses_hybrid_plans_and_says_it_has_none(server, connect):
    from morphserve.v1 import models_pb2 as models
    from morphserve.v1 import morph_pb2, morph_pb2_grpc

    dense = connect(server)
    info = dense.models.GetModelInfo(models.GetModelInfoRequest())
    assert not info.morphable and len(info.plans) == 1
    refused(lambda: dense.inference.Generate(ask("Hi", full_layers=8)),
            grpc.StatusCode.FAILED_PRECONDITION, "NOT_MORPHABLE")
    with server.channel("admin") as channel:
        stub = morph_pb2_grpc.MorphStub(channel)
        assert len(stub.ListPlans(morph_pb2.ListPlansRequest()).plans) == 1
        refused(lambda: stub.GetLayerScores(morph_pb2.GetLayerScoresRequest()),
                grpc.StatusCode.FAILED_PRECONDITION, "NOT_MORPHABLE")


def test_operators_see_plans_pointers_and_scores(client, operator):
    from morphserve.v1 import models_pb2 as models
    from morphserve.v1 import morph_pb2 as morph

    _, started, _ = run(client, ask("Hi", full_layers=8))
    listed = operator.morph.ListPlans(morph.ListPlansRequest())
    plans = {plan.plan_id: plan for plan in listed.plans}
    mine = plans[started.plan.plan_id]
    assert mine.full_layers == 8 == list(mine.layers).count(1) and mine.origin == "request"
    assert mine.estimate.state_bytes_per_sequence > 0
    full = plans[listed.pointers.active.plan_id]
    assert full.full_layers == 30 and full.estimate.state_bytes_per_sequence == 0
    assert full.estimate.kv_bytes_per_token > mine.estimate.kv_bytes_per_token
    active = operator.morph.GetActivePlan(morph.GetActivePlanRequest())
    assert active.plan.plan_id == full.plan_id == active.history[0].plan_id
    scores = operator.morph.GetLayerScores(morph.GetLayerScoresRequest())
    assert [plan.full_layers for plan in scores.by_budget] == list(range(31))
    assert scores.by_budget[8].plan_id == mine.plan_id
    info = client.models.GetModelInfo(models.GetModelInfoRequest())
    assert info.morphable and info.branch_kind
    assert {plan.plan_id for plan in info.plans} == set(plans)
    refused(lambda: operator.morph.ProposePlan(morph.ProposePlanRequest()),
            grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")


def test_metrics_move_with_plans_and_hits(client, hybrid):
    def counts():
        return {name: metric(hybrid, f"morphserve_{name}", **labels) for name, labels in (
            ("prefix_cache_queries_total", {}), ("prefix_cache_hits_total", {}),
            ("prompt_tokens_cached_total", {}), ("snapshots_stored_total", {}),
            ("generation_tokens_total", {"plan": plan}))}

    _, started, _ = run(client, ask("A prompt of its own. " + LONG, full_layers=8))
    plan = started.plan.plan_id
    before = counts()
    _, _, usage = run(client, ask("A prompt of its own. " + LONG, full_layers=8))
    after = counts()
    assert after["prefix_cache_queries_total"] > before["prefix_cache_queries_total"]
    assert (after["prompt_tokens_cached_total"] - before["prompt_tokens_cached_total"]
            == usage.cached_tokens)
    assert after["generation_tokens_total"] - before["generation_tokens_total"] == 16
    assert metric(hybrid, "morphserve_plan_info", pointer="active", full_layers="30") == 1
    assert metric(hybrid, "morphserve_state_snapshots") > 0
    url = f"http://{hybrid.address('http')}/statusz"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert plan in answer.read().decode()


def test_a_server_starts_on_the_plan_of_its_settings(start, connect, model_path):
    from morphserve.v1 import inference_pb2 as pb

    settings = {"model.branches": "window:64:4", "plans.active": "full_layers=5",
                "cache.prefix": "false"}
    running = start(settings)
    client = connect(running)
    for _ in range(2):
        request = pb.GenerateRequest(text=LONG)
        request.options.stopping.max_tokens = 4
        response = client.inference.Generate(request)
        assert response.started.plan.full_layers == 5
        assert response.done.usage.cached_tokens == 0, "the cache is off"
    checked = subprocess.run(
        [BIN / "morphserve", "--model", model_path, "--check-config", "--branches", "window:64",
         "--set", "plans.active=full_layers=5"], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stderr
    assert "plan 5F/25L" in checked.stdout and "all-full" in checked.stdout


def test_morphctl_shows_and_uses_plans(hybrid):
    def ctl(*arguments, code=0):
        result = subprocess.run(
            [BIN / "morphctl", "--addr", hybrid.address(), "--admin-addr",
             hybrid.address("admin"), *map(str, arguments)],
            capture_output=True, text=True, timeout=120)
        assert result.returncode == code, result.stderr
        return result

    used = {}
    for plan in ("full", "8", "highest", "fastest"):
        line = json.loads(ctl("--json", "generate", "--prompt", LONG, "--max-tokens", 8,
                              "--temperature", 0, "--plan", plan).stdout)
        used[plan] = line["plan"]
        assert "cached_tokens" in line["usage"]
    assert used["full"] == used["highest"] != used["8"]
    table = ctl("plans", "--context", 8192).stdout
    *table_rows, autopilot = table.splitlines()[1:]
    rows = {row.split()[0]: row for row in table_rows}
    assert autopilot == "autopilot: none; from settings"
    assert set(used.values()) <= set(rows)
    assert "F" * 30 in rows[used["full"]] and "active" in rows[used["full"]]
    assert "memory at 8192" in table
    assert len(json.loads(ctl("--json", "plans").stdout)["plans"]) >= 2
    assert used["8"] in ctl("scores", "--plans").stdout
    assert "cached" in ctl("chat", "--prompt", "Hi", "--max-tokens", 4, "--plan", used["8"][:8],
                           "--stats").stderr
    assert "neither a plan id" in ctl("chat", "--prompt", "Hi", "--plan", "quick", code=2).stderr
    assert "PLAN_NOT_FOUND" in ctl("generate", "--prompt", "Hi", "--plan", "p-0000",
                                   code=1).stderr
    report = ctl("bench", "--requests", 2, "--warmup", 0, "--prompt-tokens", 8,
                 "--output-tokens", 4, "--plan", "8").stdout
    assert used["8"] in report and "8F/22L" in report
