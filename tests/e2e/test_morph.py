"""Live morphs through the real server and morphctl: the active plan changes while streams run, and
goes back; nothing that runs notices."""

import concurrent.futures
import json
import subprocess
import threading
import urllib.request

import grpc
import pytest
from conftest import BIN, ROOT, Client, refused, serving
from page_check import Page

BRANCHES = ROOT / "deploy" / "models" / "smollm2-135m-instruct.branches.safetensors"


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory, model_path):
    folder = tmp_path_factory.mktemp("morph")
    settings = {"model.branches": str(BRANCHES), "morph.cost_cache": str(folder / "costs.json"),
                "limits.context_tokens": "2048"}
    with serving(folder, model_path, settings) as running:
        yield running


@pytest.fixture()
def client(hybrid):
    with hybrid.channel() as channel:
        yield Client(channel)


@pytest.fixture()
def morph(hybrid):
    from morphserve.v1 import morph_pb2_grpc

    with hybrid.channel("admin") as channel:
        yield morph_pb2_grpc.MorphStub(channel)


def ctl(server, *arguments):
    return subprocess.run(
        [BIN / "morphctl", "--addr", server.address(), "--admin-addr", server.address("admin"),
         *arguments], capture_output=True, text=True, timeout=400)


def events(server, *arguments):
    done = ctl(server, "--json", "morph", *arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    lines = []
    decoder, text = json.JSONDecoder(), done.stdout.strip()
    while text:
        value, end = decoder.raw_decode(text)
        lines.append(value)
        text = text[end:].strip()
    return lines


def answer(client, number, plan=""):
    from morphserve.v1 import inference_pb2 as pb

    request = pb.GenerateRequest(text=f"Count from {number} upwards:")
    request.options.stopping.max_tokens = 96
    request.options.stopping.ignore_eos = True
    request.options.sampling.temperature = 0 if number % 2 else 1
    request.options.sampling.seed = number
    request.options.output.token_ids = True
    request.options.cache.bypass = True
    if plan:
        request.options.plan.plan_id = plan
    response = client.inference.Generate(request)
    return response.started.plan.plan_id, list(response.completions[0].token_ids)


@pytest.mark.smoke
def test_a_morph_and_its_rollback_do_not_touch_what_runs(hybrid, client, morph):
    from morphserve.v1 import morph_pb2 as pb

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(answer, client, number) for number in range(4)]
        seen = events(hybrid, "--full-layers", "10", "--watch", "1", "--context", "512")
        streams += [pool.submit(answer, client, number) for number in range(4, 8)]
        for future in streams[4:]:
            future.result()
        back = ctl(hybrid, "rollback")
        streams += [pool.submit(answer, client, number) for number in range(8, 10)]
        results = [future.result() for future in streams]
    assert back.returncode == 0, back.stderr
    phases = [event["phase"] for event in seen]
    assert phases[-1] == "PHASE_APPLIED" and "PHASE_SWITCHED" in phases
    last = seen[-1]
    assert last["to"]["full_layers"] == 10 and last["from"]["full_layers"] == 30
    canary = [event for event in seen if event["phase"] == "PHASE_CANARY"][-1]
    assert 0 < canary["measured"]["kl"] < 0.1 and canary["measured"]["tpot_ms"] > 0
    ten = last["to"]["plan_id"]
    assert {plan for plan, _ in results[4:8]} == {ten}
    assert {plan for plan, _ in results[8:]} == {last["from"]["plan_id"]}
    for number, (plan, tokens) in enumerate(results):
        assert answer(client, number, plan) == (plan, tokens), number
    active = morph.GetActivePlan(pb.GetActivePlanRequest())
    assert active.plan.full_layers == 30 and not active.running_morph_id


def test_layers_are_ranked_anew_beside_streams_and_the_ranking_stays(tmp_path, model_path):
    from morphserve.v1 import morph_pb2, morph_pb2_grpc

    kept = tmp_path / "rankings.json"
    settings = {"model.branches": str(BRANCHES), "limits.context_tokens": "1024",
                "morph.reselect_tokens": "192", "morph.reselect_samples": "1",
                "morph.rankings_file": str(kept)}
    order = ["--full-layers", "5", "--watch", "0", "--context", "256", "--selector"]
    with serving(tmp_path, model_path, settings) as server, server.channel() as channel:
        client = Client(channel)
        alone = answer(client, 1)
        wrong = ctl(server, "morph", "--reselect", *order, "loudest")
        assert wrong.returncode == 1 and "flashmorph, interaction" in wrong.stderr
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            beside = pool.submit(answer, client, 1)
            seen = events(server, "--reselect", *order, "interaction")
            assert beside.result() == alone, "a selection changes no token"
    selecting = [event for event in seen if event["phase"] == "PHASE_SELECTING"]
    assert any("one layer linear at a time" in event["message"] for event in selecting)
    agreement = seen[-1]["agreement"]
    assert agreement["full_layers"] == 5 and agreement["common"] >= 1
    assert agreement["spearman"] > 0.3
    canary = [event for event in seen if event["phase"] == "PHASE_CANARY"][-1]
    assert canary["measured"]["recall"] > 0.5, canary["message"]
    with serving(tmp_path, model_path, settings) as server:
        with server.channel("admin") as channel:
            scores = morph_pb2_grpc.MorphStub(channel).GetLayerScores(
                morph_pb2.GetLayerScoresRequest(method=agreement["method"]))
        assert scores.by_budget[5].plan_id == seen[-1]["to"]["plan_id"]
        assert scores.interaction_source == morph_pb2.RANKING_SOURCE_HERE
        again = events(server, *order, agreement["method"])
        assert again[-1]["to"]["plan_id"] == seen[-1]["to"]["plan_id"]
    other = {**settings, "model.branches": "window:64"}
    with serving(tmp_path, model_path, other, wait=False) as server:
        assert server.wait() != 0
        assert "morph.rankings_file" in server.log()


