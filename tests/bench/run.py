#!/usr/bin/env python3
"""Measures morphserve against the machine's limits and against llama.cpp in one run, as ratios.

    .cache/venv/bin/python tests/bench/run.py [--peer BUILD_DIR] [--threads N] [--out FILE.json]

Needs the release build and the default model (deploy/quickstart.sh --exit makes both). The peer is
built from the source package llama-cpp-python unless --peer names a finished build; without it
(--no-peer) only the machine's limits are compared with. Figures are medians; ours and the peer's
run next to each other, so that a noisy neighbour meets both.
"""

import argparse
import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / "build" / "release" / "bin"
PEER_TARGETS = ["llama-bench", "llama-batched-bench", "llama-server"]
PROMPT, ANSWER, CLIENTS = 128, 64, (1, 4, 16)


def run(command, **kw):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **kw)
    if result.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{result.stderr[-2000:]}")
    return result.stdout


def build_peer(folder):
    """llama.cpp from its Python source package, with clang: g++ 12 miscompiles AMX tiles."""
    done = folder / "bin" / "llama-server"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    run([sys.executable, "-m", "pip", "install", "-q", "scikit-build-core"])
    run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation",
         "--no-binary", "llama-cpp-python", "llama-cpp-python", "-d", folder])
    archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    run(["tar", "-xzf", archive, "-C", folder])
    source = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    run(["cmake", "-S", source, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
         "-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++", "-DGGML_NATIVE=ON",
         "-DLLAMA_CURL=OFF", "-DGGML_OPENMP=OFF", "-DLLAMA_BUILD_TESTS=OFF"])
    print("building the peer; this takes minutes", file=sys.stderr)
    run(["ninja", "-C", folder, *PEER_TARGETS])
    return folder


def peer_bench(peer, model, threads):
    """tokens/s of the peer's own bench programs, the better of flash attention on and off."""
    best = {}

    def note(name, value):
        best[name] = max(best.get(name, 0), value)

    for flash in ("0", "1"):
        rows = json.loads(run([peer / "bin" / "llama-bench", "-m", model, "-t", threads,
                               "-p", "512", "-n", "48", "-r", "3", "-fa", flash, "-o", "json"]))
        rows += json.loads(run([peer / "bin" / "llama-bench", "-m", model, "-t", threads, "-p", "0",
                                "-n", "24", "-d", "1024,4096", "-r", "2", "-fa", flash,
                                "-o", "json"]))
        for row in rows:
            if row["n_gen"]:
                note(f"decode batch 1 depth {row['n_depth']}", row["avg_ts"])
            else:
                note("prefill 512", row["avg_ts"])
        text = run([peer / "bin" / "llama-batched-bench", "-m", model, "-t", threads, "-c", "4096",
                    "-npp", "32", "-ntg", "32", "-npl", "4,16", "--output-format", "jsonl",
                    "-fa", "on" if flash == "1" else "off"])
        for line in text.splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                note(f"decode batch {row['pl']} depth 0", row["speed_tg"])
    return best


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def load_figures(calls, clients, requests):
    """calls(i) -> (ttft, tokens); a closed loop of `clients`: tokens/s and TTFT p50."""
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(calls, range(requests)))
    seconds = time.perf_counter() - begin
    return {"tokens_per_s": sum(tokens for _, tokens in results) / seconds,
            "ttft_ms": statistics.median(ttft for ttft, _ in results) * 1000}


def prompt_ids(i):
    generator = random.Random(i)
    return [generator.randrange(256, 49000) for _ in range(PROMPT)]


