"""Checks mpi_router_torch against the authors' formula under PyTorch's autograd in f64, on the GPU at hand."""

import sys

import torch
import torch.nn.functional as F

from mpi_router_torch import _step, router_rows

checks = failures = 0


def check(condition, what):
    global checks, failures
    checks += 1
    if not condition:
        failures += 1
        print("FAILED:", what)


def formula(gates, rows, radius):
    """Eq. 4 and 5: gates [N, F, D] hold the transposes of the paper's W_g."""
    projection = torch.einsum("nfd,nd->nf", gates, rows)
    return radius * F.normalize(torch.einsum("nf,nfd->nd", projection, gates), dim=-1)


def distance(x, reference):
    return ((x.double() - reference).norm() / reference.norm()).item()


def gates_in(layout, n, f, d, dtype):
    make = lambda *shape: torch.randn(*shape, device="cuda", dtype=dtype) * 0.02
    return {
        "[N, F, D]": lambda: make(n, f, d),
        "[N, D, F]": lambda: make(n, d, f).transpose(1, 2),
        "half of [N, 2F, D]": lambda: make(n, 2 * f, d)[:, f:],
        "every other row of [N, 2F, D]": lambda: make(n, 2 * f, d)[:, ::2],
        "one column more": lambda: make(n, f, d + 1)[:, :, 1:],
    }[layout]()


def check_gradients(layout, n, f, d, gate_type, row_type, apply, grad_type=None):
    what = f"{layout} {n}x{f}x{d} {gate_type} {row_type}"
    gates = gates_in(layout, n, f, d, gate_type).detach().requires_grad_()
    rows = torch.randn(n, d, device="cuda", dtype=row_type).requires_grad_()
    upstream = torch.randn(n, d, device="cuda", dtype=row_type)
    if grad_type is None:
        out = apply(gates, rows, 3.0)
        out.backward(upstream)
        grad_gates, before = gates.grad, 0
    else:  # added to a buffer, of another layout than the gates may have
        grad_gates = torch.randn(n, f, d, device="cuda", dtype=grad_type)
        before = grad_gates.double()
        out = apply(gates, rows, 3.0, main_grad=grad_gates)
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


def refused(what, call, *arguments):
    try:
        call(*arguments)
        check(False, what + " was not refused")
    except (ValueError, RuntimeError) as e:
        check(call is not router_rows or str(e).startswith(("router_rows", "mpi_router: mpi_router_cuda_")), f"{what}: {e}")


torch.manual_seed(1)
compiled = torch.compile(router_rows, fullgraph=True, dynamic=False)
layouts = ("[N, F, D]", "[N, D, F]", "half of [N, 2F, D]", "every other row of [N, 2F, D]", "one column more")
for layout in layouts:
    for gate_type in (torch.bfloat16, torch.float16, torch.float32):
        for row_type in (torch.bfloat16, torch.float16, torch.float32):
            for shape in ((8, 96, 256), (3, 50, 77), (64, 64, 1024)):
                for grad_type in {None, torch.float32, gate_type}:
                    check_gradients(layout, *shape, gate_type, row_type, router_rows, grad_type)
    check_gradients(layout, 8, 96, 256, torch.bfloat16, torch.bfloat16, compiled)

gates = gates_in("[N, F, D]", 6, 40, 64, torch.bfloat16)
rows = torch.randn(6, 64, device="cuda")
gates[1] = 0
rows[2] = 0
rows[3, 5] = float("nan")
gates.requires_grad_()
rows.requires_grad_()
out = router_rows(gates, rows, 1.0)
out.sum().backward()
for e in range(6):
    alive = e not in (1, 2, 3)
    check((out[e].norm() - float(alive)).abs() < 1e-5, f"length of row {e}")
    for t in (gates.grad, rows.grad):
        check(t[e].isfinite().all() and (t[e].count_nonzero() > 0) == alive, f"gradient of expert {e}")
check(torch.equal(compiled(gates, rows, 1.0), out), "compiled and eager differ")
by_default = router_rows(gates, rows)
check(torch.equal(by_default, router_rows(gates, rows, 4 / 6**0.5)), "the radius by default")
check(torch.equal(compiled(gates, rows), by_default), "the radius by default, compiled")
side = torch.cuda.Stream()
late = torch.full_like(rows, float("nan"))
side.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(side), torch.no_grad():
    torch.cuda._sleep(10_000_000)
    late.copy_(rows)
    check(torch.equal(router_rows(gates, late, 1.0), out), "another stream")
torch.cuda.current_stream().wait_stream(side)
try:
    torch.library.opcheck(_step, (gates.detach().requires_grad_(), rows.detach().nan_to_num().requires_grad_(), 1.0))
    check(True, "opcheck")
except Exception as e:
    check(False, f"opcheck: {e}")
for empty in ((0, 4, 8), (3, 0, 8)):
    g, r = torch.ones(empty, device="cuda", requires_grad=True), torch.ones(empty[0], empty[2], device="cuda", requires_grad=True)
    router_rows(g, r, 1.0).sum().backward()
    check(g.grad.shape == empty and r.grad.count_nonzero() == 0, f"experts {empty}")
expanded = torch.randn(64, device="cuda").expand(6, 64)
check(torch.equal(router_rows(gates, expanded, 1.0), router_rows(gates, expanded.contiguous(), 1.0)), "an expanded router")

for wanted in ((True, False), (False, True)):  # a gradient to one of them
    part = [t.detach().clone().requires_grad_(w) for t, w in zip((gates, rows), wanted)]
    router_rows(*part, 1.0).sum().backward()
    for t, whole, w in zip(part, (gates, rows), wanted):
        check(torch.allclose(t.grad, whole.grad, rtol=1e-5, atol=1e-7) if w else t.grad is None, "a gradient to one of them")

part = [t.detach().clone().requires_grad_() for t in (gates, rows)]
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    replayed = router_rows(*part, 1.0)
    replayed_grads = torch.autograd.grad(replayed.sum(), part)
graph.replay()
check(torch.equal(replayed, out) and torch.equal(replayed_grads[0], gates.grad) and
      torch.equal(replayed_grads[1], rows.grad), "a graph's replay")


def twice():
    (first,) = torch.autograd.grad(router_rows(*part, 1.0).sum(), part[1], create_graph=True)
    first.sum().backward()

refused("a router of another shape", router_rows, gates, rows[:5], 1.0)
refused("gates on the host", router_rows, gates.cpu(), rows, 1.0)
refused("double precision", router_rows, gates.double(), rows, 1.0)
refused("no radius", router_rows, gates, rows, 0.0)
refused("a radius with a gradient", router_rows, gates, rows, torch.ones((), device="cuda"))
refused("a buffer of another shape", router_rows, gates, rows, 1.0, torch.zeros(6, 40, 63, device="cuda"))
refused("an expanded buffer", router_rows, gates, rows, 1.0, torch.zeros(6, 1, 64, device="cuda").expand(6, 40, 64))
refused("a buffer for frozen gates", router_rows, gates.detach(), rows, 1.0, torch.zeros(6, 40, 64, device="cuda"))
refused("a second derivative", twice)

print(f"mpi_router_torch, PyTorch {torch.__version__}: {checks} checks, {failures} failures")
sys.exit(failures != 0)
