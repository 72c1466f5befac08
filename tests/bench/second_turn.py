"""What a chat's second turn costs beside its first: time to the first token, cold and cached.

    .cache/venv/bin/python tests/bench/second_turn.py --addr 127.0.0.1:8001 --plans 30 7 0

Against a running server with branches; each plan gets a conversation of its own of about
--words words, whose next turn should find all but its own words in the prefix cache.
"""

import argparse
import pathlib
import random
import sys
import tempfile

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = "river stone green quiet morning seven boat under winter light paper slow bridge".split()


def client_protos():
    out = tempfile.mkdtemp()
    include = pathlib.Path(protoc.__file__).parent / "_proto"
    files = sorted((ROOT / "proto" / "morphserve" / "v1").glob("*.proto"))
    code = protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"-I{include}", f"--python_out={out}",
                        f"--grpc_python_out={out}", *map(str, files)])
    if code != 0:
        sys.exit("the public protos do not compile")
    sys.path.insert(0, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--addr", default="127.0.0.1:8001")
    parser.add_argument("--plans", type=int, nargs="+", default=[30, 7, 0], help="full layers")
    parser.add_argument("--words", type=int, default=7000)
    arguments = parser.parse_args()
    client_protos()
    from morphserve.v1 import inference_pb2 as pb
    from morphserve.v1 import inference_pb2_grpc

    print("full layers  turn  prompt  cached   TTFT ms  of cold")
    with grpc.insecure_channel(arguments.addr) as channel:
        inference = inference_pb2_grpc.InferenceStub(channel)
        for plan in arguments.plans:
            draw = random.Random(plan)
            text = " ".join(draw.choice(WORDS) for _ in range(arguments.words))
            messages = [pb.ChatMessage(role="user", content=text)]
            cold = None
            for turn in (1, 2):
                request = pb.ChatRequest(messages=messages, options={
                    "stopping": {"max_tokens": 24}, "sampling": {"temperature": 0},
                    "plan": {"full_layers": plan}})
                answer = inference.Chat(request, timeout=600)
                usage, ttft = answer.done.usage, answer.done.timings.ttft_ms
                cold = cold or ttft
                print(f"{plan:>11} {turn:>5} {usage.prompt_tokens:>7} {usage.cached_tokens:>7} "
                      f"{ttft:>9.1f} {ttft / cold:>8.3f}")
                messages += [answer.choices[0].message,
                             pb.ChatMessage(role="user", content="And then?")]


if __name__ == "__main__":
    main()