def ours_served(model, threads):
    sys.path.insert(0, str(ROOT / "tests" / "e2e"))
    import grpc
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        include = pathlib.Path(protoc.__file__).parent / "_proto"
        protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"-I{include}", f"--python_out={folder}",
                     f"--grpc_python_out={folder}",
                     *map(str, (ROOT / "proto/morphserve/v1").glob("*.proto"))])
        sys.path.insert(0, folder)
        from morphserve.v1 import inference_pb2, inference_pb2_grpc

        ready = pathlib.Path(folder) / "ready.json"
        server = subprocess.Popen(
            [BIN / "morphserve", "--model", model, "--ready_file", ready, "--set",
             f"device.threads={threads}"] + [part for name in ("inference", "http", "admin")
                                             for part in ("--set", f"listen.{name}=127.0.0.1:0")],
            stderr=subprocess.DEVNULL)
        while not ready.exists():
            time.sleep(0.02)
        port = json.loads(ready.read_text())["inference"]
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        stub = inference_pb2_grpc.InferenceStub(channel)

        def call(i):
            request = inference_pb2.GenerateRequest()
            request.tokens.ids.extend(prompt_ids(i))
            request.options.sampling.temperature = 0
            request.options.stopping.max_tokens = ANSWER
            request.options.stopping.ignore_eos = True
            begin = time.perf_counter()
            first, tokens = None, 0
            for event in stub.GenerateStream(request):
                if event.HasField("delta") and event.delta.tokens:
                    first = first or time.perf_counter() - begin
                    tokens += event.delta.tokens
            return first, tokens

        try:
            call(0)
            return {n: load_figures(call, n, 4 * n + 4) for n in CLIENTS}
        finally:
            server.terminate()
            server.wait()


def peer_served(peer, model, threads):
    port = free_port()
    server = subprocess.Popen(
        [peer / "bin" / "llama-server", "-m", model, "-t", str(threads), "-c", "8192", "-np", "16",
         "--port", str(port), "--no-webui", "-fa", "on"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def call(i):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        body = {"prompt": prompt_ids(i), "n_predict": ANSWER, "ignore_eos": True, "stream": True,
                "temperature": 0, "cache_prompt": False}
        begin = time.perf_counter()
        connection.request("POST", "/completion", json.dumps(body),
                           {"Content-Type": "application/json"})
        first, tokens = None, 0
        for line in connection.getresponse():
            if line.startswith(b"data: ") and b'"stop":true' not in line:
                first = first or time.perf_counter() - begin
                tokens += 1
        return first, tokens

    try:
        for _ in range(600):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            time.sleep(0.1)
        call(0)
        return {n: load_figures(call, n, 4 * n + 4) for n in CLIENTS}
    finally:
        server.terminate()
        server.wait()


def ratio(value, base):
    return f"{value / base:.2f} x" if base else "-"


def print_table(ours, peer, served, peer_service):
    print(f"\n{ours['paths']}, {ours['threads']} threads; read bandwidth "
          f"{ours['bandwidth'] / 1e9:.1f} GB/s; load {ours['load_s']:.2f} s; resident "
          f"{ours['resident_mib'] * 1048576 / ours['weight_bytes']:.2f} x weights\n")
    print("| what | morphserve | share of read bandwidth | llama.cpp | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for name, step in ours["steps"].items():
        other = peer.get(name, 0)
        share = f"{step['bus_share']:.2f}" if "decode" in name else "-"
        print(f"| {name} | {step['tokens_per_s']:.0f} tok/s | {share} | "
              f"{f'{other:.0f} tok/s' if other else '-'} | {ratio(step['tokens_per_s'], other)} |")
    for n in CLIENTS:
        mine, other = served[n], peer_service.get(n)
        for key, unit in (("tokens_per_s", "tok/s"), ("ttft_ms", "ms TTFT p50")):
            theirs = other[key] if other else 0
            print(f"| {n} streaming clients, {PROMPT} in, {ANSWER} out | {mine[key]:.0f} {unit} | - | "
                  f"{f'{theirs:.0f} {unit}' if other else '-'} | {ratio(mine[key], theirs)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("MORPHSERVE_TEST_MODEL", ""))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer", type=pathlib.Path, default=ROOT / ".cache" / "peer")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    if not args.model:
        found = sorted((ROOT / ".cache").rglob("*.gguf"))
        if not found:
            sys.exit("no model: run deploy/install_packages.sh, or give --model")
        args.model = str(found[0])
    peer = None if args.no_peer else build_peer(args.peer)
    ours = json.loads(run([BIN / "model_bench", args.model, "--threads", args.threads, "--json"]))
    their = peer_bench(peer, args.model, args.threads) if peer else {}
    served = ours_served(args.model, args.threads)
    their_service = peer_served(peer, args.model, args.threads) if peer else {}
    print_table(ours, their, served, their_service)
    if args.out:
        args.out.write_text(json.dumps({"ours": ours, "peer": their, "served": served,
                                        "peer_served": their_service}, indent=1))


if __name__ == "__main__":
    main()
