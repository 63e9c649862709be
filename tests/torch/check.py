"""mpi_router::torch in Python: torch.ops.mpi_router beside the formula under PyTorch's autograd, in eager mode, in TorchScript
and, where PyTorch has it, under torch.compile; on the host and, where there are GPUs and it was built for them, there.

    python3 check.py LIBRARY [cpu] [cuda]

LIBRARY is libmpi_router_torch.so; the devices, by default cpu, must be there. Exit status 77: there is no PyTorch."""
import io
import math
import pathlib
import sys

try:
    import torch
except ImportError:
    print("skipped: python3 has no torch")
    sys.exit(77)

torch.ops.load_library(sys.argv[1])
from torch.autograd import forward_ad  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples" / "torch_router"))
from checks import check, distance, finish  # noqa: E402

ops = torch.ops.mpi_router
VERSION = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def refused(text, call):
    try:
        call()
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        check(text in str(error), f"{error} does not say {text!r}")
        return
    check(False, f"nothing refused: {text}")


def formula(experts, router, length, steps=1):
    rows = router
    for _ in range(steps):
        image = torch.einsum("nfd,nf->nd", experts, torch.einsum("nfd,nd->nf", experts, rows))
        rows = length * torch.nn.functional.normalize(image, dim=-1)
    return rows


BOUND = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
LAYOUTS = {
    "[N, F, D]": lambda n, f, d: torch.randn(n, f, d, dtype=torch.float64),
    "[N, D, F]": lambda n, f, d: torch.randn(n, d, f, dtype=torch.float64).transpose(1, 2),
    "half of [N, 2F, D]": lambda n, f, d: torch.randn(n, 2 * f, d, dtype=torch.float64)[:, f:],
    "every other row of [N, 2F, D]": lambda n, f, d: torch.randn(n, 2 * f, d, dtype=torch.float64)[:, ::2],
    "one column more": lambda n, f, d: torch.randn(n, f, d + 1, dtype=torch.float64)[:, :, 1:],
}


def like(view, dtype, device):
    """The same numbers, rounded, with the same strides; a leaf."""
    out = torch.empty_strided(view.shape, view.stride(), dtype=dtype, device=device)
    return out.copy_(view.to(dtype)).requires_grad_()


def check_step(device, layout, shape, experts_type, router_type, apply=None):
    what = f"{device} {layout} {shape} {experts_type} {router_type}"
    n, f, d = shape
    experts = like(LAYOUTS[layout](n, f, d), experts_type, device)
    router = torch.randn(n, d, device=device).to(router_type).requires_grad_()
    incoming = torch.randn(n, d, device=device).to(router_type)
    rows, statuses = (apply or ops.router_rows)(experts, router)
    rows.backward(incoming)
    exact_experts, exact_router = (t.detach().double().requires_grad_() for t in (experts, router))
    exact = formula(exact_experts, exact_router, 4 / math.sqrt(n))
    exact.backward(incoming.double())
    check(statuses.count_nonzero() == 0 and rows.device == router.device, what)
    bound = max(BOUND[experts_type], BOUND[router_type])
    for name, x, reference, dtype in (("rows", rows, exact, router_type), ("to the router", router.grad, exact_router.grad, router_type),
                                      ("to the experts", experts.grad, exact_experts.grad, experts_type)):
        off = distance(x, reference)
        check(x.dtype == dtype and off < 20 * bound, f"{what}: {name} off by {off:.1e}")


