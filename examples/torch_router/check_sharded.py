"""Checks mpi_router_sharded on several processes against the authors' formula on whole weights, in f64.

    python3 check_sharded.py cpu gloo 1 2 3 4     # CPU tensors, on as many processes
    python3 check_sharded.py cuda gloo 2 3        # processes that share the GPUs at hand, messages over the host
    python3 check_sharded.py cuda nccl 1          # one GPU for each process

What this PyTorch lacks (DTensor, FSDP2, torch.compile) is said and left out.
"""

import os
import socket
import sys
import traceback

import torch
import torch.distributed as dist
import torch.nn.functional as F

from mpi_router_sharded import part_in_group, part_of, sharded_router_rows

checks, failed, left_out = 0, [], []
device = backend = None


def check(condition, what):
    global checks
    checks += 1
    if not condition:
        failed.append(what)


def near(x, reference, bound, what):
    reference = reference.to(x.device)
    off = ((x.detach().double() - reference).norm() / reference.norm().clamp_min(1e-30)).item() if x.numel() else 0.0
    check(off <= bound, f"{what} off by {off:.1e}")


def same_everywhere(x, what):
    """The same bits on every rank."""
    mine = x.detach().contiguous().cpu().view(torch.uint8).clone()
    others = [None] * dist.get_world_size()
    dist.all_gather_object(others, mine.numpy().tobytes())
    check(all(o == others[0] for o in others), f"{what}: other bits on another rank")


def formula(gates, rows, radius):
    """Eq. 4 and 5: gates [N, F, D] hold the transposes of the paper's W_g."""
    projection = torch.einsum("nfd,nd->nf", gates, rows)
    return radius * F.normalize(torch.einsum("nf,nfd->nd", projection, gates), dim=-1)


class Layer:
    """Whole weights, a router, what comes back for the rows, and what the formula makes of them."""

    def __init__(self, n, f, d, gate_type, row_type, seed):
        g = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
        self.gates = (draw(n, f, d) * 0.1).to(gate_type).to(device)
        self.router = draw(n, d).to(row_type).to(device)
        self.upstream = draw(n, d).to(row_type).to(device)
        self.radius = 4 / n**0.5
        gates, router = (t.double().cpu().clone().requires_grad_() for t in (self.gates, self.router))
        self.rows = formula(gates, router, self.radius)
        self.rows.backward(self.upstream.double().cpu())
        self.to_gates, self.to_router = gates.grad, router.grad
        self.bounds = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 8e-3}

    def compare(self, what, rows, to_router, to_gates, expected_gates):
        near(rows, self.rows.detach(), self.bounds[rows.dtype], f"{what}: rows")
        near(to_router, self.to_router, self.bounds[to_router.dtype], f"{what}: gradient to the router")
        near(to_gates, expected_gates, self.bounds[to_gates.dtype], f"{what}: gradient to the gates")
        same_everywhere(rows, f"{what}: rows")
        same_everywhere(to_router, f"{what}: gradient to the router")


