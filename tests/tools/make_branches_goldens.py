"""Writes tests/golden/branches: tiny random branches files with what they compute, and a part of
the golden values of the default model's branches.

    python tests/tools/make_branches_goldens.py tiny
    python tests/tools/make_branches_goldens.py default GOLDEN.safetensors

GOLDEN is what the training prototype computed in fp32 (tests/golden/branches/README.md). Needs numpy
and gguf; the results are committed.
"""

import json
import pathlib
import sys

import numpy as np

import hybrid_reference
import safetensors_file

ROOT = pathlib.Path(__file__).resolve().parent.parent / "golden"
OUT = ROOT / "branches"
TINY = ROOT / "models" / "tiny"
TOKENS = 150
POSITIONS = [0, 1, 25, 64, 149]

# name -> (base, kind, parameterisation, what differs from the defaults below)
CASES = {
    "delta-window-shared-interleaved": (
        "llama-llama3-tied-f32.gguf", "gated_delta_window", "shared", {}),
    "delta-window-own-interleaved": (
        "llama-llama3-tied-f32.gguf", "gated_delta_window", "own",
        dict(conv=2, window=1, sinks=1, gate_rank=1)),
    "delta-window-shared-bias": (
        "llama-yarn-bias-bf16", "gated_delta_window", "shared", dict(sinks=0, silu=False)),
    "delta-shared-qknorm": (
        "qwen3-norm-sharded-bf16", "gated_delta", "shared", dict(conv=0, rank=1)),
    "delta-own-plain": (
        "llama-linear-text-f16", "gated_delta", "own",
        dict(rope=False, silu=False, qk_norm="none", scale=0.05)),
    "lightning-shared-bias": (
        "qwen2-bias-window-f16", "lightning", "shared", dict(conv=0)),
    "lightning-own": (
        "mistral-window-bf16", "lightning", "own", dict(conv=8, silu=True, qk_norm="l2")),
}
WINDOWS = [("qwen3-norm-sharded-bf16", 37, 2), ("llama-llama3-tied-f32.gguf", 16, 16),
           ("llama-yarn-bias-bf16", 1, 0), ("qwen2-bias-window-f16", 300, 4)]


def make_metadata(base, kind, how, changes):
    m = {"format": 1, "base_id": base.id, "base_name": "tiny", "kind": kind,
         "parameterisation": how, "heads": base.heads, "head_dim": base.head_dim, "rank": 3,
         "gate_rank": 5, "conv": 4, "window": 24, "sinks": 3, "silu": kind != "lightning",
         "rope": True, "qk_norm": "rms" if kind == "lightning" else "l2", "norm_eps": 1e-5,
         "scale": base.head_dim ** -0.5}
    m.update(changes)
    if how == "own":
        del m["rank"]
    if kind != "gated_delta_window":
        del m["window"], m["sinks"]
    if m["qk_norm"] != "none":
        m["eps"] = 1e-6 if m["qk_norm"] == "l2" else m["norm_eps"]
    order = list(range(base.layers))[::-1]
    m["rankings"] = [{"selector": "flashmorph", "order": order, "default": True}]
    return m


def make_layer(base, m, random):
    """Weights with which every part shows in the output: name -> (array, stored as f32)."""
    normal = random.standard_normal
    hidden, heads, width = base.hidden, m["heads"], m["heads"] * m["head_dim"]
    kv_width = base.kv_heads * m["head_dim"]
    out = {}

    def matrix(name, n, k, gain=1.0):
        out[name] = (gain * normal((n, k)) / np.sqrt(k), False)

    if m["parameterisation"] == "own":
        # Keys without a norm must be short, or the delta rule diverges.
        key_gain = 0.15 if m["qk_norm"] == "none" else 1.5
        for name, n, k, gain in (("wq", width, hidden, 1.5), ("wk", kv_width, hidden, key_gain),
                                 ("wv", kv_width, hidden, 1.5), ("wo", hidden, width, 1.5)):
            matrix(name, n, k, gain)
    else:
        for which in "qkv":
            matrix("a" + which, m["rank"], hidden)
            matrix("b" + which, width, m["rank"], 0.7)
        matrix("ao", m["rank"], width)
        matrix("bo", hidden, m["rank"], 0.7)
    if m["conv"]:
        conv = 0.3 * normal((m["conv"], 3 * width))
        conv[0] += 1
        out["conv"] = (conv, False)
    if m["kind"] == "lightning":
        out["slopes"] = (2.0 ** (-8.0 * (np.arange(heads) + 1) / heads), True)
    else:
        matrix("wa", heads, hidden)
        matrix("wb", heads, hidden)
        out["a_log"] = (0.5 * normal(heads), True)
        out["dt_bias"] = (normal(heads) - 2, True)
        out["b_beta"] = (normal(heads), False)
    matrix("gd", m["gate_rank"], hidden)
    matrix("gu", width, m["gate_rank"])
    out["gb"] = (1 + 0.3 * normal(width), False)
    out["nw"] = (1 + 0.2 * normal(width), True)
    if m["kind"] == "gated_delta_window":
        matrix("ws", heads, hidden)
        out["bs"] = (0.5 * normal(heads), False)
    return out


