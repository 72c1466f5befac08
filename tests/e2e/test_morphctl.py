"""morphctl as a user runs it: output, exit codes, readable errors, files that can be resumed."""

import json
import re
import subprocess

import pytest
from conftest import BIN
from page_check import Page


@pytest.fixture()
def ctl(server):
    def run(*arguments, check=None, stdin=None):
        result = subprocess.run(
            [BIN / "morphctl", "--addr", server.address(), "--admin-addr",
             server.address("admin"), *map(str, arguments)],
            input=stdin, capture_output=True, text=True, timeout=120)
        if check is not None:
            assert result.returncode == check, result.stderr
        return result
    return run


@pytest.mark.smoke
def test_chat_streams_one_answer(ctl):
    answer = ctl("chat", "--prompt", "Explain in one paragraph why the sky is blue.",
                 "--temperature", 0, "--max-tokens", 40, "--stats", check=0)
    assert "Rayleigh" in answer.stdout and "prompt tokens" in answer.stderr


def test_chat_keeps_the_conversation_until_reset(ctl):
    talk = ctl("chat", "--temperature", 0, "--max-tokens", 12, "--stats", check=0,
               stdin="Hi!\nHow are you?\n/reset\nHi!\n/nonsense\n/exit\n")
    counts = [int(n) for n in re.findall(r"\[(\d+) prompt tokens", talk.stderr)]
    assert len(counts) == 3 and counts[1] > counts[0] + 12 and counts[2] == counts[0]
    assert talk.stdout.splitlines()[0] == talk.stdout.splitlines()[-1]
    assert "/nonsense" in talk.stderr


def test_generate_and_tokenize(ctl):
    text = ctl("generate", "--prompt", "The capital of France is", "--temperature", 0,
               "--max-tokens", 8, check=0).stdout
    assert "Paris" in text
    as_json = json.loads(ctl("--json", "generate", "--prompt", "The capital of France is",
                             "--temperature", 0, "--max-tokens", 8, check=0).stdout)
    assert as_json["text"] == text.rstrip("\n") and len(as_json["token_ids"]) == 8
    ids = json.loads(ctl("--json", "tokenize", "hello world", check=0).stdout)["token_ids"]
    assert ctl("detokenize", *ids, check=0).stdout == "hello world\n"


def test_a_file_of_requests_runs_and_resumes(ctl, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    greedy = {"temperature": 0, "max_tokens": 6}
    lines = [
        {"id": "chat", "messages": [{"role": "user", "content": "Hi"}], "sampling": greedy},
        {"id": "text", "prompt": "Once", "sampling": greedy},
        {"id": "ids", "token_ids": [500, 501, 502], "sampling": greedy},
        {"id": "bad", "prompt": "x", "sampling": {"temperature": -1}},
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = ctl("generate", "--input", source, "--output", target, check=1)
    assert "3 done" not in first.stderr and "1 failed" in first.stderr
    results = {r["id"]: r for r in map(json.loads, target.read_text().splitlines())}
    assert len(results["text"]["token_ids"]) == 6
    assert results["chat"]["finish_reason"] in ("length", "eos")
    assert results["bad"]["error"]["reason"] == "FIELD_INVALID"
    # A crash in the middle of a line, and the fault mended: only what is missing runs again.
    target.write_text(target.read_text() + '{"id":"te')
    lines[3]["sampling"] = greedy
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = ctl("generate", "--input", source, "--output", target, check=0)
    assert "3 of 4 results are there already" in again.stderr
    assert [json.loads(line)["id"] for line in target.read_text().splitlines()].count("bad") == 2


@pytest.mark.parametrize("line,word", [
    ("{not json", "line 1"), ('{"id":"a"}', "exactly one"), ('{"prompt":"x","colour":1}', "colour"),
    ('{"prompt":"x","sampling":{"warmth":1}}', "warmth"),
])
def test_a_faulty_file_is_refused_by_line(ctl, tmp_path, line, word):
    (tmp_path / "in.jsonl").write_text(line + "\n")
    result = ctl("generate", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "o", check=2)
    assert word in result.stderr


def test_bench_reports_in_text_and_json(ctl):
    text = ctl("bench", "--requests", 6, "--concurrency", 3, "--prompt-tokens", 40,
               "--output-tokens", 8, check=0).stdout
    for word in ("TTFT", "TPOT", "ITL", "E2EL", "throughput"):
        assert word in text
    report = json.loads(ctl("--json", "bench", "--requests", 6, "--rate", 50, "--prompt-tokens", 40,
                            "--output-tokens", 8, "--slo-ttft-ms", 60000, check=0).stdout)["report"]
    assert report["ok"] == 6 and report["failed"] == 0 and report["goodput_per_s"] > 0
    assert report["ttft_ms"]["p50"] <= report["e2el_ms"]["p50"]


def test_status_and_models(ctl):
    assert "ready" in ctl("status", check=0).stdout
    assert json.loads(ctl("--json", "status", check=0).stdout)["server"]["state"] == "ready"
    assert "49152" in ctl("models", check=0).stdout


@pytest.mark.smoke
def test_a_report_of_a_dense_model_says_what_is_missing(ctl, tmp_path):
    page = Page(ctl("report", "--out", "-", check=0).stdout)
    assert not page.faults
    assert page.text.count("without linear branches") == 5 and "30 of 30 layers full" in page.text
    charts = [name for name in page.charts if not name.startswith("Active plan")]
    assert charts == ["Cache memory of a sequence"], "no plot without data"
    nowhere = ctl("report", "--out", tmp_path / "no" / "such.html", check=1)
    assert "cannot write" in nowhere.stderr and "No such file" in nowhere.stderr
    assert "limit is" in ctl("report", "--context", "1000000", check=2).stderr
    assert ctl("report", "--batch", "0", check=2).stderr


def test_errors_are_readable_and_coded(ctl):
    bad = ctl("generate", "--prompt", "x", "--temperature", -1, check=1)
    assert "FIELD_INVALID" in bad.stderr and "temperature" in bad.stderr
    assert ctl("nonsense", check=2).stderr
    assert ctl("generate", check=2).stderr
    assert ctl("--help", check=0).stdout.count("Examples") == 1
    assert "morphctl --help" in ctl("status", "--help", check=0).stdout  # Not all examples again.
    assert "--rate" in ctl("bench", "--help", check=0).stdout.split("Examples")[1]
    nobody = subprocess.run([BIN / "morphctl", "--addr", "127.0.0.1:1", "status"],
                            capture_output=True, text=True, timeout=60)
    assert nobody.returncode == 1 and "UNAVAILABLE" in nobody.stderr