def check_edges(device):
    experts, router = torch.randn(5, 4, 16, device=device), torch.randn(5, 16, device=device)
    experts[1] = 0
    router[2] = 0
    router[3, 4] = float("nan")
    experts.requires_grad_(), router.requires_grad_()
    rows, statuses = ops.router_rows(experts, router)
    check(statuses.tolist() == [0, 2, 1, 3, 0], f"{device}: statuses {statuses.tolist()}")
    check(torch.allclose(rows, formula(experts, router, 4 / math.sqrt(5)), atol=1e-5, equal_nan=True), f"{device}: degenerate rows")
    rows.sum().backward()
    for t in (experts.grad, router.grad):
        check(t.isfinite().all() and [bool(t[e].count_nonzero() > 0) for e in range(5)] == [True, False, False, False, True],
              f"{device}: gradients of degenerate rows")
    for n, f in ((0, 4), (3, 0)):
        e, r = torch.ones(n, f, 8, device=device, requires_grad=True), torch.ones(n, 8, device=device, requires_grad=True)
        ops.router_rows(e, r)[0].sum().backward()
        check(e.grad.shape == e.shape and r.grad.count_nonzero() == 0, f"{device}: experts {n} x {f}")
    fused = torch.randn(3, 10, 16, device=device, requires_grad=True)
    router = torch.randn(3, 16, device=device)
    ops.router_rows(fused[:, :5], router)[0].square().sum().backward()
    check(fused.grad[:, 5:].count_nonzero() == 0, f"{device}: the other half of a fused parameter")
    refused("router is Float [3, 15]", lambda: ops.router_rows(fused, router[:, 1:]))
    refused("experts is Long [3, 5, 16]", lambda: ops.router_rows(torch.ones(3, 5, 16, dtype=torch.long, device=device), router))
    refused('through is "some", which is none of all, last, none', lambda: ops.router_rows(fused, router, through="some"))
    refused("radius", lambda: ops.router_rows(fused, router, radius=-1.0))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(fused.detach(), torch.ones_like(fused))
        refused("there is no forward-mode derivative", lambda: ops.router_rows(dual, router))
        logits = forward_ad.make_dual(torch.randn(4, 3, device=device), torch.ones(4, 3, device=device))
        refused("there is no forward-mode derivative", lambda: ops.gate(logits, 2))


def check_accumulate(device):
    experts = torch.randn(4, 24, 64, device=device).bfloat16().requires_grad_()
    router = torch.randn(4, 64, device=device, requires_grad=True)
    incoming = torch.randn(4, 64, device=device)
    ops.router_rows(experts, router)[0].backward(incoming)
    with torch.no_grad():
        _, _, tape = ops.router_rows_with_tape(experts, router)
        before = torch.randn(4, 24, 64, device=device)
        sums = before.clone()
        to_router = ops.router_rows_vjp_accumulate(experts, router, tape, incoming, sums)
    check(distance(to_router, router.grad.double()) < 1e-6, f"{device}: gradient to the router beside an accumulated one")
    check(distance(sums - before, experts.grad.double()) < 6e-3, f"{device}: accumulated gradient")


def check_gate(device):
    logits = torch.randn(300, 64, device=device)
    mask = torch.rand(300, device=device) > 0.1
    weights, experts, statuses = ops.gate(logits, 4, mask=mask)
    best, ids = logits.softmax(1).topk(4)
    check(torch.equal(experts[mask], ids[mask]) and (experts[~mask] == -1).all(), f"{device}: experts of a gate")
    check(torch.allclose(weights[mask], (best / best.sum(1, keepdim=True))[mask], atol=1e-6), f"{device}: weights of a gate")
    check(((statuses == 4) == ~mask).all(), f"{device}: statuses of a gate")
    if device == "cuda":
        refused("requires a gradient", lambda: ops.gate(logits.requires_grad_(), 4))


def step(experts: torch.Tensor, router: torch.Tensor, steps: int = 1):
    return torch.ops.mpi_router.router_rows(experts, router, steps=steps)


def check_script(device):
    scripted = torch.jit.script(step)
    check("mpi_router::router_rows" in str(scripted.graph), "TorchScript calls the operator")
    saved = io.BytesIO()
    torch.jit.save(scripted, saved)
    saved.seek(0)
    loaded = torch.jit.load(saved)
    check_step(device, "[N, F, D]", (3, 50, 77), torch.float32, torch.float32, lambda e, r: loaded(e, r, 1))


def check_host():
    experts, router = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 5, 4), (2, 4)))
    for options in ({}, {"steps": 3}, {"radius": 2.0, "radius_rule": "fixed"}):
        check(torch.autograd.gradcheck(lambda e, r: ops.router_rows(e, r, **options)[0], (experts, router)), f"gradcheck {options}")
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    check(torch.autograd.gradcheck(lambda l: ops.gate(l, 2)[0], (logits,)), "gradcheck of the gate")
    meta = ops.router_rows(experts.to("meta"), router.to("meta"))[0]
    check(meta.is_meta and meta.shape == router.shape, "Meta")


