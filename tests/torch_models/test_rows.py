"""The operator of mpi_router_torch on the CPU beside autograd of the formula. Exit status 77: there is no PyTorch."""

import sys
from pathlib import Path

try:
    import torch
except ImportError:
    print("skipped: python3 has no torch")
    sys.exit(77)

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "python"), str(Path(__file__).resolve().parent)]
from formula import distance, formula  # noqa: E402
from mpi_router_torch import LAYOUTS, gates_of, router_rows  # noqa: E402

torch.manual_seed(1)
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
BOUND = {F64: 1e-13, F32: 5e-6, BF16: 6e-3, F16: 1e-3}


def refused(text, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except (ValueError, RuntimeError) as error:
        assert text in str(error), f"{error!r} does not say {text!r}"
        return
    raise AssertionError(f"nothing refused: {text}")


def parameter_of(layout, n, f, d, dtype):
    """A parameter of that layout, and its gate matrices by another way than gates_of."""
    shape = {"nfd": (n, f, d), "ndf": (n, d, f)}.get(layout) or ((n, 2 * f, d) if layout.startswith("n2fd") else (n, d, 2 * f))
    weight = (torch.randn(shape, dtype=F64) * 0.3).to(dtype)
    rows = weight if layout in ("nfd",) or layout.startswith("n2fd") else weight.permute(0, 2, 1)
    index = {
        "half": range(f), "second half": range(f, 2 * f), "every other": range(0, 2 * f, 2), "all": range(f)
    }[LAYOUTS[layout][1]]
    return weight, rows[:, list(index)]


def check(layout, shape, gate_type, row_type, listed=False, steps=1, through="all"):
    n, f, d = shape
    what = f"{layout} {shape} {gate_type} {row_type} listed={listed} steps={steps} through={through}"
    weight, by_hand = parameter_of(layout, *shape, gate_type)
    weights = [w.clone().requires_grad_() for w in weight] if listed else weight.clone().requires_grad_()
    gates = gates_of(weights, layout)
    assert torch.equal(torch.stack(list(gates)) if listed else gates, by_hand), what
    router = torch.randn(n, d, dtype=F64).to(row_type).requires_grad_()
    upstream = torch.randn(n, d, dtype=F64).to(row_type)
    rows = router_rows(gates, router, radius=3.0, steps=steps, through=through)
    assert rows.dtype == row_type and rows.shape == (n, d), what
    rows.backward(upstream)

    exact_weight = weight.double().requires_grad_()
    exact_router = router.detach().double().requires_grad_()
    exact = exact_router
    for step in range(steps):
        differentiated = through == "all" or (through == "last" and step == steps - 1)
        a = gates_of(exact_weight, layout)
        exact = formula(a if differentiated else a.detach(), exact, 3.0)
    exact.backward(upstream.double())
    bound = max(BOUND[row_type], BOUND[F32] if gate_type != F64 else 0)
    assert distance(rows, exact) < bound, what
    assert router.grad.dtype == row_type and distance(router.grad, exact_router.grad) < 2 * bound, what
    if through == "none":
        assert (weights[0] if listed else weights).grad is None, what
        return
    made = torch.stack([w.grad for w in weights]) if listed else weights.grad
    assert made.dtype == gate_type and made.shape == weight.shape, what
    assert distance(made, exact_weight.grad) < 2 * max(BOUND[gate_type], bound), what


for layout in LAYOUTS:
    for gate_type, row_type in ((F64, F64), (F64, F32), (F32, F32), (F32, BF16), (BF16, BF16), (BF16, F32), (F16, F16)):
        for shape in ((3, 5, 7), (1, 4, 5), (4, 32, 64)):
            for listed in (False, True):
                check(layout, shape, gate_type, row_type, listed)
check("nfd", (8, 96, 512), F32, F32)  # over the threads
for through in ("all", "last", "none"):
    check("nfd", (3, 5, 7), F64, F64, steps=3, through=through)
    check("nd2f-interleaved", (3, 5, 7), F32, F32, listed=True, steps=2, through=through)
g, r = torch.randn(2, 3, 4, dtype=F64, requires_grad=True), torch.randn(2, 4, dtype=F64, requires_grad=True)
assert torch.autograd.gradcheck(lambda a, b: router_rows(a, b, steps=2), (g, r))
one = [torch.tensor(x, dtype=F64, requires_grad=True) for x in ([[[0.5]]], [[-2.0]])]
router_rows(*one).backward(torch.ones(1, 1, dtype=F64))
assert router_rows(*one).item() == -4 and all(t.grad.abs().item() < 1e-15 for t in one)  # D = 1: r' is ±C

# Strides of any kind, and a router that is expanded or transposed.
base = torch.randn(9, 8, 7, dtype=F32)
for gates in (base[::2, ::3, 1:], base.permute(2, 1, 0), base[:, :, :4].expand(9, 8, 4), base[:1].expand(5, 8, 7)):
    n, _, d = gates.shape
    for router in (torch.randn(n, d), torch.randn(d).expand(n, d), torch.randn(d, n).T, torch.randn(n, 2 * d)[:, ::2]):
        assert distance(router_rows(gates, router, radius=1.0), formula(gates.double(), router.double(), 1.0)) < 2e-6

# The radius: 4/√N, of all experts where these are a part of them.
g, r = torch.randn(6, 40, 64), torch.randn(6, 64)
assert torch.equal(router_rows(g, r), router_rows(g, r, radius=4 / 6**0.5))
assert torch.equal(router_rows(g[:2], r[:2], total_experts=6), router_rows(g, r)[:2])

# main_grad: added to, of the gates' type or float32, in any layout; autograd has none.
for gate_type, sum_type in ((F32, F32), (BF16, F32), (BF16, BF16), (F16, F32), (F64, F64)):
    for listed in (False, True):
        weight = (torch.randn(6, 40, 64) * 0.3).to(gate_type)
        a = [w.clone().requires_grad_() for w in weight] if listed else weight.clone().requires_grad_()
        start = torch.randn(6, 64, 40).to(sum_type).transpose(1, 2)
        sums = [s.clone() for s in start] if listed else start.clone()
        b = r.to(F64 if gate_type == F64 else F32).clone().requires_grad_()
        for _ in range(2):
            router_rows(a, b, main_grad=sums).sum().backward()
        assert all(w.grad is None for w in a) if listed else a.grad is None
        plain = weight.clone().requires_grad_()
        router_rows(plain, b.detach()).sum().backward()
        whole = torch.stack(sums) if listed else sums
        exact = start.double() + 2 * plain.grad.double()
        assert distance(whole, exact) < 4 * BOUND[sum_type] + (BOUND[gate_type] if gate_type != sum_type else 0), (gate_type, sum_type)
        b.grad = None

# One of the gradients.
whole = [t.clone().requires_grad_() for t in (g, r)]
router_rows(*whole).sum().backward()
for wanted in ((True, False), (False, True), (False, False)):
    part = [t.clone().requires_grad_(w) for t, w in zip((g, r), wanted)]
    rows = router_rows(*part)
    assert rows.requires_grad == any(wanted)
    if any(wanted):
        rows.sum().backward()
    for t, full, w in zip(part, whole, wanted):
        assert torch.allclose(t.grad, full.grad, rtol=1e-5, atol=1e-6) if w else t.grad is None

# Rows without a step are zero and get no gradient; statuses say which.
a, b = torch.randn(6, 5, 8), torch.randn(6, 8)
a[1], b[2], b[3, 5], a[4, 2, 2] = 0, 0, float("nan"), float("inf")
a.requires_grad_(), b.requires_grad_()
rows, codes = router_rows(a, b, statuses=True)
rows.sum().backward()
assert codes.dtype == torch.uint8 and codes.tolist() == [0, 2, 1, 3, 3, 0], codes
for e, code in enumerate(codes.tolist()):
    assert (rows[e] != 0).any() == (code == 0) and torch.isfinite(rows[e]).all()
    for t in (a.grad, b.grad):
        assert torch.isfinite(t[e]).all() and (t[e] != 0).any() == (code == 0), e

assert router_rows(a, b, steps=3, statuses=True)[1].tolist() == [0, 2, 1, 3, 3, 0]  # of the first step that failed
w, v = torch.randn(3, 5, 8), torch.randn(3, 8).to(BF16)  # between steps nothing is rounded
assert torch.equal(router_rows(w, v, steps=2), router_rows(w, router_rows(w, v.float())).to(BF16))

for empty in ((0, 4, 8), (3, 0, 8), (3, 4, 0)):
    a, b = torch.ones(empty, requires_grad=True), torch.ones(empty[0], empty[2], requires_grad=True)
    router_rows(a, b).sum().backward()
    assert a.grad.shape == empty and b.grad.count_nonzero() == 0

# The same, bit for bit, and with the bits of any other call.
g, r = torch.randn(8, 300, 256), torch.randn(8, 256)
assert torch.equal(router_rows(g, r), router_rows(list(g), r))
threads = torch.get_num_threads()
once = router_rows(g, r)
torch.set_num_threads(3 if threads != 3 else 2)
assert torch.equal(once, router_rows(g, r))
torch.set_num_threads(threads)

# Gradients are what was saved: a weight that was changed in between is found.
a = torch.randn(2, 3, 4, requires_grad=True)
rows = router_rows(a, torch.randn(2, 4))
with torch.no_grad():
    a.add_(1)
refused("modified by an inplace operation", rows.sum().backward)


def twice():
    a = torch.randn(2, 3, 4, requires_grad=True)
    (first,) = torch.autograd.grad(router_rows(a, torch.randn(2, 4)).square().sum() * a.sum(), a, create_graph=True)
    first.sum().backward()


g, r = torch.randn(6, 5, 8, requires_grad=True), torch.randn(6, 8)
refused("differentiate twice", twice)
refused("router is float32 (5, 8) on cpu, gates [N = 6, F = 5, D = 8]", router_rows, g, r[:5])
refused("no library for tensors on meta", router_rows, g.to("meta"), r.to("meta"))
refused("gates is int64", router_rows, g.detach().long(), r)
refused("router is complex64", router_rows, g, r.to(torch.complex64))
refused("asks for gates in float64", router_rows, g, r.double())
refused("not of 3 axes", router_rows, g[None], r)
refused("gates is an empty list", router_rows, [], r)
refused("gates[0] is float32 (6, 5, 8) on cpu, not of 2 axes", router_rows, [g, g], r)
refused("gates[1] is float32 (4, 8)", router_rows, [g[0], g[1, :4]], r[:2])
refused("gates[1] is float64", router_rows, [g[0], g[1].double()], r[:2])
refused("with the strides (1, 5)", router_rows, [g[0], g[1].T.contiguous().T], r[:2])
refused("gates[1] is list, no tensor", router_rows, [g[0], [1]], r[:2])
for radius in (0.0, -1.0, float("nan"), float("inf")):
    refused("radius is", router_rows, g, r, radius=radius)
refused("radius must be a number, which has no gradient, not Tensor", router_rows, g, r, radius=torch.ones(()))
refused("total_experts is 5", router_rows, g, r, total_experts=5)
refused("steps is 0", router_rows, g, r, steps=0)
refused("through is 'some'", router_rows, g, r, through="some")
refused("main_grad float32 (6, 5, 7)", router_rows, g, r, main_grad=torch.zeros(6, 5, 7))
refused("main_grad bfloat16", router_rows, g, r, main_grad=torch.zeros(6, 5, 8, dtype=BF16))
refused("is expanded", router_rows, g, r, main_grad=torch.zeros(6, 1, 8).expand(6, 5, 8))
refused("requires a gradient", router_rows, g, r, main_grad=torch.zeros(6, 5, 8, requires_grad=True))
refused("that require no gradient", router_rows, g.detach(), r, main_grad=torch.zeros(6, 5, 8))
refused("through='none'", router_rows, g, r, through="none", main_grad=torch.zeros(6, 5, 8))
refused("main_grad has 1 buffers for 6 gates", router_rows, list(g), r, main_grad=torch.zeros(6, 5, 8))
refused("main_grad has 0 buffers", router_rows, g, r, main_grad=[])
refused("layout is 'fd'", gates_of, g, "fd")
refused("has 5 rows", gates_of, g, "n2fd-concatenated")
refused("is no [N", gates_of, g[0, 0], "nfd")
print("mpi_router_torch.router_rows: as the formula under autograd")
