"""A base checkpoint, GGUF file or Hugging Face folder, as the server sees it: canonical names, and
the id that a branches file names its base by. Needs numpy and gguf.

    python tests/tools/base_checkpoint.py PATH        prints the id
"""

import hashlib
import pathlib
import sys

import gguf
import numpy as np

import safetensors_file

LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down"}
MODEL_NAMES = {"model.embed_tokens.weight": "token_embd.weight",
               "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


def canonical(name):
    if name in MODEL_NAMES:
        return MODEL_NAMES[name]
    prefix, layer, rest = name.removeprefix("model.").split(".", 2)
    assert prefix == "layers", name
    for old, new in LAYER_NAMES.items():
        if rest.startswith(old):
            return f"blk.{layer}.{new}{rest[len(old):]}"
    raise ValueError(name)


def read(path):
    """{canonical name: (dtype name, row-major shape, raw bytes)}."""
    path = pathlib.Path(path)
    out = {}
    if path.is_dir():
        for file in sorted(path.glob("*.safetensors")):
            for name, tensor in safetensors_file.read(file)[0].items():
                out[canonical(name)] = tensor
        return out
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "rope_freqs.weight":  # Read into the configuration.
            continue
        shape = [int(n) for n in reversed(tensor.shape)]
        out[tensor.name] = (tensor.tensor_type.name, shape, tensor.data.tobytes())
    return out


def base_id(tensors):
    """SHA-256 over the sorted (name, type, shape, SHA-256 of the data) of every tensor."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        dtype, shape, raw = tensors[name]
        digest.update((" ".join([name, dtype, *map(str, shape)]) + "\n").encode())
        digest.update(hashlib.sha256(raw).digest())
    return digest.hexdigest()


def values(tensor):
    """A tensor as f32."""
    dtype, shape, raw = tensor
    if dtype in safetensors_file.TYPE_BYTES:
        return safetensors_file.values(tensor)
    kind = gguf.GGMLQuantizationType[dtype]
    rows = np.frombuffer(raw, np.uint8).reshape(shape[0], -1)
    return gguf.quants.dequantize(rows, kind).astype(np.float32).reshape(shape)


if __name__ == "__main__":
    print(base_id(read(sys.argv[1])))
