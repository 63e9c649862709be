"""What MPI costs a training step under FSDP2: the rows of all layers by sharded_router_rows, on the weights that each
rank holds, beside the formula under autograd on the weights that FSDP has gathered, and beside a router without a
step. A process a GPU; needs PyTorch 2.6 or newer and the library of examples/torch_router. Run by scripts/gpu:

    python3 bench/cuda/bench_fsdp.py [RANKS]

Layers [64, 1024, 2048] in bf16, gated experts in dense form on a few tokens each (the experts' own work is the same
in all three, and small here, so that what the rows cost is not lost in it). Milliseconds a step, the slowest rank,
medians of 15; GiB at the peak of a step on rank 0."""
import os
import pathlib
import statistics
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples" / "torch_router"))
LAYERS, N, F, D, TOKENS, LENGTH = 8, 64, 1024, 2048, 128, 4.0


def formula(experts, router):
    """r' = C rM / |rM| as the paper's code has it: two products with all weights."""
    projection = torch.einsum("nfd,nd->nf", experts, router.to(experts.dtype))
    image = torch.einsum("nfd,nf->nd", experts, projection).float()
    return LENGTH / N**0.5 * torch.nn.functional.normalize(image, dim=-1)


class Moe(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = torch.nn.Parameter(torch.randn(N, F, D, dtype=torch.bfloat16) / D**0.5)
        self.router = torch.nn.Parameter(torch.randn(N, D))

    def forward(self, x, rows, how):
        if how == "formula":
            rows = formula(self.gate, self.router)
        elif how == "none":
            rows = self.router
        scores = torch.softmax(x.float() @ rows.T, dim=-1).to(x.dtype)
        # Each expert has two tokens: its own work, much less than a model's.
        own = x.view(N, TOKENS // N, D)
        hidden = torch.nn.functional.silu(torch.bmm(own, self.gate.transpose(1, 2)))
        return x + torch.bmm(hidden, self.gate).view(TOKENS, D) * scores.sum(-1, keepdim=True)


def run(rank, ranks, port, how_many):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    from mpi_router_sharded import sharded_router_rows
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh("cuda", (ranks,))
    torch.manual_seed(1)
    layers = torch.nn.ModuleList(Moe() for _ in range(LAYERS)).cuda()
    for layer in layers:  # the router stays whole, as FSDP's users leave what is small
        fully_shard(layer, mesh=mesh, ignored_params={layer.router})
    weights = [layer.gate for layer in layers]  # sharded, as the optimizer sees them
    buffers = [torch.zeros_like(w.to_local(), dtype=torch.float32) for w in weights]
    tokens = torch.randn(TOKENS, D, device="cuda", dtype=torch.bfloat16)

    def step(how):
        for b in buffers:
            b.zero_()
        rows = [None] * LAYERS
        if how == "sharded":
            rows = sharded_router_rows(weights, [layer.router for layer in layers], radius=LENGTH / N**0.5,
                                       main_grad=buffers)
        x = tokens
        for layer, r in zip(layers, rows):
            x = layer(x, r, how)
        x.float().square().mean().backward()
        if how == "sharded":  # FSDP reduces its own on another stream
            for w, b in zip(weights, buffers):
                w.grad.to_local().add_(b)
        for parameter in layers.parameters():
            parameter.grad = None

    table = {}
    for how in ("none", "sharded", "formula"):
        for _ in range(4):
            step(how)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(how_many):
            dist.barrier()
            torch.cuda.synchronize()
            start = time.perf_counter()
            step(how)
            torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
        worst = torch.tensor(statistics.median(times), device="cuda")
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        table[how] = worst.item(), torch.cuda.max_memory_allocated() / 2**30
    if rank == 0:
        base = table["none"][0]
        for how, (ms, peak) in table.items():
            print(f"FSDP2 on {ranks}, {LAYERS} layers [{N}, {F}, {D}] bf16, {how:8}: {ms:7.2f} ms a step, "
                  f"{ms - base:6.2f} more than without MPI, peak {peak:.2f} GiB", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else torch.cuda.device_count()
    if count < 2:
        print("skipped: fewer than two GPUs")
        sys.exit(77)
    mp.spawn(run, args=(count, 29611, 15), nprocs=count)
