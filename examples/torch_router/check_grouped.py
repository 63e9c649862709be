"""Checks mpi_router_torch.GroupedGate against the authors' formula and a loop over tokens under PyTorch's autograd in f64.

    python3 check_grouped.py [cuda|cpu]      # by default on the GPU at hand; exit status 77: there is no PyTorch
"""

import pathlib
import sys

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("skipped: python3 has no torch")
    sys.exit(77)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))
from mpi_router_torch import GroupedGate, router_rows  # noqa: E402

device = sys.argv[1] if len(sys.argv) > 1 else "cuda"

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


def check_grouped(halves, dtype, row_type, sizes, n, f, d, calls):
    """The router's gradient as two more rows of each expert's weight-gradient product."""
    what = f"GroupedGate {'half of [N, 2F, D]' if halves else '[N, F, D]'} {dtype} {row_type} {sizes} in {calls} calls"
    gates = torch.randn(n, (2 if halves else 1) * f, d, device=device, dtype=dtype)[:, :f] * 0.02
    gates = gates.detach().requires_grad_()
    rows = torch.randn(n, d, device=device, dtype=row_type).requires_grad_()
    ends = torch.tensor(sizes, device=device).cumsum(0).int()
    total, free = int(ends[-1]) + 3, torch.cat([ends - 2, ends - 1]).long()
    tokens = [torch.randn(total, d, device=device, dtype=dtype).requires_grad_() for _ in range(calls)]
    to_hidden = [torch.randn(total, f, device=device, dtype=dtype) for _ in range(calls)]
    for t in to_hidden:
        t[free] = 0
        t[int(ends[-1]):] = 0
    to_rows = 0.1 * torch.randn(n, d, device=device, dtype=row_type)
    before = [t.detach().clone() for t in (*tokens, *to_hidden)]
    made = GroupedGate(gates, rows, radius=3.0)
    hidden = [made.product(t, ends) for t in tokens]
    torch.autograd.backward([*hidden, made.rows], [*to_hidden, to_rows])
    exact_gates, exact_rows, *exact_tokens = (t.detach().double().requires_grad_() for t in (gates, rows, *tokens))
    exact = formula(exact_gates, exact_rows, 3.0)
    expert = torch.repeat_interleave(torch.arange(n, device=device), torch.tensor(sizes, device=device))
    products = [torch.einsum("tfd,td->tf", exact_gates[expert], t[:len(expert)]) for t in exact_tokens]
    torch.autograd.backward([*products, exact], [*(t[:len(expert)].double() for t in to_hidden), to_rows.double()])
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-3}[dtype]
    if device == "cuda" and dtype == torch.float64:
        bound = 1e-6  # there the factors are in float32
    for name, x, reference in (("rows", made.rows, exact), ("to the gates", gates.grad, exact_gates.grad),
                               ("to the router", rows.grad, exact_rows.grad),
                               ("to the tokens", tokens[0].grad[:len(expert)], exact_tokens[0].grad[:len(expert)]),
                               ("hidden", hidden[-1][:len(expert)], products[-1])):
        off = distance(x, reference)
        check(off <= bound, f"{what}: {name} off by {off:.1e}")
    check(all(torch.equal(a, b) for a, b in zip(before, (*tokens, *to_hidden))), f"{what}: an input has changed")
    alone = [t.detach().clone().requires_grad_() for t in (gates, rows)]  # no product: as by router_rows
    GroupedGate(*alone, radius=3.0).rows.backward(to_rows)
    plain = [t.detach().clone().requires_grad_() for t in (gates, rows)]
    router_rows(*plain, radius=3.0).backward(to_rows)
    check(all(torch.equal(a.grad, b.grad) for a, b in zip(alone, plain)), f"{what}: without a product")


torch.manual_seed(1)
for dtype, row_type in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16),
                        (torch.bfloat16, torch.float32)):
    for halves in (False, True):
        for calls in (1, 3):
            check_grouped(halves, dtype, row_type, [8, 16, 2, 8, 32], 5, 24, 40, calls)
    check_grouped(False, dtype, row_type, [8] * 7 + [3], 8, 64, 128, 1)

part = [torch.randn(3, 8, 16, device=device, dtype=torch.bfloat16).requires_grad_(),
        torch.randn(3, 16, device=device, dtype=torch.bfloat16).requires_grad_()]
tokens, ends = torch.randn(24, 16, device=device, dtype=torch.bfloat16), torch.tensor([8, 16, 24], device=device).int()
made = GroupedGate(*part)
hidden = made.product(tokens, ends).sum() + made.rows.sum()
first = torch.autograd.grad(hidden, part, retain_graph=True)
check(all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(hidden, part))), "GroupedGate twice")
with torch.no_grad():
    GroupedGate(*part).product(tokens, ends)
frozen = GroupedGate(part[0].detach(), part[1])
(frozen.product(tokens, ends).sum() + frozen.rows.sum()).backward()
check(part[1].grad.isfinite().all() and part[0].grad is None, "GroupedGate of frozen gates")
if device == "cuda":  # no room: every gradient is NaN
    narrow = GroupedGate(*part)
    narrow_ends = torch.tensor([8, 9, 24], device=device).int()
    (to_gates,) = torch.autograd.grad(narrow.product(tokens, narrow_ends).sum() + narrow.rows.sum(), part[:1])
    check(to_gates.isnan().any(dim=2).any(dim=1).all(), "GroupedGate without room")
refused_calls = [lambda: GroupedGate(list(part[0]), part[1]), lambda: GroupedGate(part[0].half(), part[1].half()),
                 lambda: GroupedGate(part[0], part[1][:2]), lambda: made.product(tokens[:, :8], ends),
                 lambda: made.product(tokens.float(), ends), lambda: made.product(tokens, ends.long()),
                 lambda: made.product(tokens, ends[:2]), lambda: made.product(tokens[:1].expand(24, 16), ends)]
if device == "cpu":
    refused_calls += [lambda: made.product(tokens, torch.tensor([8, 9, 24]).int()), lambda: made.product(tokens, ends + 8)]
for i, call in enumerate(refused_calls):
    try:
        call()
        check(False, f"GroupedGate: case {i} was not refused")
    except ValueError as e:
        check(str(e).startswith(("GroupedGate: ", "router_rows: ")), f"GroupedGate: {e}")

print(f"GroupedGate on {device}, PyTorch {torch.__version__}: {checks} checks, {failures} failures")
sys.exit(failures != 0)
