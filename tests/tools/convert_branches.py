"""Converts the training prototype's branches for SmolLM2-135M-Instruct into a branches file.

    python tests/tools/convert_branches.py WEIGHTS.safetensors RANKINGS.json QUALITY.json BASE OUT

WEIGHTS has tensors `layers.N.x` and its configuration as a note; RANKINGS and QUALITY are what the
selectors and the evaluation wrote; BASE is the checkpoint the branches were trained on (GGUF file or
folder). The format of OUT: engine/model/README.md. Needs numpy and gguf.
"""

import json
import pathlib
import sys

import base_checkpoint
import safetensors_file

SELECTORS = {"flashmorph": "flashmorph", "kl": "local_kl", "qmorph": "interaction",
             "uniform": "uniform", "random0": "random", "all-linear": "all_linear"}
TRAINING = {
    "align_tokens": 4_300_000, "elastic_tokens": 22_300_000,
    "objective": "align: each branch to its layer's attention output; elastic: KL to the full model "
                 "over random plans; base frozen",
    "license": "Apache-2.0"}
DEFAULT = "8192/0"


def rounded(values):
    return [float(f"{value:.7g}") for value in values]


def of_scores(selector, entry, **common):
    """The rankings of one calibration run: gates, single-layer KL, sets of the interaction."""
    out = [{"selector": selector, "order": entry["ranking"], "gates": rounded(entry["alpha"]),
            **common}]
    if "kl" in entry:
        order = sorted(range(len(entry["kl"])), key=lambda layer: -entry["kl"][layer])
        out.append({"selector": "local_kl", "order": order, **common})
    if "qmorph" in entry:
        sets = sorted((sorted(layers) for layers in entry["qmorph"].values()), key=len)
        out.append({"selector": "interaction", "sets": sets, **common})
    return out


def make_rankings(data):
    out = []
    for key, entry in data["by_length"].items():
        if not isinstance(entry, dict):
            continue  # lambda of a context
        context, seed = map(int, key.split("/"))
        found = of_scores("flashmorph", entry, context=context, seed=seed)
        if key == DEFAULT:
            found[0]["default"] = True
            out = found + out
        else:
            out += found
    pre = dict(data["pre"])
    pre["alpha"], pre["ranking"] = pre["flashmorph_alpha"], pre["flashmorph_ranking"]
    return out + of_scores("flashmorph", pre, stale=True)


def make_quality(data):
    out = []
    for plan, cells in data.items():
        recall = {name: cell["acc"] for name, cell in cells.items()
                  if name.startswith(("pk", "kv", "copy"))}
        layers = sorted(cells["full_layers"])
        out.append({"selector": SELECTORS[plan.split()[0]], "k": len(layers), "layers": layers,
                    "kl": cells["nat"]["kl"], "ppl": cells["nat"]["ppl"], "recall": recall})
    return out


def make_metadata(config, rankings, quality, base, width):
    assert config["kind"] == "gdnw" and not config["own"], config
    heads, head_dim = width
    return {
        "format": 1, "base_id": base_checkpoint.base_id(base),
        "base_name": "SmolLM2-135M-Instruct", "kind": "gated_delta_window",
        "parameterisation": "shared", "heads": heads, "head_dim": head_dim, "rank": config["r"],
        "gate_rank": config["rg"], "conv": config["conv"], "window": config["window"],
        "sinks": config["sinks"], "silu": config["silu"], "rope": config["use_rope"],
        "qk_norm": "l2", "eps": 1e-6, "norm_eps": 1e-5, "scale": head_dim ** -0.5,
        "training": TRAINING, "rankings": make_rankings(rankings),
        "Q": [rounded(row) for row in rankings["by_length"][DEFAULT]["Q"]],
        "quality": make_quality(quality)}


def main():
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    weights, rankings, quality, base, out = map(pathlib.Path, sys.argv[1:])
    tensors, notes = safetensors_file.read(weights)
    heads = tensors["layers.0.a_log"][1][0]
    width = tensors["layers.0.nw"][1][0]
    metadata = make_metadata(json.loads(notes["config"]), json.loads(rankings.read_text()),
                             json.loads(quality.read_text()), base_checkpoint.read(base),
                             (heads, width // heads))
    renamed = {}
    for name, tensor in tensors.items():
        layers, number, parameter = name.split(".")
        renamed[f"{layers}.{number}.linear.{parameter}"] = tensor
    safetensors_file.write(out, renamed, {"morphserve": json.dumps(
        metadata, separators=(",", ":"), allow_nan=False)})
    print(f"{out.name}: {out.stat().st_size} bytes, base {metadata['base_id']}")


if __name__ == "__main__":
    main()
