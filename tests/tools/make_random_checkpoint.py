"""Writes a checkpoint of random weights in a real model's shape, and linear branches for it, so that
real sizes are measured without a download. Speed does not depend on the values.

    python tests/tools/make_random_checkpoint.py SHAPE FOLDER [--branches FILE] [--layers N] [--fp8]

SHAPE: qwen3-1.7b, qwen3-8b, llama-70b (as many of its layers as --layers says; the rest is
extrapolated), smollm2-135m. Weights are bf16, in one safetensors file a layer; with --fp8 those
of layers are e4m3 with a scale per 128 x 128 block, as in Qwen3-8B-FP8. Branches are gated_delta with
shared projections, rank 64. Uses torch and its GPU where there is one, else numpy.
"""

import argparse
import hashlib
import json
import pathlib
import struct
import sys

SHAPES = {
    "smollm2-135m": dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=576,
                         num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                         head_dim=64, intermediate_size=1536, vocab_size=49152,
                         tie_word_embeddings=True, rope_theta=100000.0),
    "qwen3-1.7b": dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=2048,
                       num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
                       head_dim=128, intermediate_size=6144, vocab_size=151936,
                       tie_word_embeddings=True, rope_theta=1000000.0),
    "qwen3-8b": dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=4096,
                     num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
                     head_dim=128, intermediate_size=12288, vocab_size=151936,
                     tie_word_embeddings=False, rope_theta=1000000.0),
    "llama-70b": dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=8192,
                      num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
                      head_dim=128, intermediate_size=28672, vocab_size=128256,
                      tie_word_embeddings=False, rope_theta=500000.0),
}
RANK = 64
TAPS = 4


class Numbers:
    """Normal numbers as raw bf16 or f32."""

    def __init__(self, seed):
        try:
            import torch
        except ImportError:
            torch = None
        self.torch = torch
        if torch is not None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
            self.generator = torch.Generator(self.device).manual_seed(seed)
        else:
            import numpy
            self.numpy = numpy
            self.random = numpy.random.default_rng(seed)

    def bf16(self, shape, deviation, mean=0.0):
        if self.torch is not None:
            t = self.torch
            values = t.empty(shape, device=self.device, dtype=t.float32)
            values.normal_(mean, deviation, generator=self.generator)
            return values.to(t.bfloat16).view(t.uint16).cpu().numpy().tobytes()
        values = self.random.standard_normal(shape, dtype="f4") * deviation + mean
        bits = values.astype("<f4").view("<u4")
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        return (rounded >> 16).astype("<u2").tobytes()

    def e4m3(self, shape):
        """Codes that are numbers, 125 in the mean."""
        if self.torch is not None:
            t = self.torch
            codes = t.randint(0, 256, shape, device=self.device, dtype=t.uint8,
                              generator=self.generator)
            return t.where((codes & 127) == 127, codes ^ 1, codes).cpu().numpy().tobytes()
        codes = self.random.integers(0, 256, shape, dtype="u1")
        return self.numpy.where((codes & 127) == 127, codes ^ 1, codes).astype("u1").tobytes()

    @staticmethod
    def f32(values):
        return struct.pack(f"<{len(values)}f", *values)


def write_safetensors(path, tensors, metadata):
    """tensors: [(name, dtype, shape, bytes)]."""
    header, at = {"__metadata__": metadata}, 0
    for name, dtype, shape, raw in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, _, raw in tensors:
            file.write(raw)


BLOCK = 128


