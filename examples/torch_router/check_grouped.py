"""Checks mpi_router_torch.GroupedGateProjection against the authors' formula and a product a token, under autograd in f64.

    python3 check_grouped.py [cuda|cpu]      # by default on the GPU at hand; exit status 77: there is no PyTorch
"""

import pathlib
import sys

try:
    import torch
except ImportError:
    print("skipped: python3 has no torch")
    sys.exit(77)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))
from checks import check, distance, finish, formula  # noqa: E402
from mpi_router_torch import GroupedGateProjection, router_rows  # noqa: E402

device = sys.argv[1] if len(sys.argv) > 1 else "cuda"


def by_formula(gates, rows, tokens, sizes, to_outputs, to_rows):
    """In f64: rows, outputs of each call, and the gradients to gates, router and tokens."""
    leaves = [t.detach().double().requires_grad_() for t in (gates, rows, *tokens)]
    exact_gates, exact_rows, *exact_tokens = leaves
    exact = formula(exact_gates, exact_rows, 3.0)
    expert = torch.repeat_interleave(torch.arange(len(sizes), device=device), torch.tensor(sizes, device=device))
    outputs = [torch.einsum("tfd,td->tf", exact_gates[expert], t) for t in exact_tokens]
    torch.autograd.backward([*outputs, exact], [*(t.double() for t in to_outputs), to_rows.double()])
    return exact, outputs, [t.grad for t in leaves]


def made_case(dtype, row_type, sizes, n, f, d, calls=1, halves=False):
    gates = (torch.randn(n, (2 if halves else 1) * f, d, device=device) * 0.02).to(dtype)[:, :f].detach().requires_grad_()
    rows = torch.randn(n, d, device=device).to(row_type).requires_grad_()
    offsets = torch.tensor(sizes, device=device).cumsum(0).int()
    tokens = [torch.randn(sum(sizes), d, device=device).to(dtype).requires_grad_() for _ in range(calls)]
    to_outputs = [torch.randn(sum(sizes), f, device=device).to(dtype) for _ in range(calls)]
    padding = torch.cat([offsets - 2, offsets - 1]).long()
    for t in to_outputs:
        t[padding] = 0
    return gates, rows, tokens, offsets, to_outputs, (0.1 * torch.randn(n, d, device=device)).to(row_type)


def bound(dtype, row_type):
    both = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}
    if device == "cuda" and dtype == torch.float64:
        return 1e-6  # there the factors are in float32
    return max(both[dtype], both[row_type])


def check_grouped(halves, dtype, row_type, sizes, n, f, d, calls):
    """The router's gradient as two more rows of each expert's weight-gradient product."""
    what = f"{'half of [N, 2F, D]' if halves else '[N, F, D]'} {dtype} {row_type} {sizes} in {calls} calls"
    gates, rows, tokens, offsets, to_outputs, to_rows = made_case(dtype, row_type, sizes, n, f, d, calls, halves)
    before = [t.detach().clone() for t in (*tokens, *to_outputs)]
    made = GroupedGateProjection(gates, rows, radius=3.0)
    outputs = [made.product(t, offsets) for t in tokens]
    torch.autograd.backward([*outputs, made.rows], [*to_outputs, to_rows])
    exact, products, (to_gates, to_router, to_tokens, *_) = by_formula(gates, rows, tokens, sizes, to_outputs, to_rows)
    in_type = bound(dtype, dtype)
    for name, x, reference, most in (("rows", made.rows, exact, bound(dtype, row_type)),
                                     ("to the gates", gates.grad, to_gates, in_type),
                                     ("to the router", rows.grad, to_router, bound(dtype, row_type)),
                                     ("to the tokens", tokens[0].grad, to_tokens, in_type),
                                     ("outputs", outputs[-1], products[-1], in_type)):
        off = distance(x, reference)
        check(off <= most, f"{what}: {name} off by {off:.1e}")
    check(all(torch.equal(a, b) for a, b in zip(before, (*tokens, *to_outputs))), f"{what}: an input has changed")
    alone = [t.detach().clone().requires_grad_() for t in (gates, rows)]  # no product: as by router_rows
    GroupedGateProjection(*alone, radius=3.0).rows.backward(to_rows)
    plain = [t.detach().clone().requires_grad_() for t in (gates, rows)]
    router_rows(*plain, radius=3.0).backward(to_rows)
    check(all(torch.equal(a.grad, b.grad) for a, b in zip(alone, plain)), f"{what}: without a product")


