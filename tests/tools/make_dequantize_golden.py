#!/usr/bin/env python3
"""Writes tests/golden/dequantize/: blocks of every GGUF quantisation and what gguf-py makes of them.

Each TYPE.bin holds 6 blocks of random bytes (scales made finite, every nibble and scale pattern
likely) followed by their values as little-endian f32. Needs: numpy, gguf. Run from any folder:
  make_dequantize_golden.py OUTPUT_FOLDER
"""
import pathlib
import sys

import gguf
import numpy as np

BLOCKS = 6
# Type name -> byte offsets of the f16 numbers in a block.
TYPES = {
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20240607)
    for name, offsets in TYPES.items():
        kind = gguf.GGMLQuantizationType[name]
        _, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for offset in offsets:
            scale = rng.normal(0.0, 0.05, BLOCKS).astype("<f2")
            blocks[:, offset : offset + 2] = scale.view(np.uint8).reshape(BLOCKS, 2)
        values = gguf.dequantize(blocks, kind).astype("<f4")
        (out / f"{name}.bin").write_bytes(blocks.tobytes() + values.tobytes())


if __name__ == "__main__":
    main()
