#!/usr/bin/env python3
"""Measures morphserve against the machine's limits and against llama.cpp in one run, as ratios.

    .cache/venv/bin/python tests/bench/run.py [--peer BUILD_DIR] [--threads N] [--out FILE.json]
    .cache/venv/bin/python tests/bench/run.py --table FILE.json...

Needs the release build and the default model (deploy/quickstart.sh --exit makes both). The peer is
built from the source package llama-cpp-python unless --peer names a finished build; without it
(--no-peer) only the machine's limits are compared with. Figures are medians; ours and the peer's
run next to each other, so that a noisy neighbour meets both. On a busy machine measure in several
runs, --parts steps or --parts served at a time, and let --table print the medians of all of them.
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

    bench = [peer / "bin" / "llama-bench", "-m", model, "-t", threads, "-o", "json"]
    for flash in ("0", "1"):
        rows = json.loads(run([*bench, "-fa", flash, "-p", "512", "-n", "48", "-r", "3"]))
        rows += json.loads(run([*bench, "-fa", flash, "-p", "0", "-n", "24", "-d", "1024,4096",
                                "-r", "1"]))
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
    """calls() -> (ttft, seconds, tokens); a closed loop of `clients`."""
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        results = [done.result() for done in [pool.submit(calls) for _ in range(requests)]]
    seconds = time.perf_counter() - begin
    return {"tokens_per_s": sum(tokens for _, _, tokens in results) / seconds,
            "ttft_ms": statistics.median(ttft for ttft, _, _ in results) * 1000,
            "tpot_ms": statistics.median((whole - ttft) / (tokens - 1)
                                         for ttft, whole, tokens in results) * 1000}


def resident_mib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0


def service_figures(server, begin, call):
    """A server that just became ready: start time, memory, then each number of clients."""
    figures = {"ready_s": time.perf_counter() - begin, "ready_mib": resident_mib(server.pid)}
    call()
    figures["clients"] = {str(n): load_figures(call, n, 4 * n + 4) for n in CLIENTS}
    figures["loaded_mib"] = resident_mib(server.pid)
    return figures


def prompt_ids():
    """A prompt that no other request has: no cache answers for either server."""
    return [random.randrange(256, 49000) for _ in range(PROMPT)]


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
        begin = time.perf_counter()
        server = subprocess.Popen(
            [BIN / "morphserve", "--model", model, "--ready_file", ready, "--set",
             f"device.threads={threads}"] + [part for name in ("inference", "http", "admin")
                                             for part in ("--set", f"listen.{name}=127.0.0.1:0")],
            stderr=subprocess.DEVNULL)
        while not ready.exists():
            if server.poll() is not None:
                sys.exit("morphserve did not start")
            time.sleep(0.005)
        port = json.loads(ready.read_text())["inference"]
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        stub = inference_pb2_grpc.InferenceStub(channel)

        def call():
            request = inference_pb2.GenerateRequest()
            request.tokens.ids.extend(prompt_ids())
            request.options.sampling.temperature = 0
            request.options.stopping.max_tokens = ANSWER
            request.options.stopping.ignore_eos = True
            sent = time.perf_counter()
            first, last, tokens = None, 0, 0
            for event in stub.GenerateStream(request):
                if event.HasField("delta") and event.delta.tokens:
                    last = time.perf_counter() - sent
                    first = first or last
                    tokens += event.delta.tokens
            return first, last, tokens

        try:
            return service_figures(server, begin, call)
        finally:
            server.terminate()
            server.wait()


def peer_served(peer, model, threads):
    port = free_port()
    begin = time.perf_counter()
    server = subprocess.Popen(
        [peer / "bin" / "llama-server", "-m", model, "-t", str(threads), "-c", "8192", "-np", "16",
         "--port", str(port), "--no-webui", "-fa", "on"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def call():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        body = {"prompt": prompt_ids(), "n_predict": ANSWER, "ignore_eos": True, "stream": True,
                "temperature": 0, "cache_prompt": False}
        sent = time.perf_counter()
        connection.request("POST", "/completion", json.dumps(body),
                           {"Content-Type": "application/json"})
        first, last, tokens = None, 0, 0
        for line in connection.getresponse():
            if line.startswith(b"data: ") and b'"stop":true' not in line:
                last = time.perf_counter() - sent
                first = first or last
                tokens += 1
        return first, last, tokens

    try:
        for _ in range(6000):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            time.sleep(0.01)
        return service_figures(server, begin, call)
    finally:
        server.terminate()
        server.wait()


def middle(parts, *path):
    """The median over the runs that have this figure; 0 when none has."""
    values = []
    for part in parts:
        for key in path:
            part = part.get(key) if part else None
        if part:
            values.append(part)
    return statistics.median(values) if values else 0


def ratio(value, base):
    return f"{value / base:.2f} x" if base and value else "-"


def figure(value, unit):
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}" if value else "-"


def print_table(parts):
    bench = next(part["ours"] for part in parts)
    weights_mib = bench["weight_bytes"] / 1048576
    print(f"{bench['paths']}, {bench['threads']} threads, {len(parts)} runs; read bandwidth "
          f"{middle(parts, 'ours', 'bandwidth') / 1e9:.1f} GB/s at best\n")
    print("| what | morphserve | share of read bandwidth | llama.cpp | ratio |")
    print("| --- | --- | --- | --- | --- |")
    # Where the peer's steps were measured too, only those runs: the same minutes for both.
    stepped = [part for part in parts if "peer" in part] or parts
    for name in bench["steps"]:
        mine = middle(stepped, "ours", "steps", name, "tokens_per_s")
        other = middle(stepped, "peer", name)
        share = middle(stepped, "ours", "steps", name, "bus_share")
        print(f"| {name} | {figure(mine, 'tok/s')} | {f'{share:.2f}' if 'decode' in name else '-'} "
              f"| {figure(other, 'tok/s')} | {ratio(mine, other)} |")
    print(f"| load of the weights, file cached | {figure(middle(parts, 'ours', 'load_s'), 's')} "
          "| - | - | - |")
    if any("served" in part for part in parts):
        print_served(parts, weights_mib)


def print_served(parts, weights_mib):
    for n in map(str, CLIENTS):
        for key, unit in (("tokens_per_s", "tok/s"), ("ttft_ms", "ms TTFT p50"),
                          ("tpot_ms", "ms a token")):
            mine = middle(parts, "served", "clients", n, key)
            other = middle(parts, "peer_served", "clients", n, key)
            print(f"| {n} streaming clients, {PROMPT} in, {ANSWER} out | {figure(mine, unit)} "
                  f"| - | {figure(other, unit)} | {ratio(mine, other)} |")
    # Both from the runs that have both: a step and a token of the same minutes.
    both = [part for part in parts if "served" in part]
    overhead = statistics.median(
        part["served"]["clients"]["1"]["tpot_ms"] -
        part["ours"]["steps"]["decode batch 1 depth 160"]["ms"] for part in both)
    print(f"| server's own time a streamed token, 1 client | {overhead:.2f} ms | - | - | - |")
    for key, name, unit in (("ready_s", "start to ready", "s"),
                            ("ready_mib", "resident when ready", "MiB"),
                            ("loaded_mib", "resident after 16 clients", "MiB")):
        mine, other = middle(parts, "served", key), middle(parts, "peer_served", key)
        note = f" ({mine / weights_mib:.2f} x weights)" if unit == "MiB" else ""
        print(f"| {name} | {figure(mine, unit)}{note} | - | {figure(other, unit)} "
              f"| {ratio(mine, other)} |")


def measure(args):
    if not args.model:
        found = sorted((ROOT / ".cache").rglob("*.gguf"))
        if not found:
            sys.exit("no model: run deploy/install_packages.sh, or give --model")
        args.model = str(found[0])
    peer = None if args.no_peer else build_peer(args.peer)
    part = {"ours": json.loads(run([BIN / "model_bench", args.model, "--threads", args.threads,
                                    "--json"]))}
    if "steps" in args.parts and peer:
        part["peer"] = peer_bench(peer, args.model, args.threads)
    if "served" in args.parts:
        part["served"] = ours_served(args.model, args.threads)
        if peer:
            part["peer_served"] = peer_served(peer, args.model, args.threads)
    return part


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("MORPHSERVE_TEST_MODEL", ""))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer", type=pathlib.Path, default=ROOT / ".cache" / "peer")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=("steps", "served"),
                        default=["steps", "served"])
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--table", nargs="+", type=pathlib.Path, metavar="FILE")
    args = parser.parse_args()
    if args.table:
        print_table([json.loads(path.read_text()) for path in args.table])
        return
    part = measure(args)
    print_table([part])
    if args.out:
        args.out.write_text(json.dumps(part, indent=1))


if __name__ == "__main__":
    main()