def cuts_of(size, ranks, even):
    if even:
        step = -(-size // ranks)
        return [min(step * r, size) for r in range(ranks + 1)]
    return [size * r * r // (ranks * ranks) for r in range(ranks + 1)]  # uneven, often empty


def local_part(layer, kind, even):
    """This rank's copy of its piece, and a function that takes the same piece of a whole."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    n, f, d = layer.gates.shape
    if kind == "rows":
        at = cuts_of(n * f, ranks, even)
        piece = lambda whole: whole.reshape(n * f, d)[at[rank]:at[rank + 1]]
    else:
        dim = {"experts": 0, "neurons": 1}[kind]
        at = cuts_of(layer.gates.shape[dim], ranks, even)
        piece = lambda whole: whole.narrow(dim, at[rank], at[rank + 1] - at[rank])
    local = piece(layer.gates).clone(memory_format=torch.contiguous_format).requires_grad_()
    part = part_in_group(local, 1 if kind == "neurons" else 0, num_experts=n if kind == "rows" else None)
    return local, part, piece


def check_kinds():
    types = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]
    if device.type == "cpu":
        types.append((torch.float64, torch.float64))
    for gate_type, row_type in types:
        for kind in ("experts", "neurons", "rows"):
            for even in (True, False):
                for split in (False, True):
                    layer = Layer(5, 12, 24, gate_type, row_type, 1)
                    what = f"{kind}, {'even' if even else 'uneven'}, {gate_type}, {row_type}{', split tokens' if split else ''}"
                    local, part, piece = local_part(layer, kind, even)
                    router = layer.router.clone().requires_grad_()
                    rows = sharded_router_rows(local, router, part, split_tokens=split)
                    ranks = dist.get_world_size()
                    upstream = layer.upstream
                    if split:  # powers of two, or exact sums: what the ranks have adds up to the whole
                        upstream = upstream if dist.get_rank() == 0 else torch.zeros_like(upstream)
                        if ranks > 1:
                            upstream = layer.upstream / 2 if dist.get_rank() in (0, ranks - 1) else upstream * 0
                    rows.backward(upstream)
                    layer.compare(what, rows, router.grad, local.grad, piece(layer.to_gates))


def check_layers():
    """Several in one message are each alone."""
    layers = [Layer(5, 12, 24, torch.float32, torch.float32, 2), Layer(5, 8, 24, torch.float32, torch.float32, 3),
              Layer(5, 16, 24, torch.float32, torch.float32, 4)]
    held = [local_part(layer, "neurons", True) for layer in layers]
    routers = [layer.router.clone().requires_grad_() for layer in layers]
    rows = sharded_router_rows([h[0] for h in held], routers, [h[1] for h in held])
    sum((r * layer.upstream).sum() for r, layer in zip(rows, layers)).backward()
    for i, (layer, (local, part, piece)) in enumerate(zip(layers, held)):
        layer.compare(f"layer {i} of three", rows[i], routers[i].grad, local.grad, piece(layer.to_gates))
        check(torch.equal(sharded_router_rows(local, routers[i], part), rows[i]), f"layer {i}: other bits alone")
    check(sharded_router_rows([], []) == [], "no layers")


def check_main_grad():
    layer = Layer(5, 12, 24, torch.bfloat16, torch.float32, 5)
    for given in (False, True):
        local, part, piece = local_part(layer, "experts", True)
        buffer = torch.ones(local.shape, dtype=torch.float32, device=device)
        if not given:
            local.main_grad = buffer
        router = layer.router.clone().requires_grad_()
        for _ in range(2):
            rows = sharded_router_rows(local, router, part, main_grad=buffer if given else None)
            rows.backward(layer.upstream)
        check(local.grad is None, "main_grad: autograd has a gradient besides")
        near(buffer, 1 + 2 * piece(layer.to_gates), 2e-5, "main_grad after two steps")
        near(router.grad, 2 * layer.to_router, 2e-5, "main_grad: gradient to the router")
    frozen = layer.router.clone()
    sharded_router_rows(local, frozen, part, main_grad=buffer).backward(layer.upstream)
    near(buffer, 1 + 3 * piece(layer.to_gates), 2e-5, "main_grad with a router that is frozen")


def check_degenerate():
    layer = Layer(6, 12, 24, torch.float32, torch.float32, 6)
    layer.gates[1] = 0
    layer.router[2] = 0
    layer.router[3, 5] = float("nan")
    local, part, _ = local_part(layer, "neurons", True)
    router = layer.router.clone().requires_grad_()
    rows = sharded_router_rows(local, router, part, radius=1.0)
    rows.sum().backward()
    for e in range(6):
        alive = e not in (1, 2, 3)
        check(abs(rows[e].norm().item() - float(alive)) < 1e-5, f"length of row {e}")
        check(bool((router.grad[e].count_nonzero() > 0) == alive), f"gradient of row {e}")


def check_dtensor():
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Replicate, Shard
    except ImportError:
        left_out.append("DTensor")
        return
    ranks = dist.get_world_size()
    line = init_device_mesh(device.type, (ranks,))
    cases = [(line, (Shard(0),)), (line, (Shard(1),)), (line, (Replicate(),))]
    if ranks % 2 == 0:
        square = init_device_mesh(device.type, (2, ranks // 2), mesh_dim_names=("ep", "fsdp"))
        cases += [(square, (Shard(0), Shard(1))), (square, (Shard(1), Shard(0))), (square, (Replicate(), Shard(0))),
                  (square, (Shard(0), Shard(0)))]
    for n, f in ((8, 12), (5, 7)):
        for mesh, placements in cases:
            layer = Layer(n, f, 24, torch.float32, torch.float32, 7)
            what = f"DTensor [{n}, {f}, 24] {placements}"
            gates = torch.nn.Parameter(spread(layer.gates, mesh, placements))
            expected = spread(layer.to_gates, mesh, placements).to_local()
            router = layer.router.clone().requires_grad_()
            rows = sharded_router_rows(gates, router)
            rows.backward(layer.upstream)
            check(isinstance(gates.grad, DTensor) and gates.grad.placements == gates.placements and
                  gates.grad.shape == gates.shape, f"{what}: the gradient's kind")
            layer.compare(what, rows, router.grad, gates.grad.to_local(), expected)
            check(part_of(gates) is part_of(gates), f"{what}: the part is made twice")
            gates.grad = None
            gates.main_grad = torch.zeros_like(gates.to_local())
            sharded_router_rows(gates, router).backward(layer.upstream)
            near(gates.main_grad, expected, 2e-5, f"{what}: main_grad")
            check(gates.grad is None, f"{what}: autograd has a gradient besides main_grad")
    layer = Layer(5, 7, 24, torch.float32, torch.float32, 8)
    flat = torch.nn.Parameter(spread(layer.gates.reshape(35, 24), line, (Shard(0),)))
    router = torch.nn.Parameter(spread(layer.router, line, (Replicate(),)))
    rows = sharded_router_rows(flat, router, num_experts=5)
    rows.backward(layer.upstream)
    layer.compare("a flat DTensor", rows, router.grad.to_local(), flat.grad.to_local(),
                  spread(layer.to_gates.reshape(35, 24), line, (Shard(0),)).to_local())
    for what, call in (("Shard(2)", lambda: sharded_router_rows(spread(layer.gates, line, (Shard(2),)), layer.router)),
                       ("no num_experts", lambda: sharded_router_rows(flat, layer.router)),
                       ("a router of another shape", lambda: sharded_router_rows(flat, layer.router[:4], num_experts=5))):
        refused(what, call)


def spread(whole, mesh, placements):
    """A DTensor of what every rank has whole, without a message."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def refused(what, call):
    try:
        call()
        check(False, f"{what} was not refused")
    except ValueError as e:
        check(str(e).startswith("sharded_router_rows:"), f"{what}: {e}")


def check_fsdp():
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor
    except ImportError:
        left_out.append("FSDP2")
        return
    if backend == "gloo" and device.type == "cuda":
        left_out.append("FSDP2 on GPUs over gloo")
        return
    layer = Layer(8, 12, 24, torch.float32, torch.float32, 9)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))

    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w1 = torch.nn.Parameter(layer.gates.clone())

        def forward(self, x):  # something that takes the weights whole
            return torch.einsum("td,nfd->tnf", x, self.w1).square().mean()

    tokens = torch.randn(16, 24, generator=torch.Generator().manual_seed(10)).to(device)
    alone = Experts().to(device)
    alone(tokens).backward()
    expected = alone.w1.grad.double().cpu() + layer.to_gates
    module = Experts().to(device)
    fully_shard(module, mesh=mesh)
    w1 = module.w1  # as the optimizer sees it
    check(isinstance(w1, DTensor), "FSDP2: the parameter's kind")
    # Before the experts' forward, as in a model; the gradient to a buffer of its own, for FSDP reduces its own on
    # another stream.
    buffer = torch.zeros_like(w1.to_local())
    router = layer.router.clone().requires_grad_()
    rows = sharded_router_rows(w1, router, main_grad=buffer)
    try:
        (module(tokens) + (rows * layer.upstream).sum()).backward()
    except (RuntimeError, NotImplementedError) as e:
        if backend != "gloo" or "support" not in str(e).lower() and "implement" not in str(e).lower():
            raise
        left_out.append(f"FSDP2 over gloo ({str(e).splitlines()[0]})")
        return
    layer.compare("FSDP2", rows, router.grad, w1.grad.to_local() + buffer, spread(expected, mesh, w1.placements).to_local())


def check_compiled():
    if not hasattr(torch, "compiler") or not hasattr(torch.library, "custom_op"):
        left_out.append("torch.compile")
        return
    layer = Layer(5, 12, 24, torch.float32, torch.float32, 11)
    tokens = torch.randn(7, 24, generator=torch.Generator().manual_seed(12)).to(device)

    def logits(gates, router, part):
        return tokens @ sharded_router_rows(gates, router, part).T

    compiled = torch.compile(logits, fullgraph=True, dynamic=False)
    results = []
    for call in (logits, compiled):
        local, part, piece = local_part(layer, "experts", True)
        router = layer.router.clone().requires_grad_()
        out = call(local, router, part)
        out.square().sum().backward()
        results.append((out.detach(), router.grad, local.grad))
    for name, a, b in zip(("logits", "gradient to the router", "gradient to the gates"), *results):
        near(b, a.double(), 1e-6, f"compiled: {name}")
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard
    except ImportError:
        return
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    gates = torch.nn.Parameter(spread(layer.gates, mesh, (Shard(0),)))
    part = part_of(gates)
    router = layer.router.clone().requires_grad_()
    out = compiled(gates, router, part)
    out.square().sum().backward()
    near(out, results[0][0].double(), 1e-6, "compiled with a DTensor: logits")
    near(gates.grad.to_local(), results[0][2].double(), 1e-5, "compiled with a DTensor: gradient to the gates")


