"""Writes the tiny random checkpoints of tests/golden/models/tiny: one folder or GGUF file a variant.

Every architecture at odd shapes, saved by transformers itself (folders) or by the gguf package
(files), so that the loader reads what the real writers write. Deterministic: fixed seeds. Run it
before make_model_goldens.py, from an environment with torch, transformers, tokenizers and gguf:

    python tests/tools/make_tiny_checkpoints.py
"""

import json
import math
import pathlib
import shutil

import gguf
import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

OUT = pathlib.Path(__file__).resolve().parent.parent / "golden" / "models" / "tiny"

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
        "original_max_position_embeddings": 128}

# name -> (configuration class, dtype, arguments)
FOLDERS = {
    "llama-llama3-tied-f32": (transformers.LlamaConfig, torch.float32, dict(
        hidden_size=48, num_attention_heads=3, num_key_value_heads=1, intermediate_size=72,
        vocab_size=101, num_hidden_layers=2, max_position_embeddings=512, rms_norm_eps=1e-5,
        tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "llama-yarn-bias-bf16": (transformers.LlamaConfig, torch.bfloat16, dict(
        hidden_size=48, num_attention_heads=3, num_key_value_heads=3, intermediate_size=72,
        vocab_size=97, num_hidden_layers=2, max_position_embeddings=512, rms_norm_eps=1e-6,
        attention_bias=True, rope_parameters=YARN)),
    "llama-linear-text-f16": (transformers.LlamaConfig, torch.float16, dict(
        hidden_size=60, num_attention_heads=3, num_key_value_heads=1, intermediate_size=72,
        vocab_size=144, num_hidden_layers=2, max_position_embeddings=512, rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 20000.0, "factor": 2.5})),
    "mistral-window-bf16": (transformers.MistralConfig, torch.bfloat16, dict(
        hidden_size=80, num_attention_heads=4, num_key_value_heads=2, intermediate_size=88,
        vocab_size=131, num_hidden_layers=2, max_position_embeddings=512, rms_norm_eps=1e-5,
        sliding_window=37)),
    "qwen2-bias-window-f16": (transformers.Qwen2Config, torch.float16, dict(
        hidden_size=72, num_attention_heads=3, num_key_value_heads=1, intermediate_size=76,
        vocab_size=113, num_hidden_layers=3, max_position_embeddings=512, rms_norm_eps=1e-6,
        tie_word_embeddings=True, use_sliding_window=True, sliding_window=50,
        max_window_layers=1)),
    "qwen3-norm-sharded-bf16": (transformers.Qwen3Config, torch.bfloat16, dict(
        hidden_size=64, num_attention_heads=6, num_key_value_heads=2, head_dim=24,
        intermediate_size=96, vocab_size=127, num_hidden_layers=2, max_position_embeddings=512,
        rms_norm_eps=1e-6)),
}
SHARD_BYTES = {"qwen3-norm-sharded-bf16": 80_000}


def randomise(model, seed):
    """Weights with which the logits are lively: every part of the network shows in them."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.3 * noise
        elif "embed_tokens" in name:
            # A tied head sees the embedding in the residual stream: a loud one only repeats itself.
            value = noise * (0.15 if model.config.tie_word_embeddings else 1)
        else:
            value = 1.5 * noise / math.sqrt(parameter.shape[-1])
        parameter.data.copy_(value)


def edit_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data, indent=1) + "\n")


def to_old_rope(config):
    """The spelling of rotary parameters before transformers 5."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype", "float16")


