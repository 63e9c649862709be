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
        grad_gates = torch.randn(n, f, d, device="cuda", dtype=grad_type) * 1e-3
        before = grad_gates.double()
        out = apply(gates, rows, 3.0, main_grad=grad_gates)
        out.backward(upstream)
        check(gates.grad is None, f"{what}: autograd has a gradient besides")
    exact_gates, exact_rows = (t.detach().double().requires_grad_() for t in (gates, rows))
    exact = formula(exact_gates, exact_rows, 3.0)
    exact.backward(upstream.double())
    bound = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
    for name, x, reference, dtype in (
        ("rows", out, exact, row_type),
        ("gradient to the router", rows.grad, exact_rows.grad, row_type),
        ("gradient to the gates", grad_gates, exact_gates.grad + before, grad_type or gate_type),
    ):
        off = distance(x, reference)
        check(x.dtype == dtype and off <= bound[dtype], f"{what}: {name} off by {off:.1e}")


def refused(what, *arguments):
    try:
        router_rows(*arguments)
        check(False, what + " was not refused")
    except (ValueError, RuntimeError) as e:
        check(str(e).startswith(("router_rows", "cuda::", "mpi_router")), f"{what}: {e}")


torch.manual_seed(1)
compiled = torch.compile(router_rows, fullgraph=True, dynamic=False)
layouts = ("[N, F, D]", "[N, D, F]", "half of [N, 2F, D]", "every other row of [N, 2F, D]", "one column more")
for layout in layouts:
    for types in ((torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)):
        for shape in ((8, 96, 256), (3, 50, 77), (64, 64, 1024)):
            check_gradients(layout, *shape, *types, router_rows)
            check_gradients(layout, *shape, *types, router_rows, torch.float32)
            check_gradients(layout, *shape, *types, router_rows, types[0])
check_gradients("[N, F, D]", 8, 96, 256, torch.bfloat16, torch.bfloat16, compiled)

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
    check((gates.grad[e].norm() > 0) == alive and (rows.grad[e].norm() > 0) == alive, f"gradient of expert {e}")
check(torch.equal(compiled(gates, rows, 1.0), out), "compiled and eager differ")
side = torch.cuda.Stream()
side.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(side):
    check(torch.equal(router_rows(gates, rows, 1.0), out), "another stream")
torch.cuda.current_stream().wait_stream(side)
try:
    torch.library.opcheck(_step, (gates.detach(), rows.detach(), 1.0))
    check(True, "opcheck")
except Exception as e:
    check(False, f"opcheck: {e}")

graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    replayed = router_rows(gates, rows, 1.0)
graph.replay()
check(torch.equal(replayed, out), "a graph's replay")

refused("a router of another shape", gates, rows[:5], 1.0)
refused("gates on the host", gates.cpu(), rows, 1.0)
refused("half precision", gates.half(), rows, 1.0)
refused("no radius", gates, rows, 0.0)
refused("a buffer of another shape", gates, rows, 1.0, torch.zeros(6, 40, 63, device="cuda"))

print(f"mpi_router_torch, PyTorch {torch.__version__}: {checks} checks, {failures} failures")
sys.exit(failures != 0)
