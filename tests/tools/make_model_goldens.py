"""Writes the expected outputs of whole models under tests/golden/models, from transformers in fp32.

    python tests/tools/make_model_goldens.py tiny            after make_tiny_checkpoints.py
    python tests/tools/make_model_goldens.py dequant rope
    python tests/tools/make_model_goldens.py smollm2 PATH_TO_GGUF

Formats: tests/golden/models/README.md. Needs torch, transformers, tokenizers and gguf; the results
are committed, so that building and testing need none of them.
"""

import hashlib
import importlib.metadata
import json
import pathlib
import sys

import gguf
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from make_tiny_checkpoints import FOLDERS

OUT = pathlib.Path(__file__).resolve().parent.parent / "golden" / "models"
GREEDY_TOKENS = 24
TINY_LENGTHS = (1, 70, 200)


def versions():
    names = ("transformers", "torch", "gguf", "tokenizers", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def write(name, data):
    text = json.dumps(data, separators=(",", ":"))
    (OUT / name).write_text(text.replace('},{"', '},\n{"') + "\n")
    print(f"{name}: {len(text)} bytes")


def rounded(values, digits):
    return [float(f"{v:.{digits}g}") for v in np.asarray(values, dtype=np.float64).tolist()]


def quiet(model):
    return model.to(torch.float32).eval()


@torch.inference_mode()
def logits_of(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


@torch.inference_mode()
def greedy(model, ids, cached):
    """Tokens, and by how much each one's logit leads the runner-up's."""
    tokens, gaps = [], []
    state = model(torch.tensor([ids]), use_cache=cached)
    for _ in range(GREEDY_TOKENS):
        top = torch.topk(state.logits[0, -1].float(), 2)
        tokens.append(int(top.indices[0]))
        gaps.append(float(f"{float(top.values[0] - top.values[1]):.4g}"))
        if cached:
            state = model(torch.tensor([[tokens[-1]]]), use_cache=True,
                          past_key_values=state.past_key_values)
        else:
            state = model(torch.tensor([ids + tokens]), use_cache=False)
    return tokens, gaps


# --- tiny checkpoints -------------------------------------------------------------------------


def load_folder(name):
    return quiet(transformers.AutoModelForCausalLM.from_pretrained(
        OUT / "tiny" / name, dtype=torch.float32, attn_implementation="eager"))


def unpermute(weights, heads):
    """GGUF llama files hold rotary rows as pairs (2i, 2i + 1); transformers wants halves."""
    d = weights.shape[0] // heads
    return (weights.reshape(heads, d // 2, 2, *weights.shape[1:]).swapaxes(1, 2)
            .reshape(weights.shape))


def hugging_face_name(name):
    top = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight",
           "output_norm.weight": "model.norm.weight"}
    if name in top:
        return top[name]
    for old, new in [("blk.", "model.layers."), ("attn_norm", "input_layernorm"),
                     ("ffn_norm", "post_attention_layernorm"), ("attn_q.", "self_attn.q_proj."),
                     ("attn_k.", "self_attn.k_proj."), ("attn_v.", "self_attn.v_proj."),
                     ("attn_output", "self_attn.o_proj"), ("ffn_gate", "mlp.gate_proj"),
                     ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")]:
        name = name.replace(old, new)
    return name


def load_llama_gguf(path):
    """A llama file, every tensor dequantised to f32, as a transformers model."""
    reader = gguf.GGUFReader(path)
    meta = {key: field.contents() for key, field in reader.fields.items()
            if key.startswith("llama.")}
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    state = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(n) for n in reversed(tensor.shape)])
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            values = unpermute(values, heads if ".attn_q." in tensor.name else kv_heads)
        state[hugging_face_name(tensor.name)] = torch.from_numpy(values.copy())
    tied = "lm_head.weight" not in state
    config = transformers.LlamaConfig(
        hidden_size=meta["llama.embedding_length"], intermediate_size=
        meta["llama.feed_forward_length"], num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=meta.get("llama.attention.key_length"),
        vocab_size=state["model.embed_tokens.weight"].shape[0],
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"], tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"]), (missing, unexpected)
    if tied:
        model.tie_weights()
    return quiet(model)


