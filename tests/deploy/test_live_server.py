"""The pages of a running server: what Prometheus scrapes, and the client that the README shows."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from deploy_paths import BASE, ROOT

BIN = pathlib.Path(os.environ.get("MORPHSERVE_BIN_DIR", ROOT / "build" / "release" / "bin"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Ports by listener of a server with the default model; a visible skip when there is none."""
    model = os.environ.get("MORPHSERVE_TEST_MODEL", "")
    if not (BIN / "morphserve").exists() or not pathlib.Path(model).is_file():
        pytest.skip("needs a release build and MORPHSERVE_TEST_MODEL")
    folder = tmp_path_factory.mktemp("server")
    ready, log = folder / "ready.json", folder / "log"
    settings = [f"--set=listen.{name}=127.0.0.1:0" for name in ("inference", "http", "admin")]
    with open(log, "wb") as sink:
        process = subprocess.Popen(
            [BIN / "morphserve", "--model", model, "--ready_file", ready, *settings,
             "--set=drain.withdraw_s=0", "--set=cache.arena_bytes=256MiB"],
            stdout=sink, stderr=sink)
    try:
        deadline = time.monotonic() + 120
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield json.loads(ready.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def scrape(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server['http']}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return answer.read().decode()


@pytest.fixture(scope="module")
def readme_client(server, tmp_path_factory):
    """What the README's example prints when it is run as it stands."""
    folder = tmp_path_factory.mktemp("client")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    (folder / "client.py").write_text(blocks[0])
    protos = sorted((ROOT / "proto").glob("morphserve/v1/*.proto"))
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", ROOT / "proto",
                    f"--python_out={folder}", f"--grpc_python_out={folder}", *protos], check=True)
    address = f"127.0.0.1:{server['inference']}"
    return subprocess.run([sys.executable, "client.py", address], cwd=folder,
                          text=True, capture_output=True, timeout=120, check=False)


def test_client_of_the_readme_streams_an_answer(readme_client):
    assert readme_client.returncode == 0, readme_client.stderr
    match = re.search(r"\[(\d+) tokens\]", readme_client.stdout)
    assert match and int(match.group(1)) > 1
    assert len(readme_client.stdout.split()) > 3


def test_scrape_is_well_formed(server, readme_client, run_tool):
    """promtool reads the text as Prometheus would, and objects to bad names and units."""
    text = scrape(server)
    result = run_tool("promtool", "check", "metrics", input=text)
    # Names that equal another server's are kept although promtool would have others.
    known = ("kv_cache_usage_perc", "non-histogram and non-summary metrics should not have")
    faults = [line for line in result.stdout.splitlines() if not any(k in line for k in known)]
    assert not faults and result.returncode in (0, 3), result.stdout


def test_scrape_shows_only_metrics_of_the_table(server, readme_client):
    table = (ROOT / "server" / "metric_table.cc").read_text()
    known = set(re.findall(r'^\s*\{"(\w+)", k[CGH],', table, re.MULTILINE))
    shown = set(re.findall(r"^# TYPE (\w+) ", scrape(server), re.MULTILINE))
    assert shown and shown <= known, sorted(shown - known)


def test_a_served_request_is_counted(server, readme_client):
    text = scrape(server)
    for name in ("morphserve_generation_tokens_total", "morphserve_request_success_total",
                 "morphserve_time_to_first_token_seconds_count"):
        values = re.findall(rf"^{name}\{{.*\}} ([0-9.e+]+)$", text, re.MULTILINE)
        assert sum(map(float, values)) > 0, name


@pytest.mark.parametrize("page", ["livez", "readyz", "statusz"])
def test_page_answers(server, page):
    with urllib.request.urlopen(f"http://127.0.0.1:{server['http']}/{page}", timeout=10) as answer:
        assert answer.status == 200 and answer.read()


def test_configuration_of_the_pods_is_accepted(server):
    """The server itself judges the file that the manifests ship; only the model is elsewhere."""
    model = os.environ["MORPHSERVE_TEST_MODEL"]
    result = subprocess.run(
        [BIN / "morphserve", f"--config={BASE / 'config.yaml'}", "--check_config",
         f"--set=model.path={model}", "--set=cache.arena_bytes=256MiB"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout
