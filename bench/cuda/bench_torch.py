"""Times the authors' formula in PyTorch, eager and compiled, and an MoE layer around it; the same with mpi_router as
an operator of PyTorch (python/mpi_router_torch). One JSON object a line."""

import json
import pathlib
import sys

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "python"))
import mpi_router_torch

ROUNDS = 20


def microseconds(call, copies, ahead=False):
    """The median over rounds of the mean over call(0) ... call(copies - 1), by CUDA events. ahead: the GPU waits until the
    host has called them all, as it is in training where the host is ahead; what the host takes is then not in it."""
    times = []
    for r in range(-3, ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if ahead:
            torch.cuda._sleep(20_000_000)  # cycles: 10 ms
        begin.record()
        for i in range(copies):
            call(i)
        end.record()
        end.synchronize()
        if r >= 0:
            times.append(begin.elapsed_time(end) * 1000 / copies)
    return sorted(times)[len(times) // 2]


def line(work, shape, dtype, us):
    name = {torch.bfloat16: "bf16", torch.float32: "f32"}[dtype]
    print(json.dumps({"work": work, "shape": shape, "type": name, "us": round(us, 3)}), flush=True)


def router_rows(rows, gate, radius=4.0):
    """Eq. 4 and 5: gate [N, F, D] holds the transposes of the paper's W_g."""
    projection = torch.einsum("nfd,nd->nf", gate, rows)
    image = torch.einsum("nf,nfd->nd", projection, gate)
    return radius * F.normalize(image, dim=-1)


def forward_and_backward(formula):
    def run(rows, gate, upstream):
        rows.grad = gate.grad = None
        formula(rows, gate).backward(upstream)

    return run


def time_formula(n, f, d, dtype, backward):
    shape = f"{n}x{f}x{d}"
    size = n * f * d * torch.finfo(dtype).bits // 8
    copies = max(3, int(400e6 / size) + 1)
    gates = [torch.randn(n, f, d, device="cuda", dtype=dtype) * 0.02 for _ in range(copies)]
    rows = torch.randn(n, d, device="cuda", dtype=dtype) * 0.02
    torch._dynamo.reset()
    compiled = torch.compile(router_rows, dynamic=False)
    with torch.no_grad():
        line("PyTorch forward, eager", shape, dtype, microseconds(lambda i: router_rows(rows, gates[i]), copies))
        line("PyTorch forward, compiled", shape, dtype, microseconds(lambda i: compiled(rows, gates[i]), copies))
    if backward:
        rows.requires_grad_()
        for gate in gates:
            gate.requires_grad_()
        upstream = torch.randn_like(rows)
        operator = lambda rows, gates: mpi_router_torch.router_rows(gates, rows, radius=4.0)
        for name, formula in (("eager", router_rows), ("compiled", compiled), ("mpi_router", operator)):
            step = forward_and_backward(formula)
            for ahead, what in ((False, ""), (True, ", host ahead")):
                us = microseconds(lambda i: step(rows, gates[i], upstream), copies, ahead)
                line(f"PyTorch forward + backward, {name}{what}", shape, dtype, us)
        torch.cuda.reset_peak_memory_stats()
        rows.grad = gates[0].grad = None
        for gate in gates:
            gate.grad = None
        before = torch.cuda.memory_allocated()
        forward_and_backward(router_rows)(rows, gates[0], upstream)
        extra = torch.cuda.max_memory_allocated() - before
        print(f"PyTorch at {shape}: peak extra memory {100 * extra / size:.0f} % of the weights", file=sys.stderr)


def time_gating(tokens, experts, hidden, top_k):
    shape = f"{tokens}x{experts}x{hidden}"
    x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
    rows = torch.randn(experts, hidden, device="cuda", dtype=torch.bfloat16)

    def product():
        return x @ rows.T

    def gate(logits):
        return torch.topk(torch.softmax(logits.float(), dim=-1), top_k, dim=-1)

    with torch.no_grad():
        logits = product()
        bare = microseconds(lambda i: product(), 8)
        line("PyTorch logits product", shape, torch.bfloat16, bare)
        line("PyTorch softmax + topk", shape, torch.bfloat16, microseconds(lambda i: gate(logits), 8))
        line("PyTorch logits + softmax + topk", shape, torch.bfloat16, microseconds(lambda i: gate(product()), 8))
        torch._dynamo.reset()
        compiled = torch.compile(lambda l: gate(l), dynamic=False)
        line("PyTorch softmax + topk, compiled", shape, torch.bfloat16, microseconds(lambda i: compiled(logits), 8))


class Experts(torch.nn.Module):
    """A SwiGLU MoE: tokens sorted by expert, one grouped product for each of the three weights. The tokens of an expert take
    a multiple of eight rows, two of them padding. Nothing in it waits for the GPU."""

    def __init__(self, n, f, d):
        super().__init__()
        make = lambda *s: torch.nn.Parameter(torch.randn(*s, device="cuda", dtype=torch.bfloat16) * 0.02)
        self.gate, self.up, self.down = make(n, f, d), make(n, f, d), make(n, d, f)

    def forward(self, x, weights, ids, product_of_gate=None):
        n, chosen = self.gate.shape[0], ids.numel()
        experts, order = ids.flatten().sort()
        starts = torch.searchsorted(experts, torch.arange(n + 1, device="cuda"))
        counts = starts.diff()
        padded = (counts + 2 + 7) // 8 * 8
        offsets = padded.cumsum(0)
        rows = torch.arange(chosen, device="cuda") + (offsets - padded - starts[:-1])[experts]
        capacity = chosen + 10 * n
        offsets[-1:] = capacity  # the last expert has the rest
        offsets = offsets.int()
        tokens = torch.zeros(capacity, dtype=torch.long, device="cuda").index_copy_(0, rows, order // ids.shape[1])
        weights = weights.new_zeros(capacity).index_copy(0, rows, weights.flatten()[order])
        product = lambda a, w: torch._grouped_mm(a, w.transpose(1, 2), offs=offsets)
        inner = x[tokens]
        gate = product_of_gate(inner, offsets) if product_of_gate else product(inner, self.gate)
        inner = F.silu(gate) * product(inner, self.up)
        out = product(inner, self.down) * weights[:, None]
        return torch.zeros_like(x).index_add(0, tokens, out)


def medians_beside(usual, calls, rounds):
    """Each call between two of the usual one, none waited for: the host is ahead of the GPU, as it is in training. The
    medians in milliseconds of the usual, and of what each takes more than the mean of its neighbours."""
    times, more = [], [[] for _ in calls]
    for r in range(-3, rounds):
        torch.cuda.set_sync_debug_mode("error" if r >= 0 else "default")
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * len(calls) + 2)]
        usual()  # not counted
        for event, call in zip(events, [usual] + [c for call in calls for c in (call, usual)]):
            event.record()
            call()
        events[-1].record()
        events[-1].synchronize()
        took = [begin.elapsed_time(end) for begin, end in zip(events, events[1:])]
        if r >= 0:
            times += took[::2]
            for i, of in enumerate(more):
                of.append(took[2 * i + 1] - (took[2 * i] + took[2 * i + 2]) / 2)
    torch.cuda.set_sync_debug_mode("default")
    median = lambda values: sorted(values)[len(values) // 2]
    return median(times), [median(of) for of in more]


def kernel_microseconds(call, rounds):
    """How long any kernel of a call is on the GPU, by PyTorch's profiler: what it takes of the GPU, wherever the host is.
    Where one kernel starts while the last still runs (programmatic dependent launch), the time counts once."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(rounds):
            call()
        torch.cuda.synchronize()
    on_gpu = [event.time_range for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy, end = 0.0, 0.0
    for at in sorted(on_gpu, key=lambda at: at.start):
        busy += max(at.end - max(at.start, end), 0)
        end = max(end, at.end)
    return busy / rounds


def time_layer(tokens, n, f, d, top_k):
    shape = f"{tokens} tokens, {n}x{f}x{d}"
    layer = Experts(n, f, d)
    router = torch.nn.Parameter(torch.randn(n, d, device="cuda", dtype=torch.bfloat16) * 0.02)
    x = torch.randn(tokens, d, device="cuda", dtype=torch.bfloat16)
    upstream = torch.randn_like(x)

    def step(make):
        for p in (layer.gate, layer.up, layer.down, router):
            p.grad = None
        rows, product = make()
        scores = torch.softmax((x @ rows.T).float(), dim=-1)
        weights, ids = torch.topk(scores, top_k, dim=-1)
        layer(x, (weights / weights.sum(-1, keepdim=True)).bfloat16(), ids, product).backward(upstream)

    def grouped():
        gate_proj = mpi_router_torch.GroupedGateProjection(layer.gate, router, radius=4.0)
        return gate_proj.rows, gate_proj.product

    operator = lambda **sums: (mpi_router_torch.router_rows(layer.gate, router, radius=4.0, **sums), None)
    bf16, f32 = (torch.zeros_like(layer.gate, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    routers = {
        "PyTorch's MPI": lambda: (router_rows(router, layer.gate), None),
        "mpi_router": operator,
        "mpi_router, gradient added to bf16": lambda: operator(main_grad=bf16),
        "mpi_router, gradient added to f32": lambda: operator(main_grad=f32),
        "mpi_router, two rows of the weight gradient": grouped,
    }
    usual = lambda: step(lambda: (router, None))
    steps = [lambda make=make: step(make) for make in routers.values()]
    ms, more = medians_beside(usual, steps, 2 * ROUNDS)
    report = lambda what, us: line(f"MoE layer training step, {what}", shape, torch.bfloat16, us)
    report("usual router", 1000 * ms)
    for name, over in zip(routers, more):
        report(f"{name}: more than that", 1000 * over)
    report("usual router: its kernels", kernel_microseconds(usual, ROUNDS))
    for name, call in zip(routers, steps):
        report(f"{name}: its kernels", kernel_microseconds(call, ROUNDS))


if __name__ == "__main__":
    time_gating(16384, 128, 2048, 8)
    time_layer(16384, 64, 1024, 2048, 8)
    shapes = ((64, 1024, 2048), (64, 2048, 7168), (128, 768, 2048), (64, 512, 1024))
    for shape in shapes:
        time_formula(*shape, torch.bfloat16, backward=True)
    for shape in shapes:
        time_formula(*shape, torch.float32, backward=False)