def tiny_positions(length):
    return sorted({0, length // 3, 63, 64, length - 2, length - 1} & set(range(length)))


def tiny_golden(name, model):
    vocabulary = model.config.vocab_size
    random = np.random.default_rng(sum(name.encode()))
    prompts = []
    for length in TINY_LENGTHS:
        ids = random.integers(0, vocabulary, length).tolist()
        logits = logits_of(model, ids)
        tokens, gaps = greedy(model, ids, cached=False)
        prompts.append({"ids": ids, "positions": tiny_positions(length),
                        "logits": [rounded(logits[p], 7) for p in tiny_positions(length)],
                        "greedy": tokens, "gaps": gaps})
    return {"checkpoint": name, "vocab": vocabulary, "prompts": prompts}


def make_tiny():
    goldens = []
    for name in FOLDERS:
        model = load_folder(name)
        goldens.append(tiny_golden(name, model))
        twin = {"llama-llama3-tied-f32": "llama-llama3-tied-f32.gguf",
                "qwen3-norm-sharded-bf16": "qwen3-norm-bf16.gguf"}.get(name)
        if twin:
            goldens[-1]["twin"] = twin
    quantised = "llama-quantised.gguf"
    goldens.append(tiny_golden(quantised, load_llama_gguf(OUT / "tiny" / quantised)))
    write("tiny.json", {"versions": versions(), "models": goldens})


# --- dequantisation ---------------------------------------------------------------------------


def dequant_blocks(kind, size, random):
    """Random bytes with finite scales; the last block has every other byte at its maximum."""
    scale_at = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2),
                "Q6_K": (208,)}
    data = random.integers(0, 256, (4, size), dtype=np.uint8)
    data[3] = 255
    for at in scale_at.get(kind, ()):
        scale = random.uniform(-0.1, 0.1, (4, 1)).astype(np.float16)
        scale[2] = np.float16(3e-6)  # A subnormal half.
        data[:, at:at + 2] = scale.view(np.uint8)
    if kind in ("F16", "BF16", "F32"):
        values = (random.standard_normal((4, 32)) * 10.0 ** random.integers(-6, 4, (4, 32)))
        if kind == "F16":
            data = np.clip(values, -6e4, 6e4).astype(np.float16).view(np.uint8)
        else:
            data = values.astype(np.float32).view(np.uint8).reshape(4, 32, 4)
            data = (data[:, :, 2:] if kind == "BF16" else data).reshape(4, -1)
    return np.ascontiguousarray(data)


def make_dequant():
    random = np.random.default_rng(5)
    entries = []
    for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K"):
        number = gguf.GGMLQuantizationType[kind]
        data = dequant_blocks(kind, gguf.GGML_QUANT_SIZES[number][1], random)
        values = gguf.quants.dequantize(data, number).astype(np.float32).reshape(-1)
        assert np.isfinite(values).all()
        entries.append({"type": kind, "bytes": data.tobytes().hex(),
                        "values": [float(str(v)) for v in values]})
    write("dequant.json", {"versions": versions(), "types": entries})


# --- rotary tables ----------------------------------------------------------------------------

ROPES = [
    dict(rope_type="default", rope_theta=10000.0),
    dict(rope_type="default", rope_theta=1e6),
    dict(rope_type="linear", rope_theta=10000.0, factor=4.0),
    dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
         high_freq_factor=4.0, original_max_position_embeddings=8192),
    dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0,
         high_freq_factor=4.0, original_max_position_embeddings=8192),
    dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768),
    dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, beta_fast=24.0, beta_slow=2.0,
         mscale=0.707, mscale_all_dim=1.0, original_max_position_embeddings=4096),
    dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, truncate=False,
         original_max_position_embeddings=4096),
    dict(rope_type="yarn", rope_theta=10000.0, factor=8.0, attention_factor=0.83,
         original_max_position_embeddings=2048),
    dict(rope_type="yarn", rope_theta=10000.0, factor=2.0, beta_fast=1.0, beta_slow=1.0,
         original_max_position_embeddings=65536),
]