def check_version_2(device):
    for layout in LAYOUTS:
        torch._dynamo.reset()  # of one function it keeps eight graphs
        # inductor decides the strides that operators are given; the others' graphs are made in less time.
        backend = "inductor" if layout in ("[N, F, D]", "every other row of [N, 2F, D]") else "aot_eager"
        compiled = torch.compile(step, fullgraph=True, backend=backend)
        check_step(device, layout, (8, 96, 256), torch.bfloat16, torch.bfloat16, compiled)
    check_step(device, "[N, F, D]", (3, 50, 77), torch.float32, torch.float32, torch.compile(step, fullgraph=True, dynamic=True))
    experts, router = torch.randn(3, 8, 16, device=device, requires_grad=True), torch.randn(3, 16, device=device, requires_grad=True)
    if hasattr(torch.library, "opcheck"):
        tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
        torch.library.opcheck(ops.router_rows.default, (experts, router), test_utils=tests)
        torch.library.opcheck(ops.gate.default, (torch.randn(9, 6, device=device), 2), test_utils=tests)
        check(True, "opcheck")
    gate = torch.compile(lambda l: ops.gate(l, 2)[0] * 1.0, fullgraph=True)
    for tokens in (9, 11, 300):  # the second makes their number a symbol
        logits = torch.randn(tokens, 6, device=device)
        check(torch.equal(gate(logits), ops.gate(logits, 2)[0]), f"{device}: compiled gate of {tokens} tokens")


def check_cuda():
    gates = torch.randn(8, 96, 256, device="cuda").bfloat16().requires_grad_()
    router = torch.randn(8, 256, device="cuda").requires_grad_()
    rows = ops.router_rows(gates, router)[0]
    grads = torch.autograd.grad(rows.sum(), (gates, router))
    side, late = torch.cuda.Stream(), torch.full_like(router, float("nan"))
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        torch.cuda._sleep(10_000_000)
        late.copy_(router)
        check(torch.equal(ops.router_rows(gates, late)[0], rows), "another stream")
    torch.cuda.current_stream().wait_stream(side)
    # Leaves of their own: autograd ties those above to the stream of their first use, which is not captured.
    graph, leaves = torch.cuda.CUDAGraph(), [t.detach().requires_grad_() for t in (gates, router)]
    with torch.cuda.graph(graph):
        replayed = ops.router_rows(*leaves)[0]
        replayed_grads = torch.autograd.grad(replayed.sum(), leaves)
    graph.replay()
    check(torch.equal(replayed, rows) and all(torch.equal(a, b) for a, b in zip(replayed_grads, grads)), "a graph's replay")
    host = ops.router_rows(gates.detach().cpu(), router.detach().cpu())[0]
    check(distance(rows, host.double().cuda()) < 1e-5, "host and GPU")
    refused("and not on", lambda: ops.router_rows(gates, router.cpu()))
    if torch.cuda.device_count() > 1:
        there = [t.detach().to("cuda:1") for t in (gates, router)]
        check(torch.equal(ops.router_rows(*there)[0].cpu(), rows.cpu()), "the second GPU")


torch.manual_seed(1)
devices = sys.argv[2:] or ["cpu"]
for device in devices:
    for layout in LAYOUTS:
        for experts_type, router_types in ((torch.bfloat16, (torch.bfloat16, torch.float32)), (torch.float16, (torch.float16,)),
                                           (torch.float32, (torch.float32,)), (torch.float64, (torch.float64,))):
            for router_type in router_types:
                for shape in ((8, 96, 256), (3, 50, 77)):
                    check_step(device, layout, shape, experts_type, router_type)
    check_edges(device)
    check_accumulate(device)
    check_gate(device)
    check_script(device)
    if VERSION >= (2, 4):
        check_version_2(device)
    else:
        print("torch.compile: not checked, PyTorch is older than 2.4", flush=True)
if "cpu" in devices:
    check_host()
if "cuda" in devices:
    check_cuda()
finish(f"mpi_router::torch on {' and '.join(devices)}")
