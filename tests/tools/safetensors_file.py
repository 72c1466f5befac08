"""Reads and writes safetensors files as raw bytes: names, types, shapes, data and the notes."""

import json
import pathlib
import struct

import numpy as np

TYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4}


def read(path):
    """{name: (dtype, shape, bytes)} in the order of the data, and the notes."""
    data = pathlib.Path(path).read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:8 + length])
    notes = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        raw = data[8 + length + begin:8 + length + end]
        count = int(np.prod(entry["shape"], dtype=np.int64))
        assert len(raw) == end - begin == count * TYPE_BYTES[entry["dtype"]], name
        tensors[name] = (entry["dtype"], list(entry["shape"]), raw)
    return tensors, notes


def write(path, tensors, notes):
    header, at = {"__metadata__": notes}, 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, raw in tensors.values():
            file.write(raw)


def values(tensor):
    """As numpy: f32 for float types, i32 as it is."""
    dtype, shape, raw = tensor
    if dtype == "BF16":
        bits = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    kind = {"F32": "<f4", "F16": "<f2", "I32": "<i4"}[dtype]
    out = np.frombuffer(raw, kind).reshape(shape)
    return out if dtype == "I32" else out.astype(np.float32)


def to_bf16(array):
    """Rounded to nearest even, as bytes."""
    bits = np.ascontiguousarray(array, dtype="<f4").view(np.uint32)
    return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
