#!/usr/bin/env python3
"""Saves a small MoE model with torch.distributed.checkpoint, and exports it: every weight must come out with its
name and its bits. Exit status 77 (skipped) without torch and safetensors."""

import pathlib
import subprocess
import sys
import tempfile

try:
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import safe_open
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

HERE = pathlib.Path(__file__).parent
L, N, F, D = 3, 4, 5, 6


def model():
    torch.manual_seed(1)
    stacked = {
        "decoder.layers.mlp.router.weight": torch.randn(L, N, D, dtype=torch.bfloat16),
        "decoder.layers.mlp.experts.experts.linear_fc1.weight": torch.randn(L, N, 2 * F, D, dtype=torch.bfloat16),
    }
    plain = {
        "model.layers.7.mlp.gate.weight": torch.randn(N, D),
        "model.layers.7.mlp.experts.gate_proj": torch.randn(N, F, D).to(torch.float8_e4m3fn),
        "embedding.weight": torch.arange(10, dtype=torch.int64),
    }
    optimizer = {"optimizer.state.exp_avg.model.layers.7.mlp.gate.weight": torch.zeros(N, D)}
    return stacked, plain, optimizer


def run(*arguments):
    return subprocess.run([sys.executable, HERE / "export_dcp.py", *map(str, arguments)], capture_output=True, text=True)


def read(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update({k: file.get_tensor(k) for k in file.keys()})
    return found


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8),
                                                                     b.contiguous().view(torch.uint8))


def expected():
    stacked, plain, _ = model()
    out = dict(plain)
    for name, t in stacked.items():
        for i in range(L):
            out[name.replace("layers.", f"layers.{i}.", 1)] = t[i]
    return out


def check(folder, what):
    found, want = read(folder), expected()
    assert found.keys() == want.keys(), (what, sorted(found.keys() ^ want.keys()))
    assert all(same(found[k], want[k]) for k in want), what


with tempfile.TemporaryDirectory() as name:
    scratch = pathlib.Path(name)
    stacked, plain, optimizer = model()
    dcp.save({**stacked, **plain, **optimizer}, checkpoint_id=scratch / "dcp")
    torch.save({"model": {**stacked, **plain}, "step": 3}, scratch / "model.pt")

    for source, target, more in (("dcp", "whole", ()), ("dcp", "shards", ("--shard-bytes", 200)), ("model.pt", "file", ())):
        done = run(scratch / source, scratch / target, *more)
        assert done.returncode == 0, done.stderr
        check(scratch / target, target)
        print(done.stdout.strip().replace(name, "…"))
    assert len(list((scratch / "shards").glob("*.safetensors"))) > 1

    for arguments, reason in (
        ((scratch / "dcp", scratch / "whole"), "exists already"),
        ((scratch / "nothing", scratch / "x"), "no such file"),
        ((scratch, scratch / "x"), "no .metadata"),
        ((scratch / "dcp", scratch / "x", "--only", "nobody*"), "none of its"),
    ):
        refused = run(*arguments)
        assert refused.returncode == 1 and reason in refused.stderr, refused.stderr
        assert not (scratch / "x").exists()
print("export_dcp: all bits are the same")