def test_a_latency_target_is_met_or_refused_with_what_would_reach_it(hybrid, client):
    costs = ctl(hybrid, "--json", "costs")
    assert costs.returncode == 0, costs.stderr
    costs = json.loads(costs.stdout)
    one = next(t for t in costs["terms"] if not t.get("prefill") and t["rows"] == 1)
    linear = one["base_ms"]
    full = linear + costs["layers"] * (one["layer_ms"] + one["token_ms"] * 1800)
    # Which of the two is faster is the machine's business: a wide target and an impossible one are
    # judged alike on any.
    wide = ctl(hybrid, "morph", "--dry-run", "--tpot-ms", f"{4 * max(full, linear):.3f}",
               "--context", "1800", "--batch", "1")
    assert wide.returncode == 0, wide.stderr
    low = ctl(hybrid, "morph", "--tpot-ms", f"{min(full, linear) / 8:.3f}", "--context", "1800")
    assert low.returncode == 1 and "TARGET_UNREACHABLE" in low.stderr


def test_the_watch_measures_the_percentile_of_the_target(hybrid, client, morph):
    """Requests run at the load of the target while it is watched: the outcome tells the percentile
    that they saw, and of how many times."""
    from morphserve.v1 import morph_pb2 as pb

    assert ctl(hybrid, "costs").returncode == 0, "measured while nothing else runs"
    order = pb.MorphRequest(idempotency_key="percentile")
    target = order.spec.target
    target.tpot_ms, target.full_layers, target.percentile = 100000, 20, 90
    target.workload.running, target.workload.context_tokens = 1, 96
    order.canary.prompts = 0
    order.watch.seconds = 8
    ended, traffic = threading.Event(), None

    def ask():
        number = 0
        while not ended.is_set():
            answer(client, number := number + 1)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            for last in morph.Morph(order, timeout=100):
                if traffic is None and last.phase == pb.MorphProgress.PHASE_WATCHING:
                    traffic = pool.submit(ask)
        finally:
            ended.set()
        traffic.result()
    assert ctl(hybrid, "rollback").returncode == 0
    assert last.phase == pb.MorphProgress.PHASE_APPLIED, last
    assert "applied; p90 between tokens is" in last.message, last.message
    assert last.measured.percentile == 90 and last.measured.samples >= 50
    assert 0 < last.measured.tpot_ms < 100000 and last.measured.at.running == 1


def test_orders_that_contradict_the_server_are_refused(hybrid, morph):
    from morphserve.v1 import morph_pb2 as pb

    def order(key="k", **fields):
        request = pb.MorphRequest(idempotency_key=key, **fields)
        request.spec.target.full_layers = 12
        return lambda: list(morph.Morph(request))

    code = grpc.StatusCode
    refused(order(key=""), code.INVALID_ARGUMENT, "FIELD_INVALID")
    refused(order(expected_active_plan="p-0000000000000000"), code.ABORTED, "PLAN_CHANGED")
    refused(order(traffic=2), code.INVALID_ARGUMENT, "FIELD_INVALID")


def test_the_report_shows_what_the_server_knows(hybrid, client, morph, tmp_path):
    from morphserve.v1 import models_pb2, morph_pb2 as pb

    answer(client, 1)  # So that the active plan has a measured step.
    out = tmp_path / "report.html"
    done = ctl(hybrid, "report", "--out", str(out), "--context", "512,2048", "--batch", "2")
    assert done.returncode == 0 and str(out) in done.stdout, done.stderr
    text = out.read_text()
    page = Page(text)
    assert not page.faults and "nan" not in text
    assert page.ids == {"now", "layers", "interaction", "quality", "costs", "stability"}
    info = client.models.GetModelInfo(models_pb2.GetModelInfoRequest())
    assert len(info.base_id) == 64 and info.base_id in page.text
    active = morph.GetActivePlan(pb.GetActivePlanRequest())
    assert active.plan.plan_id in page.text
    for method in morph.GetLayerScores(pb.GetLayerScoresRequest()).methods:
        assert method in page.charts, "a chart a stored method"
    for chart in ("Interaction matrix Q", "Divergence from the full model", "Mean of all tests",
                  "Time per token, 2 sequences in a step", "Cache memory of a sequence",
                  "Time per token of plans that ran", "Agreement of whole orders (Spearman)"):
        assert chart in page.charts, chart
    assert "512 tokens" in page.text and "1024 tokens" not in page.text.split("Cost against")[-1] \
        .split("Measured against")[0]
    assert "calibrated at 1024, 4096 and 8192 tokens" in page.text
    assert "When the batch size changes: no." in page.text