def run_rank(rank, ranks, kind, how, port, results):
    global device, backend
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    device, backend = torch.device(kind), how
    if kind == "cuda":
        device = torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    dist.init_process_group(how, rank=rank, world_size=ranks)
    for one in (check_kinds, check_layers, check_main_grad, check_degenerate, check_dtensor, check_fsdp, check_compiled):
        try:
            one()
        except Exception:
            check(False, f"{one.__name__}: {traceback.format_exc()}")
            break  # the ranks may be in different messages now
    results.put((rank, checks, failed[:20], left_out))
    results.close()
    results.join_thread()
    if not failed:
        dist.barrier()
        dist.destroy_process_group()


def main():
    kind, how, *sizes = sys.argv[1:] or ("cpu", "gloo", "1", "2", "3", "4")
    context = torch.multiprocessing.get_context("spawn")
    bad = False
    for ranks in map(int, sizes):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        results = context.Queue()
        processes = [context.Process(target=run_rank, args=(r, ranks, kind, how, port, results)) for r in range(ranks)]
        for p in processes:
            p.start()
        told = []
        for _ in processes:
            try:
                told.append(results.get(timeout=30 if any(t[2] for t in told) else 400))
            except Exception:
                break
        for p in processes:
            p.join(timeout=20)
            if p.is_alive():
                p.terminate()
        total = sum(t[1] for t in told)
        wrong = sum(len(t[2]) for t in told) + (len(told) < ranks)
        for rank, _, what, _ in sorted(told):
            for w in what:
                print(f"FAILED on {ranks} {how}, {kind}, rank {rank}: {w}")
        if len(told) < ranks:
            print(f"FAILED on {ranks} {how}, {kind}: {ranks - len(told)} processes said nothing")
        without = sorted({x for t in told for x in t[3]})
        print(f"mpi_router_sharded, PyTorch {torch.__version__}, {kind}, {how}, {ranks} processes: {total} checks, {wrong} failures"
              + (f"; without {', '.join(without)}" if without else ""), flush=True)
        bad = bad or wrong > 0
    sys.exit(bad)


if __name__ == "__main__":
    main()
