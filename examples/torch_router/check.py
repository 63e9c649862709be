"""Checks mpi_router_torch.router_rows against the authors' formula under PyTorch's autograd in f64.

    python3 check.py [cuda|cpu]      # by default on the GPU at hand
"""

import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))
from checks import check, distance, finish, formula  # noqa: E402
from mpi_router_torch import gates_of, router_rows  # noqa: E402
from mpi_router_torch.devices import library_for  # noqa: E402
from mpi_router_torch.rows import _rows_op  # noqa: E402

device = sys.argv[1] if len(sys.argv) > 1 else "cuda"


def gates_in(layout, n, f, d, dtype):
    make = lambda *shape: torch.randn(*shape, device=device, dtype=dtype) * 0.02
    return {
        "[N, F, D]": lambda: make(n, f, d),
        "[N, D, F]": lambda: make(n, d, f).transpose(1, 2),
        "half of [N, 2F, D]": lambda: make(n, 2 * f, d)[:, f:],
        "every other row of [N, 2F, D]": lambda: make(n, 2 * f, d)[:, ::2],
        "one column more": lambda: make(n, f, d + 1)[:, :, 1:],
        "gates of [N, D, 2F], interleaved": lambda: gates_of(make(n, d, 2 * f), "nd2f-interleaved"),
    }[layout]()


def check_gradients(layout, n, f, d, gate_type, row_type, apply, grad_type=None):
    what = f"{layout} {n}x{f}x{d} {gate_type} {row_type}"
    gates = gates_in(layout, n, f, d, gate_type).detach().requires_grad_()
    rows = torch.randn(n, d, device=device, dtype=row_type).requires_grad_()
    upstream = torch.randn(n, d, device=device, dtype=row_type)
    if grad_type is None:
        out = apply(gates, rows, radius=3.0)
        out.backward(upstream)
        grad_gates, before = gates.grad, 0
    else:  # added to a buffer, of another layout than the gates may have
        grad_gates = torch.randn(n, f, d, device=device, dtype=grad_type)
        before = grad_gates.double()
        out = apply(gates, rows, radius=3.0, main_grad=grad_gates)
        out.backward(upstream)
        check(gates.grad is None, f"{what}: autograd has a gradient besides")
    exact_gates, exact_rows = (t.detach().double().requires_grad_() for t in (gates, rows))
    exact = formula(exact_gates, exact_rows, 3.0)
    exact.backward(upstream.double())
    bound = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}
    for name, x, reference, dtype in (
        ("rows", out, exact, row_type),
        ("gradient to the router", rows.grad, exact_rows.grad, row_type),
        ("gradient to the gates", grad_gates, exact_gates.grad + before, grad_type or gate_type),
    ):
        off = distance(x, reference)
        check(x.dtype == dtype and off <= bound[dtype], f"{what}: {name} off by {off:.1e}")


torch.manual_seed(1)
compiled = torch.compile(router_rows, fullgraph=True, dynamic=False)
traced = torch.compile(router_rows, fullgraph=True, dynamic=False, backend="aot_eager")  # the same graphs, made in less time
layouts = ("[N, F, D]", "[N, D, F]", "half of [N, 2F, D]", "every other row of [N, 2F, D]", "one column more",
           "gates of [N, D, 2F], interleaved")
types = [t for t in (torch.bfloat16, torch.float32, torch.float16) if t in library_for(torch.device(device)).types]
for layout in layouts:
    for gate_type in types:
        for row_type in types:
            for shape in ((8, 96, 256), (3, 50, 77), (64, 64, 1024)):
                for grad_type in {None, torch.float32, gate_type}:
                    check_gradients(layout, *shape, gate_type, row_type, router_rows, grad_type)
    torch._dynamo.reset()  # of one function it keeps eight graphs
    for grad_type in (None, torch.float32, torch.bfloat16):
        check_gradients(layout, 8, 96, 256, torch.bfloat16, torch.bfloat16, compiled if layout == layouts[0] else traced, grad_type)


def check_list(gate_type, row_type, apply, with_sums):
    """One tensor an expert, as nn.Linear layers have it, and buffers of each."""
    what = f"a list of {gate_type} {row_type} {'compiled' if apply is compiled else ''} {'main_grad' * with_sums}"
    weights = [(torch.randn(96, 256, device=device) * 0.02).to(gate_type).requires_grad_() for _ in range(8)]
    rows = torch.randn(8, 256, device=device).to(row_type).requires_grad_()
    sums = [torch.ones(96, 256, device=device) for _ in range(8)] if with_sums else None
    upstream = torch.randn(8, 256, device=device).to(row_type)
    apply(weights, rows, radius=3.0, main_grad=sums).backward(upstream)
    exact = [torch.stack([w.detach().double() for w in weights]), rows.detach().double()]
    for t in exact:
        t.requires_grad_()
    formula(*exact, 3.0).backward(upstream.double())
    if with_sums:
        made = torch.stack(sums) - 1
        check(all(w.grad is None for w in weights), f"{what}: autograd has a gradient besides")
    else:
        made = torch.stack([w.grad for w in weights])
    check(distance(made, exact[0].grad) < 4e-3, f"{what}: gradient to the gates off by {distance(made, exact[0].grad):.1e}")
    check(distance(rows.grad, exact[1].grad) < 4e-3, f"{what}: gradient to the router")


torch._dynamo.reset()
for with_sums in (False, True):
    for gate_type in types:
        check_list(gate_type, torch.float32, router_rows, with_sums)
    check_list(torch.bfloat16, torch.float32, compiled, with_sums)

