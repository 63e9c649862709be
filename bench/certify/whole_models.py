#!/usr/bin/env python3
"""How long verify_checkpoint takes for whole models, from a few experts of their shape.

    python3 bench/certify/whole_models.py build/ci/tools/verify_checkpoint/verify_checkpoint [EXPERTS]

Writes a checkpoint of one layer with EXPERTS experts (4) in bf16 for each shape and kind of weights, runs the program on it
with one thread, and prints a row of the table in docs/performance.md: user CPU seconds an expert, which other load on the
machine moves least, peak memory beyond the file, and what the experts of the model come to. Needs Python alone.
"""

import array
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

# name, F, D, layers, experts of each
MODELS = [("Qwen3-30B-A3B", 768, 2048, 48, 128), ("DeepSeek-V3", 2048, 7168, 58, 256)]
# name, what multiplies the row of neuron f
WEIGHTS = [("Gaussian", lambda f: 1.0), ("decaying", lambda f: (f + 1) ** -0.25)]


def bf16(numbers):
    """The upper halves of these floats."""
    data = array.array("f", numbers).tobytes()
    out = bytearray(len(data) // 2)
    out[0::2] = data[2::4]
    out[1::2] = data[3::4]
    return bytes(out)


def gaussian(source, count, scale):
    gauss = source.gauss
    return [gauss(0, scale) for _ in range(count)]


def write(path, ffn, hidden, experts, scale_of):
    """A layer with a Gaussian router and these gates, as Qwen3 names them."""
    source = random.Random(1)
    tensors = [("model.layers.0.mlp.gate.weight", [experts, hidden])]
    tensors += [(f"model.layers.0.mlp.experts.{e}.gate_proj.weight", [ffn, hidden]) for e in range(experts)]
    header, end = {}, 0
    for name, shape in tensors:
        begin, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.write(bf16(gaussian(source, experts * hidden, 0.02)))
        for _ in range(experts):
            for f in range(ffn):
                file.write(bf16(gaussian(source, hidden, 0.02 * scale_of(f))))


def run(program, path):
    """User seconds, the peak of memory in bytes, and the certificates."""
    child = subprocess.Popen([program, path, "--threads", "1", "--json", "-"], stdout=subprocess.PIPE)
    document = json.load(child.stdout)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"{program} failed")
    labels = [e["certificate"] for layer in document["layers"] for e in layer["experts"]]
    return usage.ru_utime, usage.ru_maxrss * 1024, labels


def hours(seconds):
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def main():
    program = sys.argv[1]
    experts = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    print("| model | F×D | weights | an expert, user CPU s | memory beyond the file, MB | experts | all, CPU |")
    print("|---|---|---|---|---|---|---|")
    for name, ffn, hidden, layers, count in MODELS:
        for kind, scale_of in WEIGHTS:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "layer.safetensors")
                write(path, ffn, hidden, experts, scale_of)
                seconds, memory, labels = run(program, path)
                beyond = (memory - os.path.getsize(path)) / 1e6
            each = seconds / experts
            total = layers * count
            if set(labels) != {"probabilistic"}:
                print("not as in the table:", labels, file=sys.stderr)
            row = [name, f"{ffn}×{hidden}", kind, f"{each:.3f}", f"{beyond:.0f}", f"{layers} × {count}", hours(each * total)]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
