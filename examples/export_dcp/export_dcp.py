#!/usr/bin/env python3
"""Writes safetensors from a distributed checkpoint of PyTorch (DCP), Megatron's torch_dist included, or from a file
of torch.save, so that verify_checkpoint can read it.

    python3 export_dcp.py FOLDER_OR_FILE TARGET [--only PATTERN] [--shard-bytes N]

FOLDER  has .metadata and *.distcp files (torch.distributed.checkpoint, TorchTitan, Megatron's iter_0000100).
FILE    is a dictionary of tensors, perhaps below "model", "state_dict" or "module"; it is read with weights_only=True,
        which runs no code of the file.
TARGET  a folder that does not exist yet: model-00001-of-0000N.safetensors and their index.

Optimizer state is left out and counted. Megatron stacks all layers in one tensor, "decoder.layers.mlp.router.weight"
[L, N, D]: each layer gets a tensor of its own, "decoder.layers.3.mlp.router.weight" [N, D]. All else keeps its name,
type and bytes. Memory: two shards, or twice the largest tensor, which a stack of layers may be. Needs torch 2.3 or newer
and safetensors. No process group is made.
"""

import argparse
import fnmatch
import json
import pathlib
import re
import sys

OPTIMIZER = re.compile(r"(^|\.)(optim|optimizer|exp_avg|exp_avg_sq|adam|momentum)(\.|_|$)")
STACKED = re.compile(r"^(.*\blayers)\.(?!\d+\.)(.+)$")


def fail(text):
    sys.exit(f"export_dcp: {text}")


def is_weight(name, pattern):
    return not OPTIMIZER.search(name) and (pattern is None or fnmatch.fnmatch(name, pattern))


class DcpSource:
    """Tensors of a folder of torch.distributed.checkpoint, read by name."""

    def __init__(self, folder):
        from torch.distributed.checkpoint import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        self.folder = folder
        described = FileSystemReader(folder).read_metadata().state_dict_metadata
        self.tensors = {k: v for k, v in described.items() if isinstance(v, TensorStorageMetadata)}

    def names(self):
        return self.tensors.keys()

    def size(self, name):
        t = self.tensors[name]
        return t.size.numel() * t.properties.dtype.itemsize

    def load(self, names):
        import torch
        import torch.distributed.checkpoint as dcp

        state = {n: torch.empty(self.tensors[n].size, dtype=self.tensors[n].properties.dtype) for n in names}
        dcp.load(state, checkpoint_id=self.folder)
        return state


class FileSource:
    """Tensors of a file of torch.save."""

    def __init__(self, path):
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for key in ("model", "state_dict", "module"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
        if not isinstance(state, dict):
            fail(f"{path}: holds no dictionary of tensors")
        self.state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}

    def names(self):
        return self.state.keys()

    def size(self, name):
        return self.state[name].numel() * self.state[name].element_size()

    def load(self, names):
        return {n: self.state[n] for n in names}


def open_source(path):
    if not path.exists():
        fail(f"{path}: no such file or folder")
    if path.is_file():
        return FileSource(path)
    if (path / ".metadata").exists():
        return DcpSource(path)
    ranks = sorted(p.name for p in path.glob("mp_rank_*"))
    if ranks:
        fail(f"{path}: is a checkpoint of Megatron by ranks ({', '.join(ranks[:3])}{', …' if len(ranks) > 3 else ''}); "
             "write it out as torch_dist first (--ckpt-convert-format torch_dist)")
    fail(f"{path}: has no .metadata, so it is no distributed checkpoint of PyTorch")


def unstacked(name, tensor):
    """One tensor a layer, where the first axis counts them."""
    match = STACKED.match(name)
    if match is None or tensor.dim() < 2:
        yield name, tensor
        return
    for i in range(tensor.shape[0]):
        yield f"{match[1]}.{i}.{match[2]}", tensor[i]


def shards_of(source, names, shard_bytes):
    """Names, in groups of about that many bytes."""
    group, size = [], 0
    for name in names:
        if group and size + source.size(name) > shard_bytes:
            yield group
            group, size = [], 0
        group.append(name)
        size += source.size(name)
    if group:
        yield group


def export(source, target, pattern, shard_bytes):
    from safetensors.torch import save_file

    names = sorted(n for n in source.names() if is_weight(n, pattern))
    if not names:
        fail(f"none of its {len(source.names())} tensors is a weight" + (f" named {pattern}" if pattern else ""))
    groups = list(shards_of(source, names, shard_bytes))
    target.mkdir(parents=True)
    index, total = {}, 0
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        state = source.load(group)
        out = {}
        for name in group:
            for own, tensor in unstacked(name, state[name]):
                if own in index:
                    fail(f"two tensors would be called '{own}'")
                index[own] = file
                out[own] = tensor.contiguous().clone()
                total += tensor.numel() * tensor.element_size()
        save_file(out, str(target / file), metadata={"format": "pt"})
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1, sort_keys=True)
    (target / "model.safetensors.index.json").write_text(text + "\n")
    left = len(source.names()) - len(names)
    print(f"{target}: {len(index)} tensors, {total} bytes, {len(groups)} file{'s' if len(groups) > 1 else ''}; "
          f"{left} tensors left out (optimizer state{' or other names' if pattern else ''})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("--only", metavar="PATTERN", help="weights whose names match, as in a shell: '*mlp*'")
    parser.add_argument("--shard-bytes", type=int, default=5_000_000_000)
    a = parser.parse_args()
    if a.target.exists():
        fail(f"{a.target}: exists already, and nothing is overwritten")
    export(open_source(a.source), a.target, a.only, a.shard_bytes)


if __name__ == "__main__":
    main()
