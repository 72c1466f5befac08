"""The plainest forward pass of a model whose layers are full or linear, in numpy and fp64, one
position after the other where that is what the definition says. Shares nothing with the server:
written from engine/model/README.md and the configuration classes of transformers.
"""

import json
import math
import pathlib

import gguf
import numpy as np

import base_checkpoint
import safetensors_file


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def rms_norm(x, eps):
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + eps)


# --- the base ---------------------------------------------------------------------------------


class Base:
    """Weights in fp64 with rotary rows split in halves, whatever the file holds."""

    def __init__(self, path):
        path = pathlib.Path(path)
        raw = base_checkpoint.read(path)
        self.id = base_checkpoint.base_id(raw)
        self.w = {name: base_checkpoint.values(t).astype(np.float64) for name, t in raw.items()}
        if path.is_dir():
            self.read_json(json.loads((path / "config.json").read_text()))
        else:
            self.read_gguf(gguf.GGUFReader(path))
        self.head = self.w.get("output.weight", self.w["token_embd.weight"])

    def read_json(self, c):
        self.layers, self.hidden = c["num_hidden_layers"], c["hidden_size"]
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.head_dim = c.get("head_dim") or self.hidden // self.heads
        self.eps = c["rms_norm_eps"]
        kinds = c.get("layer_types", ["sliding_attention"] * self.layers)
        window = c.get("sliding_window") or 0
        self.window = [window if kind == "sliding_attention" else 0 for kind in kinds]
        rope = c.get("rope_parameters") or {
            "rope_theta": c["rope_theta"], "rope_type": c["rope_scaling"]["type"],
            "factor": c["rope_scaling"]["factor"]}
        self.rope(rope)

    def read_gguf(self, reader):
        meta = {key: field.contents() for key, field in reader.fields.items()}
        architecture = meta["general.architecture"]
        get = lambda key: meta[f"{architecture}.{key}"]
        self.layers, self.hidden = get("block_count"), get("embedding_length")
        self.heads, self.kv_heads = get("attention.head_count"), get("attention.head_count_kv")
        self.eps = get("attention.layer_norm_rms_epsilon")
        self.head_dim = self.w["blk.0.attn_q.weight"].shape[0] // self.heads
        self.window = [0] * self.layers
        self.rope({"rope_type": "default", "rope_theta": get("rope.freq_base")})
        for tensor in reader.tensors:
            if tensor.name == "rope_freqs.weight":
                self.inverse = self.inverse / tensor.data.astype(np.float64)
        if architecture == "llama":  # Pairs (2i, 2i + 1) in the file.
            for name in self.w:
                if ".attn_q." in name or ".attn_k." in name:
                    rows = self.w[name].reshape(-1, self.head_dim // 2, 2, self.hidden)
                    self.w[name] = rows.swapaxes(1, 2).reshape(-1, self.hidden)

    def rope(self, p):
        d, theta = self.head_dim, p["rope_theta"]
        self.inverse, self.magnitude = theta ** (-np.arange(0, d, 2) / d), 1.0
        if p["rope_type"] == "linear":
            self.inverse = self.inverse / p["factor"]
        elif p["rope_type"] == "yarn":
            place = lambda turns: (d * math.log(p["original_max_position_embeddings"]
                                                / (turns * 2 * math.pi)) / (2 * math.log(theta)))
            low, high = max(math.floor(place(32)), 0), min(math.ceil(place(1)), d - 1)
            ramp = np.clip((np.arange(d // 2) - low) / max(high - low, 1e-3), 0, 1)
            self.inverse = self.inverse * (ramp / p["factor"] + 1 - ramp)
            self.magnitude = 0.1 * math.log(p["factor"]) + 1
        else:
            assert p["rope_type"] == "default", p

    def rotate(self, x):
        """[positions, heads, head_dim]"""
        angle = np.arange(len(x))[:, None, None] * self.inverse
        cos, sin = np.cos(angle) * self.magnitude, np.sin(angle) * self.magnitude
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def project(self, layer, which, n):
        p = f"blk.{layer}.attn_{which}"
        return n @ self.w[p + ".weight"].T + self.w.get(p + ".bias", 0.0)

    def heads_of(self, x):
        """Grouped heads become whole heads: [positions, heads, head_dim]."""
        x = x.reshape(len(x), -1, self.head_dim)
        return np.repeat(x, self.heads // x.shape[1], 1)

    def roped(self, layer, q0, k0):
        out = []
        for which, x in (("q", q0), ("k", k0)):
            x = x.reshape(len(x), -1, self.head_dim)
            weight = self.w.get(f"blk.{layer}.attn_{which}_norm.weight")
            if weight is not None:
                x = rms_norm(x, self.eps) * weight
            out.append(self.heads_of(self.rotate(x)))
        return out

    def attention(self, layer, q0, k0, v0, window=0, sinks=0):
        """[positions, heads, head_dim]; window 0: every position before."""
        q, k = self.roped(layer, q0, k0)
        v = self.heads_of(v0)
        t, j = np.arange(len(q))[:, None], np.arange(len(q))[None]
        seen = (j <= t) & ((window == 0) | (j > t - window) | (j < sinks))
        scores = np.einsum("thd,jhd->htj", q, k) / math.sqrt(self.head_dim)
        scores = np.where(seen, scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("htj,jhd->thd", p / p.sum(-1, keepdims=True), v)


# --- a linear branch --------------------------------------------------------------------------


class Branches:
    """A branches file, or metadata alone for a window."""

    def __init__(self, path_or_metadata):
        self.w = {}
        if isinstance(path_or_metadata, dict):
            self.c = path_or_metadata
            return
        tensors, notes = safetensors_file.read(path_or_metadata)
        self.c = json.loads(notes["morphserve"])
        self.w = {name: safetensors_file.values(t).astype(np.float64)
                  for name, t in tensors.items()}

    def forward(self, base, layer, n):
        c = self.c
        w = lambda name: self.w[f"layers.{layer}.linear.{name}"]
        q0, k0, v0 = (base.project(layer, which, n) for which in "qkv")
        windowed = "window" in c["kind"]
        seen = base.attention(layer, q0, k0, v0, c["window"], c["sinks"]) if windowed else None
        if c["kind"] == "window":
            return base.project(layer, "output", seen.reshape(len(n), -1))
        if c["parameterisation"] == "own":
            q, k, v = (n @ w("w" + which).T for which in "qkv")
            q, k, v = (base.heads_of(x).reshape(len(n), -1) for x in (q, k, v))
        else:
            q, k, v = (base.heads_of(x).reshape(len(n), -1) + (n @ w("a" + which).T) @
                       w("b" + which).T for which, x in (("q", q0), ("k", k0), ("v", v0)))
        q, k, v = self.features(base, q, k, v, w)
        o = self.recurrence(q, k, v, n, w) * c["scale"]
        z = (n @ w("gd").T) @ w("gu").T + w("gb")
        if c["kind"] == "lightning":
            x = rms_norm(o.reshape(len(n), -1), c["norm_eps"]) * w("nw") * sigmoid(z)
        else:
            x = rms_norm(o, c["norm_eps"]).reshape(len(n), -1) * w("nw") * silu(z)
        if windowed:
            gate = 2 * sigmoid(n @ w("ws").T + w("bs"))
            x = x + (gate[:, :, None] * seen).reshape(len(n), -1)
        if c["parameterisation"] == "own":
            return x @ w("wo").T
        return base.project(layer, "output", x) + (x @ w("ao").T) @ w("bo").T

    def features(self, base, q, k, v, w):
        c = self.c
        if c["conv"]:
            both = np.concatenate([q, k, v], -1)
            out = np.zeros_like(both)
            for tap, weights in enumerate(w("conv")):
                out[tap:] += weights * both[:len(both) - tap]
            q, k, v = np.split(out, 3, -1)
        q, k, v = (x.reshape(len(x), base.heads, base.head_dim) for x in (q, k, v))
        if c["silu"]:
            q, k = silu(q), silu(k)
        if c["rope"]:
            q, k = base.rotate(q), base.rotate(k)
        if c["qk_norm"] == "l2":
            q, k = (x / np.sqrt((x ** 2).sum(-1, keepdims=True) + c["eps"]) for x in (q, k))
        elif c["qk_norm"] == "rms":
            q, k = rms_norm(q, c["eps"]), rms_norm(k, c["eps"])
        return q, k, v

    def recurrence(self, q, k, v, n, w):
        state = np.zeros((q.shape[1], q.shape[2], q.shape[2]))
        out = np.zeros_like(q)
        delta = self.c["kind"] != "lightning"
        if delta:
            g = -np.exp(w("a_log")) * np.log1p(np.exp(n @ w("wa").T + w("dt_bias")))
            beta = sigmoid(n @ w("wb").T + w("b_beta"))
        for t in range(len(q)):
            if delta:
                state = np.exp(g[t])[:, None, None] * state
                u = beta[t][:, None] * (v[t] - np.einsum("hkv,hk->hv", state, k[t]))
            else:
                state = np.exp(-w("slopes"))[:, None, None] * state
                u = v[t]
            state = state + np.einsum("hk,hv->hkv", k[t], u)
            out[t] = np.einsum("hkv,hk->hv", state, q[t])
        return out


# --- the whole model --------------------------------------------------------------------------


def logits(base, branches, full, ids):
    """[positions, vocab]; layers in `full` are full, the others linear."""
    h = base.w["token_embd.weight"][ids]
    for layer in range(base.layers):
        p = f"blk.{layer}."
        n = rms_norm(h, base.eps) * base.w[p + "attn_norm.weight"]
        if layer in full:
            q0, k0, v0 = (base.project(layer, which, n) for which in "qkv")
            o = base.attention(layer, q0, k0, v0, base.window[layer])
            h = h + base.project(layer, "output", o.reshape(len(h), -1))
        else:
            h = h + branches.forward(base, layer, n)
        n = rms_norm(h, base.eps) * base.w[p + "ffn_norm.weight"]
        gate, up = (n @ base.w[f"{p}ffn_{which}.weight"].T for which in ("gate", "up"))
        h = h + (silu(gate) * up) @ base.w[p + "ffn_down.weight"].T
    return rms_norm(h, base.eps) * base.w["output_norm.weight"] @ base.head.T


def branch_of_embeddings(base, branches, ids):
    """Output of layer 0's linear branch, before the residual: [positions, hidden]."""
    h = base.w["token_embd.weight"][ids]
    return branches.forward(base, 0, rms_norm(h, base.eps) * base.w["blk.0.attn_norm.weight"])
