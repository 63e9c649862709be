#!/usr/bin/env python3
"""verify_checkpoint --gpu beside the same program on the host: the same certificates, and how fast.

    python3 tests/cuda/gpu_tool.py PROGRAM [--folder DIR] [--experts N] [--layers N] [--no-times]

Writes small checkpoints of every storage type, layout and odd size, whole and broken experts among them, and compares the
JSON of both runs: every label and status alike, cosines and lambdas within 1e-6, sigmas within 1e-5 of sigma1, steps
within one or 0.1 %. Then, in DIR (a temporary folder), a layer of N experts (128) of 768x2048 in bf16, the shape of
Qwen3-30B-A3B, and how long it takes: from a cold cache, where /proc/sys/vm/drop_caches can be written, beside a plain read
of the file; from a warm one; and as many times over as that model has layers (48). Needs Python alone. Prints each
mismatch by its name; exit status 1 where there is one.
"""

import argparse
import array
import concurrent.futures
import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
import time

ITEM = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


def pack(dtype, numbers):
    if dtype == "BF16":
        data = array.array("f", numbers).tobytes()
        out = bytearray(len(data) // 2)
        out[0::2] = data[2::4]
        out[1::2] = data[3::4]
        return bytes(out)
    if dtype == "F16":
        return struct.pack(f"<{len(numbers)}e", *numbers)
    return array.array("f" if dtype == "F32" else "d", numbers).tobytes()


def write(path, tensors):
    """(name, dtype, shape, pieces of bytes) each."""
    header, end = {}, 0
    for name, dtype, shape, _ in tensors:
        begin, end = end, end + ITEM[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, _, pieces in tensors:
            for piece in pieces:
                file.write(piece)


# --- The same certificates


def gate(source, ffn, hidden, decay, scale=0.02):
    """[F, D], row after row."""
    rows = []
    for f in range(ffn):
        by = scale * (f + 1) ** -decay
        rows.append([source.gauss(0, by) for _ in range(hidden)])
    return rows


def stored(rows, layout):
    """The elements of a gate in this layout; what is not the gate is noise."""
    ffn, hidden = len(rows), len(rows[0])
    if layout == "nfd":
        return [x for row in rows for x in row]
    if layout == "ndf":
        return [rows[f][d] for d in range(hidden) for f in range(ffn)]
    if layout == "n2fd-interleaved":
        return [x for row in rows for x in row + [0.5] * hidden]
    if layout == "nd2f-interleaved":
        return [x for d in range(hidden) for f in range(ffn) for x in (rows[f][d], 0.5)]
    raise ValueError(layout)


SHAPES = {"nfd": lambda f, d: [f, d], "ndf": lambda f, d: [d, f], "n2fd-interleaved": lambda f, d: [2 * f, d],
          "nd2f-interleaved": lambda f, d: [d, 2 * f]}


def experts_of(source, kind, ffn, hidden):
    """Name and gate of each expert of a case."""
    if kind == "whole":
        yield "Gaussian", gate(source, ffn, hidden, 0)
        yield "decaying", gate(source, ffn, hidden, 0.25)
        return
    broken = gate(source, ffn, hidden, 0.25)
    yield "decaying", [row[:] for row in broken]
    yield "zero", [[0.0] * hidden for _ in range(ffn)]
    broken[ffn // 2][hidden // 3] = math.nan
    yield "NaN", broken
    yield "of rank one", [[(f % 7 - 3.0) * (d % 5 - 2.0) for d in range(hidden)] for f in range(ffn)]
    yield "of equal singular values", [[float(f == d) for d in range(hidden)] for f in range(ffn)]
    yield "tiny", gate(source, ffn, hidden, 0.25, 1e-18)


# dtype, layout, F, D, what experts
CASES = [("BF16", "nfd", 768, 2048, "whole"), ("BF16", "nfd", 520, 640, "whole"), ("BF16", "nfd", 530, 647, "broken"),
         ("BF16", "ndf", 523, 530, "whole"),
         ("F16", "nfd", 515, 602, "whole"), ("F16", "n2fd-interleaved", 520, 520, "whole"),
         ("F32", "nfd", 701, 517, "broken"), ("F32", "ndf", 516, 700, "whole"), ("F64", "nfd", 513, 531, "broken"),
         ("F64", "nd2f-interleaved", 520, 515, "whole"), ("BF16", "nfd", 40, 96, "broken")]


def write_case(path, case, source):
    dtype, layout, ffn, hidden, kind = case
    names, pieces, rows = [], [], []
    for name, matrix in experts_of(source, kind, ffn, hidden):
        names.append(name)
        pieces.append(pack(dtype, stored(matrix, layout)))
        rows += [source.gauss(0, 0.02) for _ in range(hidden)]
    names.append("decaying, of a zero row")
    pieces.append(pieces[-1] if kind == "whole" else pieces[0])
    rows += [0.0] * hidden
    count = len(names)
    write(path, [("l.0.router", "F32", [count, hidden], [pack("F32", rows)]),
                 ("l.0.gates", dtype, [count] + SHAPES[layout](ffn, hidden), pieces)])
    return names


def run(program, arguments):
    begin = time.monotonic()
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    seconds = time.monotonic() - begin
    if done.returncode != 0:
        sys.exit(f"{program} {' '.join(arguments)}: status {done.returncode}: {done.stderr.strip()}")
    return seconds, done.stdout


def near(a, b, tolerance):
    if a is None or b is None:
        return a is b
    return abs(a - b) <= tolerance


def differences(host, device):
    for key in ("expert", "status", "certificate", "sigma2_from"):
        if host[key] != device[key]:
            yield key
    if host["certificate"] == "none" and host["status"] == "ok":
        return  # no one direction, and each has taken its own
    for key in ("cosine_stored", "cosine_step", "lambda_stored", "lambda_step"):
        if not near(host[key], device[key], 1e-6):
            yield key
    size = host["sigma1"] or 0
    for key, scale in (("sigma1", size), ("sigma2", size), ("rayleigh", size * size)):
        if not near(host[key], device[key], 1e-5 * scale):
            yield key
    # A bound on the angle is not the angle: both hold; the device's, all in double, may be the smaller.
    if (host["angle_bound"] is None) != (device["angle_bound"] is None):
        yield "angle_bound"
    elif host["angle_bound"] is not None and device["angle_bound"] > host["angle_bound"] + 1e-4:
        yield "angle_bound"
    one, other = host["steps"], device["steps"]
    if (one is None) != (other is None) or (one is not None and abs(one - other) > max(1, 0.001 * one)):
        yield "steps"


def compare(program, folder):
    bad = count = 0
    source = random.Random(19)
    for case in CASES:
        dtype, layout, ffn, hidden, kind = case
        label = f"{dtype} {layout} {ffn}x{hidden} {kind}"
        path = os.path.join(folder, "case.safetensors")
        names = write_case(path, case, source)
        options = [path, "--router", "l.{layer}.router", "--gate", "l.{layer}.gates", "--layout", layout, "--json", "-",
                   "--max-steps", "3000"]
        host = json.loads(run(program, options)[1])
        device = json.loads(run(program, options + ["--gpu"])[1])
        if device.pop("device", None) is None or list(host) != list(device):
            print(f"MISMATCH {label}: members {list(device)} where the host has {list(host)}")
            bad += 1
        for one, other, name in zip(host["layers"][0]["experts"], device["layers"][0]["experts"], names):
            count += 1
            wrong = list(differences(one, other))
            if wrong:
                bad += 1
                print(f"MISMATCH {label}, expert {one['expert']} ({name}):")
                for key in wrong:
                    print(f"    {key}: host {one[key]}, device {other[key]}")
        print(f"{label}: {len(names)} experts, {[e['certificate'] for e in device['layers'][0]['experts']]}", flush=True)
        os.remove(path)
    print(f"{count} experts of {len(CASES)} checkpoints compared, {bad} mismatches")
    return bad + compare_two(program, folder)


# Bounds differ with the digits in which a probe looks; each holds.
BOUNDS = {"wedin_angle", "direction_uncertainty"}


def unlike(host, device, place=""):
    """Where two documents differ by more than 1e-5."""
    if isinstance(host, dict) and isinstance(device, dict) and list(host) == list(device):
        for key in host:
            if key not in BOUNDS:
                yield from unlike(host[key], device[key], f"{place}.{key}")
    elif isinstance(host, list) and isinstance(device, list) and len(host) == len(device):
        for i, (one, other) in enumerate(zip(host, device)):
            yield from unlike(one, other, f"{place}[{i}]")
    elif isinstance(host, float) and isinstance(device, (float, int)):
        if not near(host, device, 1e-5 * max(1, abs(host))):
            yield f"{place}: host {host}, device {device}"
    elif host != device:
        yield f"{place}: host {str(host)[:60]}, device {str(device)[:60]}"


def compare_two(program, folder):
    """The subcommand compare: experts, and the same with noise."""
    source = random.Random(5)
    gates = [gate(source, 520, 640, 0.25) for _ in range(3)]
    rows = pack("F32", [source.gauss(0, 0.02) for _ in range(3 * 640)])
    paths = []
    for name, noise in (("a", 0), ("b", 0.002)):
        paths.append(os.path.join(folder, name + ".safetensors"))
        pieces = [pack("F32", [x + source.gauss(0, noise) for row in g for x in row]) for g in gates]
        write(paths[-1], [("l.0.router", "F32", [3, 640], [rows]), ("l.0.gates", "F32", [3, 520, 640], pieces)])
    options = ["compare", *paths, "--router", "l.{layer}.router", "--gate", "l.{layer}.gates", "--layout", "nfd", "--top-k",
               "2", "--json", "-"]
    host = json.loads(run(program, options)[1])
    device = json.loads(run(program, options + ["--gpu"])[1])
    device.pop("device", None)
    wrong = list(unlike(host, device))
    for line in wrong:
        print(f"MISMATCH compare {line}")
    print(f"compare: {len(host['layers'][0]['experts'])} pairs, {len(wrong)} mismatches")
    return len(wrong)


# --- How fast


def write_layer(path, experts, decay, ffn=768, hidden=2048):
    """Rows of each gate are windows into Gaussian numbers of its scale: as random, and quick to write."""
    source = random.Random(3)
    step = 2 ** -0.125
    pools = []
    for k in range(1 + int(decay * math.log2(ffn) * 8)):
        pools.append(pack("BF16", [source.gauss(0, 0.02 * step**k) for _ in range(400_000)]))

    def rows(scales):
        for f in range(ffn):
            pool = pools[min(len(pools) - 1, scales(f))]
            begin = 2 * source.randrange(len(pool) // 2 - hidden)
            yield pool[begin:begin + 2 * hidden]

    tensors = [("model.layers.0.mlp.gate.weight", "BF16", [experts, hidden],
                [pack("BF16", [source.gauss(0, 0.02) for _ in range(experts * hidden)])])]
    for e in range(experts):
        tensors.append((f"model.layers.0.mlp.experts.{e}.gate_proj.weight", "BF16", [ffn, hidden],
                        rows(lambda f: round(decay * math.log2(f + 1) * 8))))
    write(path, tensors)


def forget(path):
    """Drops the file from the cache; False where that is not to be had."""
    try:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3\n")
        return True
    except OSError:
        return False


def read_all(path, threads=8, piece=1 << 23):
    """Seconds for a plain read of the file by some threads."""
    size = os.path.getsize(path)

    def take(begin):
        with open(path, "rb", buffering=0) as file:
            file.seek(begin)
            buffer = bytearray(piece)
            return file.readinto(buffer)

    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(take, range(0, size, piece)))
    return time.monotonic() - begin


def measure(program, folder, experts, layers):
    for kind, decay in (("Gaussian", 0), ("decaying", 0.25)):
        path = os.path.join(folder, "layer.safetensors")
        write_layer(path, experts, decay)
        size = os.path.getsize(path)

        def say(what, seconds, times=1):
            print(f"  {kind}, {what}: {seconds:.2f} s, {1e3 * seconds / experts / times:.3f} ms an expert, "
                  f"{size * times / seconds / 1e9:.2f} GB/s", flush=True)

        options = ["--summary", "--gpu"]
        if forget(path):
            say("plain read, cold", read_all(path))
            forget(path)
            say("--gpu, cold", run(program, [path] + options)[0])
        say("plain read, warm", read_all(path))
        say("--gpu, warm", run(program, [path] + options)[0])
        tiny = run(program, [path, "--sample", "1"] + options)[0]
        print(f"  of that to begin and to end, and one expert: {tiny:.2f} s")
        say(f"--gpu, warm, {layers} times over", run(program, [path] * layers + options)[0], layers)
        some = min(experts, 32)
        seconds = run(program, [path, "--summary", "--sample", str(some)])[0]
        print(f"  {kind}, host, {some} experts: {1e3 * seconds / some:.3f} ms an expert on {os.cpu_count()} cores")
        os.remove(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("--folder", help="where to write; a temporary folder")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--no-times", action="store_true")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        bad = compare(a.program, folder)
        if not a.no_times:
            measure(a.program, folder, a.experts, a.layers)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
