"""What a morph costs the requests that stream meanwhile: time between tokens during morphs and
roll-backs, beside the same load on either plan with nothing going on.

    .cache/venv/bin/python tests/bench/switch_latency.py --addr 127.0.0.1:8001 \\
        --admin-addr 127.0.0.1:8003 --full-layers 10 --clients 4

Against a running server with branches whose active plan stays otherwise alone. Every client
streams one answer after the other. A gap counts as one of a switch when any of it lies between
the call of a morph (its canary included) or of a roll-back and half a second after the answer; the
gap before a message of m tokens is m samples of gap / m. Costs are measured before the first phase.
"""

import argparse
import pathlib
import random
import sys
import threading
import time

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from second_turn import WORDS, client_protos  # noqa: E402

AFTER_S = 0.5  # What still belongs to a switch after its end.


class Client:
    """Streams answers until told to stop; keeps (begin, end, tokens) of every gap."""

    def __init__(self, stub, request, stop):
        self.gaps = []
        self.errors = []
        self.thread = threading.Thread(target=self.run, args=(stub, request, stop))
        self.thread.start()

    def run(self, stub, request, stop):
        seed = 0
        while not stop.is_set():
            seed += 1
            last = None
            try:
                for event in stub.GenerateStream(request(seed), timeout=600):
                    if event.WhichOneof("event") != "delta" or event.delta.tokens == 0:
                        continue
                    now = time.monotonic()
                    if last is not None:
                        self.gaps.append((last, now, event.delta.tokens))
                    last = now
                    if stop.is_set():
                        break
            except grpc.RpcError as error:
                self.errors.append(error)
                return


class Bench:
    def __init__(self, arguments, inference, morph):
        from morphserve.v1 import inference_pb2, morph_pb2

        self.arguments, self.pb, self.morph_pb = arguments, inference_pb2, morph_pb2
        self.inference, self.morph = inference, morph
        self.keys = random.Random()
        self.requests = 0

    def request_of(self, client):
        draw = random.Random(client)
        text = " ".join(draw.choice(WORDS) for _ in range(self.arguments.words))

        def make(seed):
            return self.pb.GenerateRequest(text=text, options={
                "stopping": {"max_tokens": self.arguments.tokens, "ignore_eos": True},
                "sampling": {"temperature": client % 2, "seed": 1000 * client + seed}})
        return make

    def morph_to(self, full_layers):
        request = self.morph_pb.MorphRequest(
            idempotency_key=f"bench-{self.keys.getrandbits(64):x}",
            spec={"target": {"full_layers": full_layers}}, watch={"seconds": 0})
        begin = time.monotonic()
        for event in self.morph.Morph(request):
            last = event
        if last.phase != self.morph_pb.MorphProgress.PHASE_APPLIED:
            sys.exit(f"a morph ended otherwise: {last}")
        return begin, time.monotonic() + AFTER_S

    def roll_back(self):
        begin = time.monotonic()
        self.morph.RollbackPlan(self.morph_pb.RollbackPlanRequest(
            idempotency_key=f"bench-{self.keys.getrandbits(64):x}"))
        return begin, time.monotonic() + AFTER_S

    def under_load(self, work):
        """Runs `work` while the clients stream; its answer and all gaps."""
        stop = threading.Event()
        clients = [Client(self.inference, self.request_of(i), stop)
                   for i in range(self.arguments.clients)]
        time.sleep(self.arguments.warm)
        try:
            answer = work()
        finally:
            stop.set()
            for client in clients:
                client.thread.join()
        errors = [error for client in clients for error in client.errors]
        if errors:
            sys.exit(f"{len(errors)} requests failed, the first with {errors[0]}")
        return answer, [gap for client in clients for gap in client.gaps]

    def steady(self):
        def wait():
            begin = time.monotonic()
            time.sleep(self.arguments.seconds)
            return [(begin, time.monotonic())]
        return overlapping(*self.under_load(wait))

    def switching(self):
        def loop():
            windows = []
            for _ in range(self.arguments.morphs):
                windows.append(self.morph_to(self.arguments.full_layers))
                time.sleep(AFTER_S)
                windows.append(self.roll_back())
                time.sleep(AFTER_S)
            return windows
        windows, gaps = self.under_load(loop)
        morphs = [end - AFTER_S - begin for begin, end in windows[::2]]
        return overlapping(windows, gaps), morphs


def overlapping(windows, gaps):
    """Milliseconds a token of the gaps that touch any of the windows."""
    return [1000 * (end - begin) / tokens for begin, end, tokens in gaps for _ in range(tokens)
            if any(begin < high and end > low for low, high in windows)]


def percentile(values, share):
    values = sorted(values)
    return values[min(int(share * len(values)), len(values) - 1)]


def show(name, gaps):
    print(f"{name:<26} {len(gaps):>8} {percentile(gaps, 0.5):>9.2f} {percentile(gaps, 0.9):>9.2f} "
          f"{percentile(gaps, 0.99):>9.2f} {max(gaps):>9.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--addr", default="127.0.0.1:8001")
    parser.add_argument("--admin-addr", default="127.0.0.1:8003")
    parser.add_argument("--full-layers", type=int, default=10, help="of the plan to morph to")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--words", type=int, default=64, help="of a prompt")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--seconds", type=float, default=20, help="of each steady phase")
    parser.add_argument("--warm", type=float, default=2, help="seconds before a phase counts")
    parser.add_argument("--morphs", type=int, default=10, help="morphs, and as many roll-backs")
    arguments = parser.parse_args()
    client_protos()
    from morphserve.v1 import inference_pb2_grpc, morph_pb2, morph_pb2_grpc

    with grpc.insecure_channel(arguments.addr) as channel, \
            grpc.insecure_channel(arguments.admin_addr) as admin:
        morph = morph_pb2_grpc.MorphStub(admin)
        bench = Bench(arguments, inference_pb2_grpc.InferenceStub(channel), morph)
        morph.GetCosts(morph_pb2.GetCostsRequest())
        before = morph.GetActivePlan(morph_pb2.GetActivePlanRequest()).plan.full_layers
        steady = bench.steady()
        switch, morphs = bench.switching()
        bench.morph_to(arguments.full_layers)
        target = bench.steady()
        bench.roll_back()
    print(f"{'ms between tokens':<26} {'samples':>8} {'p50':>9} {'p90':>9} {'p99':>9} {'most':>9}")
    show(f"steady, {before} full", steady)
    show(f"steady, {arguments.full_layers} full", target)
    show("during switches", switch)
    p99 = percentile(switch, 0.99)
    base = [percentile(gaps, 0.99) for gaps in (steady, target)]
    print(f"p99 during switches over steady p99: {p99 / base[0]:.3f} of the plan before, "
          f"{p99 / base[1]:.3f} of the plan after")
    print(f"{len(morphs)} morphs, canary included: {min(morphs):.2f} to {max(morphs):.2f} s")


if __name__ == "__main__":
    main()