def check_parts_of_a_backward():
    """Whatever of the graph was differentiated before, a backward has its own gradient."""
    sizes = [8, 16, 2, 8]
    gates, rows, (tokens,), offsets, (to_outputs,), to_rows = made_case(torch.float32, torch.float32, sizes, 4, 24, 40)
    _, _, (to_gates, *_) = by_formula(gates, rows, [tokens], sizes, [to_outputs], to_rows)
    made = GroupedGateProjection(gates, rows, radius=3.0)
    loss = (made.product(tokens, offsets) * to_outputs).sum() + (made.rows * to_rows).sum()
    torch.autograd.grad(loss, tokens, retain_graph=True)
    torch.autograd.grad(loss, made.rows, retain_graph=True)
    (of_rows,) = torch.autograd.grad((made.rows * to_rows).sum(), gates, retain_graph=True)
    plain = gates.detach().clone().requires_grad_()
    router_rows(plain, rows.detach(), radius=3.0).backward(to_rows)
    check(torch.equal(of_rows, plain.grad), "the rows alone, after a backward that did not reach them")
    for time in (1, 2):
        (whole,) = torch.autograd.grad(loss, gates, retain_graph=True)
        check(distance(whole, to_gates) < 1e-5, f"the whole, time {time}")
    with torch.no_grad():
        constant = GroupedGateProjection(gates, rows, radius=3.0)
    (of_tokens,) = torch.autograd.grad((constant.product(tokens, offsets) * to_outputs).sum(), gates)
    check(distance(of_tokens + of_rows, to_gates) < 1e-5, "rows without a graph: the weight gradient of the tokens")
    with torch.no_grad():
        check(not GroupedGateProjection(gates, rows).product(tokens, offsets).requires_grad, "no graph at all")
    with torch.autocast(device, dtype=torch.bfloat16):
        (cast,) = torch.autograd.grad(loss, gates, retain_graph=True)
    check(torch.equal(cast, whole), "a backward under autocast")


def check_frozen():
    gates, rows, (tokens,), offsets, (to_outputs,), to_rows = made_case(torch.float32, torch.float32, [8, 16], 2, 24, 40)
    plain = rows.detach().clone().requires_grad_()
    router_rows(gates.detach(), plain, radius=3.0).backward(to_rows)
    for frozen, leaf in ((gates, rows), (rows, gates)):
        frozen.requires_grad_(False)
        gates.grad = rows.grad = None
        made = GroupedGateProjection(gates, rows, radius=3.0)
        torch.autograd.backward([made.product(tokens, offsets), made.rows], [to_outputs, to_rows])
        check(frozen.grad is None and leaf.grad is not None, "a gradient to what is frozen")
        if leaf is rows:
            check(torch.equal(rows.grad, plain.grad), "the router's gradient beside frozen gates")
        frozen.requires_grad_(True)