def weight_and_scale(config, numbers, theirs, ours, n, k):
    if "quantization_config" not in config:
        yield theirs, ours, "BF16", (n, k), numbers.bf16((n, k), k ** -0.5), b""
        return
    blocks = (-(-n // BLOCK), -(-k // BLOCK))
    scale = numbers.bf16(blocks, 0.0, k ** -0.5 / 125)
    yield theirs, ours, "F8_E4M3", (n, k), numbers.e4m3((n, k)), scale
    yield theirs + "_scale_inv", "", "BF16", blocks, scale, b""


def layer_tensors(config, numbers, layer):
    """(name in the file, name in the base id or "", type, shape, bytes, bytes that the id hashes before
    them) of one layer."""
    hidden, width = config["hidden_size"], config["intermediate_size"]
    dim = config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    prefix, canonical = f"model.layers.{layer}.", f"blk.{layer}."
    matrices = [("self_attn.q_proj", "attn_q", q, hidden), ("self_attn.k_proj", "attn_k", kv, hidden),
                ("self_attn.v_proj", "attn_v", kv, hidden),
                ("self_attn.o_proj", "attn_output", hidden, q),
                ("mlp.gate_proj", "ffn_gate", width, hidden), ("mlp.up_proj", "ffn_up", width, hidden),
                ("mlp.down_proj", "ffn_down", hidden, width)]
    for theirs, ours, n, k in matrices:
        yield from weight_and_scale(config, numbers, prefix + theirs + ".weight",
                                    canonical + ours + ".weight", n, k)
    norms = [("input_layernorm", "attn_norm", hidden), ("post_attention_layernorm", "ffn_norm", hidden)]
    if config["model_type"] == "qwen3":
        norms += [("self_attn.q_norm", "attn_q_norm", dim), ("self_attn.k_norm", "attn_k_norm", dim)]
    for theirs, ours, n in norms:
        yield (prefix + theirs + ".weight", canonical + ours + ".weight", "BF16", (n,),
               numbers.bf16((n,), 0.1, 1.0), b"")


def outer_tensors(config, numbers):
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    yield ("model.embed_tokens.weight", "token_embd.weight", "BF16", (vocab, hidden),
           numbers.bf16((vocab, hidden), 0.02), b"")
    yield ("model.norm.weight", "output_norm.weight", "BF16", (hidden,),
           numbers.bf16((hidden,), 0.1, 1.0), b"")
    if not config["tie_word_embeddings"]:
        yield ("lm_head.weight", "output.weight", "BF16", (vocab, hidden),
               numbers.bf16((vocab, hidden), hidden ** -0.5), b"")


def write_base(config, folder, numbers):
    """The id of the base: SHA-256 over the sorted (name, type, shape, SHA-256 of the data)."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = config["num_hidden_layers"]
    index, lines, total = {}, {}, 0
    for part in range(layers + 1):
        name = f"model-{part + 1:05d}-of-{layers + 1:05d}.safetensors"
        tensors = outer_tensors(config, numbers) if part == layers else layer_tensors(
            config, numbers, part)
        entries = []
        for theirs, ours, dtype, shape, raw, scale in tensors:
            entries.append((theirs, dtype, shape, raw))
            index[theirs] = name
            total += len(raw)
            if ours:
                line = " ".join([ours, dtype, *map(str, shape)]) + "\n"
                lines[ours] = line.encode() + hashlib.sha256(scale + raw).digest()
        write_safetensors(folder / name, entries, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return hashlib.sha256(b"".join(lines[name] for name in sorted(lines))).hexdigest()


def write_branches(config, base_id, path, numbers):
    hidden, dim = config["hidden_size"], config["head_dim"]
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    width = heads * dim
    tensors = []
    for layer in range(layers):
        prefix = f"layers.{layer}.linear."
        shapes = {"aq": (RANK, hidden), "ak": (RANK, hidden), "av": (RANK, hidden),
                  "bq": (width, RANK), "bk": (width, RANK), "bv": (width, RANK),
                  "ao": (RANK, width), "bo": (hidden, RANK), "conv": (TAPS, 3 * width),
                  "wa": (heads, hidden), "wb": (heads, hidden), "b_beta": (heads,),
                  "gd": (RANK, hidden), "gu": (width, RANK), "gb": (width,)}
        for name, shape in shapes.items():
            deviation = shape[-1] ** -0.5 if len(shape) == 2 else 0.3
            tensors.append((prefix + name, "BF16", shape, numbers.bf16(shape, deviation)))
        for name, values in (("a_log", [0.0] * heads), ("dt_bias", [-2.0] * heads),
                             ("nw", [1.0] * width)):
            tensors.append((prefix + name, "F32", (len(values),), numbers.f32(values)))
    metadata = {"format": 1, "base_id": base_id, "base_name": "random", "kind": "gated_delta",
                "parameterisation": "shared", "heads": heads, "head_dim": dim, "rank": RANK,
                "gate_rank": RANK, "conv": TAPS, "silu": True, "rope": True, "qk_norm": "l2",
                "eps": 1e-6, "norm_eps": 1e-5, "scale": dim ** -0.5,
                "rankings": [{"selector": "random", "order": list(range(layers)), "default": True}]}
    write_safetensors(path, tensors, {"morphserve": json.dumps(metadata)})


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--branches", type=pathlib.Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    config = dict(SHAPES[arguments.shape], max_position_embeddings=131072, rms_norm_eps=1e-6,
                  torch_dtype="bfloat16", hidden_act="silu", attention_bias=False)
    if arguments.layers:
        config["num_hidden_layers"] = arguments.layers
    if arguments.fp8:
        config["quantization_config"] = {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK]}
    numbers = Numbers(arguments.seed)
    base_id = write_base(config, arguments.folder, numbers)
    if arguments.branches:
        write_branches(config, base_id, arguments.branches, numbers)
    print(base_id)
    return 0


if __name__ == "__main__":
    sys.exit(main())