def make_rope():
    entries = []
    for head_dim in (64, 20):
        for rope in ROPES:
            config = transformers.LlamaConfig(
                hidden_size=2 * head_dim, num_attention_heads=2, max_position_embeddings=131072,
                rope_parameters=dict(rope))
            if rope["rope_type"] == "default":
                inverse = 1.0 / rope["rope_theta"] ** (
                    torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim)
                magnitude = 1.0
            else:
                inverse, magnitude = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
            entries.append({"head_dim": head_dim, "rope_parameters": rope,
                            "inverse_frequency": rounded(inverse.numpy(), 9),
                            "magnitude": magnitude})
    write("rope.json", {"versions": versions(), "tables": entries})


# --- the default model ------------------------------------------------------------------------

CHATS = [
    "Hi!", "What is the capital of France?", "Write a haiku about the sea.",
    "Explain in one paragraph why the sky is blue.", "List five fruits, one a line.",
    "Translate to Spanish: The train leaves at nine in the morning.",
    "What is 17 + 26? Answer with the number alone.",
    "Write a Python function that reverses a string.",
    "¿Dónde está la biblioteca? Responde en español, por favor.",
    "Summarise in two sentences: A lighthouse keeper lived alone on a rock in the sea. Each "
    "evening he climbed the stairs, lit the lamp and wrote the weather into a book. One winter the "
    "supply boat did not come for nine weeks, and he learned to fish from the window.",
]
PLAIN = [
    "Once upon a time", "The three laws of thermodynamics are", "def fibonacci(n):\n",
    "1, 1, 2, 3, 5, 8, 13,", "    \n\n\t  x", "SELECT name, age FROM people WHERE",
    "In 1969, two people walked on the", "Ünïcödé, 日本語 and 🙂 mixed:",
    "{\"name\": \"Ada\", \"born\": 1815, \"field\":", "A B C D E F G H I J K",
    "The quick brown fox jumps over the lazy dog. " * 9,
    "Water boils at one hundred degrees at sea level. On a mountain it boils sooner, because the "
    "air is thinner there. " * 15,
]


def smollm2_tokenizer(reader):
    """The file's own tokens and merges, with the splitter that its `pre` name stands for."""
    fields = {key: field.contents() for key, field in reader.fields.items()
              if key.startswith("tokenizer.")}
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([t for t, kind in zip(
        tokens, fields["tokenizer.ggml.token_type"]) if kind == 3])
    return tokenizer


def chat(text):
    return ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            f"Face<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


def smollm2_prompt(model, tokenizer, text, kind):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    logits = logits_of(model, ids)
    length = len(ids)
    rows = []
    for position in sorted({length // 4, length // 2, length - 2, length - 1}):
        row = logits[position].astype(np.float64)
        best = np.argsort(-row, kind="stable")[:8]
        rows.append({"position": position, "ids": best.tolist(),
                     "values": rounded(row[best], 7), "mean": float(f"{row.mean():.7g}"),
                     "rms": float(f"{np.sqrt((row ** 2).mean()):.7g}")})
    tokens, gaps = greedy(model, ids, cached=True)
    return {"kind": kind, "ids": ids, "rows": rows, "greedy": tokens, "gaps": gaps}


def make_smollm2(path):
    digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    tokenizer = smollm2_tokenizer(gguf.GGUFReader(path))
    model = load_llama_gguf(path)
    prompts = [smollm2_prompt(model, tokenizer, chat(text), "chat") for text in CHATS]
    prompts += [smollm2_prompt(model, tokenizer, text, "plain") for text in PLAIN]
    print("lengths", [len(p["ids"]) for p in prompts])
    write("smollm2.json", {"versions": versions(), "file_sha256": digest, "prompts": prompts})


def main():
    torch.manual_seed(0)
    wanted = sys.argv[1:]
    for number, what in enumerate(wanted):
        if what == "tiny":
            make_tiny()
        elif what == "dequant":
            make_dequant()
        elif what == "rope":
            make_rope()
        elif what == "smollm2" and number + 1 < len(wanted):
            make_smollm2(wanted[number + 1])
            return
        else:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