def write_text_files(folder):
    """A byte-level tokenizer of single characters, with a chat template and end tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [c for c in alphabet if ord(c) < 127] + ["Ġ", "Ċ"]
    tokens = ["<unk>", "<s>", "</s>", "<|end|>", *printable]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in tokens[:4]])
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "eos_token": "</s>",
         "tokenizer_class": "PreTrainedTokenizerFast",
         "chat_template": [
             {"name": "default", "template":
              "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>"
              "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"},
             {"name": "other", "template": "never used"}]}, indent=1) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(
        {"eos_token_id": [2, 3], "temperature": 0.7, "top_p": 0.9, "top_k": 40,
         "repetition_penalty": 1.1}, indent=1) + "\n")


def write_folder(name, seed):
    config_class, dtype, arguments = FOLDERS[name]
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    config = config_class(**arguments, bos_token_id=1, eos_token_id=2)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    model.to(dtype).save_pretrained(folder, max_shard_size=SHARD_BYTES.get(name, 10**9))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name == "llama-linear-text-f16":
        edit_json(folder / "config.json", to_old_rope)
        write_text_files(folder)


def permute(weights, heads):
    """Half-split rotary rows to the pairs (2i, 2i + 1) that GGUF llama files hold."""
    d = weights.shape[0] // heads
    return (weights.reshape(heads, 2, d // 2, *weights.shape[1:]).swapaxes(1, 2)
            .reshape(weights.shape))


def gguf_name(name):
    name = name.replace("model.embed_tokens", "token_embd").replace("lm_head", "output")
    name = name.replace("model.norm", "output_norm").replace("model.layers.", "blk.")
    for old, new in [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
                     ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"),
                     ("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"),
                     ("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm"),
                     ("mlp.", "ffn_"), ("_proj", "")]:
        name = name.replace(old, new)
    return name


def start_gguf(path, architecture, config, title):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(title)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    return writer


def finish_gguf(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama3_factors(rope, head_dim):
    """What the converters of GGUF files write as rope_freqs.weight for Llama 3."""
    frequency = rope["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
    wavelength = 2 * np.pi / frequency
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    smooth = ((rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"])
              / (rope["high_freq_factor"] - rope["low_freq_factor"]))
    blended = 1 / ((1 - smooth) / rope["factor"] + smooth)
    factors = np.where(wavelength < high, 1.0,
                       np.where(wavelength > low, rope["factor"], blended))
    return factors.astype(np.float32)


def write_twin(folder_name, architecture, path):
    """The same network as a folder's, as a GGUF file of F32 norms and F16 or F32 matrices."""
    model = transformers.AutoModelForCausalLM.from_pretrained(OUT / folder_name)
    config, float_type = model.config, FOLDERS[folder_name][1]
    writer = start_gguf(path, architecture, config, f"tiny twin of {folder_name}")
    if architecture == "qwen3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight",
                          llama3_factors(config.rope_parameters, config.head_dim))
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = permute(values, heads)
        if float_type == torch.bfloat16 and values.ndim == 2:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(gguf_name(name), packed,
                              raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(gguf_name(name), values.astype(np.float32))
    finish_gguf(writer)


def random_k_blocks(kind, blocks, random):
    """Any bytes are valid blocks; the scales are chosen so that the values are near +-0.15."""
    sizes = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
    data = random.integers(0, 256, (blocks, sizes[kind]), dtype=np.uint8)

    def scales(middle):
        values = (middle * random.uniform(0.5, 1.5, (blocks, 1))).astype(np.float16)
        return values.view(np.uint8)

    if kind == "Q6_K":
        data[:, 208:210] = scales(5e-5)
    else:
        step = 3e-4 if kind == "Q4_K" else 1.5e-4
        data[:, 0:2] = scales(step)
        data[:, 2:4] = scales(step * (7.5 if kind == "Q4_K" else 15.5))
    return data


def write_quantised(path):
    """One file that holds every quantised type, at the smallest shapes that take K blocks."""
    random = np.random.default_rng(77)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny quantised")
    writer.add_context_length(512)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(1)
    writer.add_key_length(24)
    writer.add_value_length(24)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(24)

    def matrix(name, rows, columns, kind, scale=1.0):
        kind_number = gguf.GGMLQuantizationType[kind]
        if kind.endswith("_K"):
            packed = random_k_blocks(kind, rows * columns // 256, random)
            packed = packed.reshape(rows, -1)
        else:
            values = random.standard_normal((rows, columns)) * scale / math.sqrt(columns)
            packed = gguf.quants.quantize(values.astype(np.float32), kind_number)
        writer.add_tensor(name, packed, raw_dtype=kind_number)

    def norm(name):
        writer.add_tensor(name, (1 + 0.2 * random.standard_normal(256)).astype(np.float32))

    matrix("token_embd.weight", 109, 256, "Q8_0", scale=16)
    norm("output_norm.weight")
    matrix("output.weight", 109, 256, "Q6_K")
    kinds = [("Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q5_K", "Q4_K", "Q4_1"),
             ("Q6_K", "Q4_K", "Q8_0", "Q8_0", "Q4_0", "Q6_K", "Q4_0")]
    for layer, (q, k, v, output, gate, up, down) in enumerate(kinds):
        p = f"blk.{layer}."
        norm(p + "attn_norm.weight")
        norm(p + "ffn_norm.weight")
        matrix(p + "attn_q.weight", 96, 256, q)
        matrix(p + "attn_k.weight", 24, 256, k)
        matrix(p + "attn_v.weight", 24, 256, v)
        matrix(p + "attn_output.weight", 256, 96, output, scale=2)
        matrix(p + "ffn_gate.weight", 96, 256, gate)
        matrix(p + "ffn_up.weight", 96, 256, up)
        matrix(p + "ffn_down.weight", 256, 96, down, scale=2)
    finish_gguf(writer)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(FOLDERS, start=100):
        write_folder(name, seed)
    write_twin("llama-llama3-tied-f32", "llama", OUT / "llama-llama3-tied-f32.gguf")
    write_twin("qwen3-norm-sharded-bf16", "qwen3", OUT / "qwen3-norm-bf16.gguf")
    write_quantised(OUT / "llama-quantised.gguf")
    total = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
    print(f"{total} bytes under {OUT.name}")


if __name__ == "__main__":
    main()