gates = gates_in("[N, F, D]", 6, 40, 64, torch.bfloat16)
rows = torch.randn(6, 64, device=device)
gates[1] = 0
rows[2] = 0
rows[3, 5] = float("nan")
gates.requires_grad_()
rows.requires_grad_()
out, statuses = router_rows(gates, rows, radius=1.0, statuses=True)
check(statuses.tolist() == [0, 2, 1, 3, 0, 0], f"statuses {statuses.tolist()}")
out.sum().backward()
for e in range(6):
    alive = e not in (1, 2, 3)
    check((out[e].norm() - float(alive)).abs() < 1e-5, f"length of row {e}")
    for t in (gates.grad, rows.grad):
        check(t[e].isfinite().all() and (t[e].count_nonzero() > 0) == alive, f"gradient of expert {e}")
check(torch.equal(compiled(gates, rows, radius=1.0), out), "compiled and eager differ")
by_default = router_rows(gates, rows)
check(torch.equal(by_default, router_rows(gates, rows, radius=4 / 6**0.5)), "the radius by default")
check(torch.equal(compiled(gates, rows), by_default), "the radius by default, compiled")
for through in ("all", "last", "none"):  # several steps, one after the other
    a, b = (t.detach().nan_to_num().requires_grad_() for t in (gates, rows))
    c, d = (t.detach().double().requires_grad_() for t in (a, b))
    three, exact = router_rows(a, b, radius=1.0, steps=3, through=through), d
    for left in (2, 1, 0):
        exact = formula(c if through == "all" or (through == "last" and left == 0) else c.detach(), exact, 1.0)
    (three[4:] * torch.arange(64, device=device)).sum().backward()
    (exact[4:] * torch.arange(64, device=device)).sum().backward()
    check(distance(three[4:], exact[4:]) < 1e-5 and distance(b.grad[4:], d.grad[4:]) < 1e-4, f"three steps through {through}")
    check(a.grad is None if through == "none" else distance(a.grad[4:], c.grad[4:]) < 4e-3, f"gradient through {through}")
if device == "cuda":
    side = torch.cuda.Stream()
    late = torch.full_like(rows, float("nan"))
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        torch.cuda._sleep(10_000_000)
        late.copy_(rows)
        check(torch.equal(router_rows(gates, late, radius=1.0), out), "another stream")
    torch.cuda.current_stream().wait_stream(side)
try:
    g, r = gates.detach().requires_grad_(), rows.detach().nan_to_num().requires_grad_()
    torch.library.opcheck(_rows_op, ([g], r, [], 1.0, 1, "all"))
    torch.library.opcheck(_rows_op, ([t.detach().clone().requires_grad_() for t in g], r, [], 1.0, 1, "all"))
    check(True, "opcheck")
except Exception as e:
    check(False, f"opcheck: {e}")
for empty in ((0, 4, 8), (3, 0, 8)):
    g, r = torch.ones(empty, device=device, requires_grad=True), torch.ones(empty[0], empty[2], device=device, requires_grad=True)
    router_rows(g, r, radius=1.0).sum().backward()
    check(g.grad.shape == empty and r.grad.count_nonzero() == 0, f"experts {empty}")
expanded = torch.randn(64, device=device).expand(6, 64)
check(torch.equal(router_rows(gates, expanded, radius=1.0), router_rows(gates, expanded.contiguous(), radius=1.0)), "an expanded router")

for wanted in ((True, False), (False, True)):  # a gradient to one of them
    part = [t.detach().clone().requires_grad_(w) for t, w in zip((gates, rows), wanted)]
    router_rows(*part, radius=1.0).sum().backward()
    for t, whole, w in zip(part, (gates, rows), wanted):
        check(torch.allclose(t.grad, whole.grad, rtol=1e-5, atol=1e-7) if w else t.grad is None, "a gradient to one of them")

part = [t.detach().clone().requires_grad_() for t in (gates, rows)]
if device == "cuda":
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = router_rows(*part, radius=1.0)
        replayed_grads = torch.autograd.grad(replayed.sum(), part)
    graph.replay()
    check(torch.equal(replayed, out) and torch.equal(replayed_grads[0], gates.grad) and
          torch.equal(replayed_grads[1], rows.grad), "a graph's replay")


def twice():
    (first,) = torch.autograd.grad(router_rows(*part, radius=1.0).square().sum(), part[1], create_graph=True)
    first.sum().backward()


def refused_rows(what, **given):
    g, r = given.pop("g", gates), given.pop("r", rows)
    try:
        router_rows(g, r, **{"radius": 1.0, **given})
        check(False, what + " was not refused")
    except ValueError as e:
        check(str(e).startswith(("router_rows: ", "mpi_router: ")), f"{what}: {e}")


zeros = lambda *shape: torch.zeros(*shape, device=device)
refused_rows("a router of another shape", r=rows[:5])
refused_rows("gates elsewhere", g=gates.to("cpu" if device == "cuda" else "meta"))
refused_rows("integers", g=gates.detach().int())
refused_rows("no radius", radius=0.0)
refused_rows("a radius with a gradient", radius=torch.ones((), device=device))
refused_rows("a buffer of another shape", main_grad=zeros(6, 40, 63))
refused_rows("an expanded buffer", main_grad=zeros(6, 1, 64).expand(6, 40, 64))
refused_rows("a buffer for frozen gates", g=gates.detach(), main_grad=zeros(6, 40, 64))
try:
    twice()
    check(False, "a second derivative was not refused")
except RuntimeError:
    check(True, "a second derivative")

finish(f"mpi_router_torch on {device}")