def test_the_autopilot_follows_its_standing_target(tmp_path, model_path):
    """There is room for more full layers than serve: it measures the machine, goes up to its limit
    by an ordinary morph, tells why, and leaves the pointer alone once it is switched off."""
    from morphserve.v1 import morph_pb2 as pb, morph_pb2_grpc

    settings = {"model.branches": str(BRANCHES), "limits.context_tokens": "2048",
                "plans.active": "full_layers=10", "morph.watch_s": "1", "morph.canary_prompts": "1",
                "morph.autopilot.enabled": "true", "morph.autopilot.tpot_ms": "100000",
                "morph.autopilot.k_max": "14", "morph.autopilot.quality_min": "0",
                "morph.autopilot.samples_min": "40"}
    with serving(tmp_path, model_path, settings) as running, running.channel() as channel, \
            running.channel("admin") as admin:
        client, morph = Client(channel), morph_pb2_grpc.MorphStub(admin)
        watch, seen, done = morph.WatchMorph(pb.WatchMorphRequest()), [], threading.Event()

        def take():
            for event in watch:
                seen.append(event)
                if event.phase >= pb.MorphProgress.PHASE_APPLIED:
                    break
            done.set()

        reader = threading.Thread(target=take)
        reader.start()
        number = 0
        while not done.is_set() and number < 300:
            answer(client, number := number + 1)
        assert done.wait(60)
        reader.join()
        assert {event.origin for event in seen} == {pb.MORPH_ORIGIN_AUTOPILOT}
        assert seen[0].phase == pb.MorphProgress.PHASE_SELECTING and "ROOM" in seen[0].message
        assert seen[-1].phase == pb.MorphProgress.PHASE_APPLIED, seen[-1]
        assert getattr(seen[-1], "from").full_layers == 10
        assert seen[-1].to.full_layers == 14
        shown = ctl(running, "autopilot")
        assert shown.returncode == 0 and "p95 of 1e+05 ms" in shown.stdout, shown.stdout
        state = json.loads(ctl(running, "--json", "autopilot", "--off").stdout)
        assert state["target"]["enabled"] is False
        assert state["last_morph_id"] == seen[-1].morph_id
        url = f"http://{running.address('http')}/metrics"
        page = urllib.request.urlopen(url, timeout=10).read().decode()
        room = next(line for line in page.splitlines()
                    if "autopilot_decisions_total" in line and 'reason="ROOM"' in line)
        assert float(room.rsplit(" ", 1)[1]) == 1


def test_a_standing_target_outlives_a_restart(tmp_path, model_path):
    """What a call sets comes back after a restart, off as well as on; a file that is damaged is
    refused and the settings hold; a server without a file says that nothing is kept."""
    kept = tmp_path / "target.json"
    settings = {"model.branches": str(BRANCHES), "limits.context_tokens": "256",
                "morph.autopilot.tpot_ms": "900", "morph.autopilot.percentile": "90"}
    with_file = {**settings, "morph.autopilot.target_file": str(kept)}

    def shown(server, *arguments):
        done = ctl(server, "--json", "autopilot", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with serving(tmp_path, model_path, with_file) as server:
        assert shown(server)["origin"]["source"] == "AUTOPILOT_TARGET_SOURCE_SETTINGS"
        call = shown(server, "--tpot-ms", "700", "--max-full", "12")
        assert call["origin"]["source"] == "AUTOPILOT_TARGET_SOURCE_CALL"
        assert call["origin"]["kept"] is True and kept.exists()
    with serving(tmp_path, model_path, with_file) as server:
        back = shown(server)
        assert back["target"] == call["target"] and back["target"]["tpot_ms"] == 700
        assert back["origin"]["source"] == "AUTOPILOT_TARGET_SOURCE_FILE"
        assert back["origin"]["set_at"] == call["origin"]["set_at"]
        line = ctl(server, "plans").stdout.splitlines()[-1]
        assert line.startswith("autopilot: on; p90 of 700 ms") and "before the server's" in line
        shown(server, "--off")
    with serving(tmp_path, model_path, with_file) as server:
        assert shown(server)["target"].get("enabled", False) is False
        assert shown(server)["target"]["tpot_ms"] == 700
    kept.write_text(kept.read_text()[:40])
    with serving(tmp_path, model_path, with_file) as server:
        refused_file = shown(server)
        assert refused_file["target"]["tpot_ms"] == 900
        assert "was refused" in refused_file["origin"]["note"]
        assert "the settings hold" in server.log()
    with serving(tmp_path, model_path, settings) as server:
        origin = shown(server, "--on")["origin"]
        assert not origin.get("kept") and "target_file is not set" in origin["note"]