def check_edges():
    case = made_case(torch.float32, torch.float32, [8, 16, 8], 3, 40, 40)
    gates, rows, (tokens,), offsets, (to_outputs,), to_rows = case
    with torch.no_grad():
        rows[1, 3], rows[2] = float("nan"), 0
    made = GroupedGateProjection(gates, rows, radius=3.0)
    check(made.statuses.tolist() == [0, 3, 1], f"statuses {made.statuses.tolist()}")
    torch.autograd.backward([made.product(tokens, offsets), made.rows], [to_outputs, to_rows])
    check(gates.grad.isfinite().all() and rows.grad[1:].count_nonzero() == 0, "rows without a step have no gradient")
    own = torch.stack([a.t() @ b for a, b in zip(to_outputs[8:].split([16, 8]), tokens.detach()[8:].split([16, 8]))])
    check(distance(gates.grad[1:], own.double()) < 1e-5, "experts of rows without a step have the gradient of their tokens")
    apart = [t.detach().nan_to_num(1).requires_grad_() for t in (gates, rows)]
    strided = [t.detach().clone().requires_grad_() for t in apart]
    for leaves, ends in ((apart, offsets), (strided, offsets.repeat_interleave(2)[::2])):
        made = GroupedGateProjection(*leaves, radius=3.0)
        torch.autograd.backward([made.product(tokens.detach(), ends), made.rows], [to_outputs, to_rows])
    check(torch.equal(apart[0].grad, strided[0].grad), "offsets that lie apart")
    # The gradient to the outputs is the tokens themselves, and one that is expanded.
    for to in (tokens.detach(), torch.ones((), device=device).expand(32, 40)):
        fresh = [t.detach().nan_to_num(1).requires_grad_() for t in (gates, rows)]
        made = GroupedGateProjection(*fresh, radius=3.0)
        x = tokens.detach()
        torch.autograd.backward([made.product(x, offsets), made.rows], [to, to_rows])
        other = [t.detach().clone().requires_grad_() for t in fresh]
        made = GroupedGateProjection(*other, radius=3.0)
        torch.autograd.backward([made.product(x.clone(), offsets), made.rows], [to.clone(), to_rows])
        check(torch.equal(fresh[0].grad, other[0].grad), "a gradient that shares memory")
    for empty in ((0, 4, 8), (3, 0, 8)):
        g, r = (torch.ones(s, device=device, requires_grad=True) for s in (empty, (empty[0], 8)))
        made = GroupedGateProjection(g, r)
        ends = 2 * torch.arange(1, empty[0] + 1, device=device).int()
        out = made.product(torch.ones(2 * empty[0], 8, device=device), ends)
        (out.sum() + made.rows.sum()).backward()
        check(g.grad.shape == empty and r.grad.count_nonzero() == 0, f"experts {empty}")


def check_refusals():
    gates, rows, (tokens,), offsets, *_ = made_case(torch.bfloat16, torch.bfloat16, [8, 8, 8], 3, 8, 16)
    made = GroupedGateProjection(gates, rows)
    ends = lambda *e: torch.tensor(e, device=device).int()
    calls = {
        "a list": lambda: GroupedGateProjection(list(gates), rows),
        "float16": lambda: GroupedGateProjection(gates.half(), rows.half()),
        "a router of two": lambda: GroupedGateProjection(gates, rows[:2]),
        "tokens of 8": lambda: made.product(tokens[:, :8], offsets),
        "tokens of another type": lambda: made.product(tokens.float(), offsets),
        "expanded tokens": lambda: made.product(tokens[:1].expand(24, 16), offsets),
        "rows that share memory": lambda: made.product(torch.zeros(400, device=device).bfloat16().as_strided((24, 16), (8, 1)), offsets),
        "offsets of 64 bits": lambda: made.product(tokens, offsets.long()),
        "two offsets": lambda: made.product(tokens, offsets[:2]),
    }
    wrong = [ends(8, 9, 24), ends(8, 16, 23), ends(8, 16, 26)]
    if device == "cpu":
        calls.update({f"offsets {e.tolist()}": lambda e=e: made.product(tokens, e) for e in wrong})
    else:  # no room, or rows behind the last: every gradient is NaN
        for e in wrong:
            # PyTorch's grouped product, of bfloat16, is given no offset beyond its operands
            of, at = (gates, tokens) if int(e[-1]) <= 24 else (gates.detach().float().requires_grad_(), tokens.float())
            narrow = GroupedGateProjection(of, rows)
            (to_gates,) = torch.autograd.grad(narrow.product(at, e).sum() + narrow.rows.sum(), of)
            check(to_gates.isnan().all(), f"offsets {e.tolist()}: not all NaN")
    for what, call in calls.items():
        try:
            call()
            check(False, f"{what} was not refused")
        except ValueError as e:
            check(str(e).startswith(("GroupedGateProjection: ", "router_rows: ")), f"{what}: {e}")


torch.manual_seed(1)
for dtype, row_type in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16),
                        (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16)):
    for halves in (False, True):
        for calls in (1, 3):
            check_grouped(halves, dtype, row_type, [8, 16, 2, 8, 32], 5, 24, 40, calls)
    check_grouped(False, dtype, row_type, [8] * 7 + [3], 8, 64, 128, 1)
check_parts_of_a_backward()
check_frozen()
check_edges()
check_refusals()

finish(f"GroupedGateProjection on {device}")