def write_tiny(path, base, m, random):
    tensors = {}
    for layer in range(base.layers):
        for name, (array, wide) in make_layer(base, m, random).items():
            raw = array.astype("<f4").tobytes() if wide else safetensors_file.to_bf16(array)
            tensors[f"layers.{layer}.linear.{name}"] = (
                "F32" if wide else "BF16", list(array.shape), raw)
    safetensors_file.write(path, tensors, {"morphserve": json.dumps(m, separators=(",", ":"))})


def rounded(array):
    return [[float(f"{v:.7g}") for v in row] for row in array.tolist()]


def check_base(name, base):
    """The reference's full layers against those of transformers."""
    for model in json.loads((ROOT / "models" / "tiny.json").read_text())["models"]:
        if name in (model["checkpoint"], model.get("twin")):
            prompt = model["prompts"][1]
            every = set(range(base.layers))
            got = hybrid_reference.logits(base, None, every, prompt["ids"])[prompt["positions"]]
            error = np.abs(got - np.array(prompt["logits"])).max() / np.abs(got).max()
            assert error < 2e-5, (name, error)
            return model["vocab"]
    raise ValueError(name)


def golden(source, checkpoint, base, branches, vocab):
    random = np.random.default_rng(sum(source.encode()) + sum(checkpoint.encode()))
    ids = random.integers(0, vocab, TOKENS)
    branch = hybrid_reference.branch_of_embeddings(base, branches, ids)
    assert np.abs(branch).max() < 100, source  # Else the state grows, and rounding with it.
    plans = []
    for full in ([], [0], list(range(1, base.layers))):
        found = hybrid_reference.logits(base, branches, set(full), ids)
        plans.append({"full": full, "logits": rounded(found[POSITIONS])})
    return {"source": source, "checkpoint": checkpoint, "ids": ids.tolist(),
            "positions": POSITIONS, "branch0": rounded(branch[POSITIONS]), "plans": plans}


def make_tiny():
    cases = []
    for number, (name, (checkpoint, kind, how, changes)) in enumerate(CASES.items()):
        base = hybrid_reference.Base(TINY / checkpoint)
        vocab = check_base(checkpoint, base)
        metadata = make_metadata(base, kind, how, changes)
        path = OUT / f"{name}.safetensors"
        write_tiny(path, base, metadata, np.random.default_rng(100 + number))
        branches = hybrid_reference.Branches(path)
        cases.append(golden(path.name, checkpoint, base, branches, vocab))
    for checkpoint, window, sinks in WINDOWS:
        base = hybrid_reference.Base(TINY / checkpoint)
        vocab = check_base(checkpoint, base)
        branches = hybrid_reference.Branches(
            {"kind": "window", "window": window, "sinks": sinks})
        cases.append(golden(f"window:{window}:{sinks}", checkpoint, base, branches, vocab))
    text = json.dumps({"cases": cases}, separators=(",", ":"))
    (OUT / "tiny.json").write_text(text.replace('},{"', '},\n{"') + "\n")


# --- the default model ------------------------------------------------------------------------

PLANS = {"teacher": None, "fm_k5": [18, 14, 23, 8, 7], "all_branch": []}
LONG_ROWS = [0, 1, 4, 100, 127, 128, 129, 131, 132, 133, 200, 255, 256, 300, 318, 319]


def top(row, position):
    best = np.argsort(-row, kind="stable")[:64]
    return {"position": position, "ids": best.tolist(),
            "values": [float(f"{v:.7g}") for v in row[best].tolist()],
            "rms": float(f"{np.sqrt((row.astype(np.float64) ** 2).mean()):.7g}")}


def make_default(path):
    tensors, notes = safetensors_file.read(path)
    value = {name: safetensors_file.values(tensor) for name, tensor in tensors.items()}
    assert json.loads(notes["plan_fm_k5"]) == PLANS["fm_k5"]
    prompts = []
    for prefix in ("", "long."):
        ids = value[prefix + "tokens"]
        plans = []
        for name, full in PLANS.items():
            rows = [top(row, p) for p, row in
                    enumerate(value.get(f"{prefix}{name}.logits_pos0_7", []))]
            rows.append(top(value[f"{prefix}{name}.logits_last"], len(ids) - 1))
            plans.append({"full": list(range(30)) if full is None else sorted(full), "rows": rows,
                          "argmax": value[f"{prefix}{name}.argmax"].tolist()})
        prompts.append({"ids": ids.tolist(), "plans": plans})
    (OUT / "default.json").write_text(json.dumps(
        {"note": notes["note"], "long_rows": LONG_ROWS, "prompts": prompts},
        separators=(",", ":")).replace('},{"', '},\n{"') + "\n")
    kept = {name: tensors[name] for layer in (3, 18) for name in
            (f"layer{layer}.input", f"layer{layer}.branch_out")}
    kept["long.layer18.input"] = tensors["long.layer18.input"]
    rows = value["long.layer18.branch_out"][LONG_ROWS]
    kept["long.layer18.branch_out"] = ("F32", list(rows.shape), rows.astype("<f4").tobytes())
    safetensors_file.write(OUT / "default.safetensors", kept, {"note": notes["note"]})


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    if sys.argv[1:] == ["tiny"]:
        make_tiny()
    elif len(sys.argv) == 3 and sys.argv[1] == "default":
        make_default(sys.argv[2])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
