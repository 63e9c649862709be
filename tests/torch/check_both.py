"""check_both.py LIBRARY package|operators: both ways into PyTorch in one process, the one that is named loaded first: the
package mpi_router_torch over ctypes, and the operators of libmpi_router_torch. The same rows and gradients, bit for bit, also
where one graph has both, and each refuses in its own way. Exit status 77: there is no PyTorch, or NumPy."""

import importlib
import sys
from pathlib import Path

try:
    import numpy  # noqa: F401
    import torch
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
loads = [lambda: torch.ops.load_library(sys.argv[1]), lambda: importlib.import_module("mpi_router_torch")]
if sys.argv[2] == "package":
    loads.reverse()
for load in loads:
    load()
package = importlib.import_module("mpi_router_torch")
operators = torch.ops.mpi_router


def with_gradients(apply, gates, router, upstream):
    gates, router = gates.clone().requires_grad_(), router.clone().requires_grad_()
    rows, statuses = apply(gates, router)
    rows.backward(upstream)
    return rows.detach(), statuses, gates.grad, router.grad


torch.manual_seed(1)
checks = 0
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    gates, router, upstream = (torch.randn(shape, dtype=torch.float64).to(dtype) for shape in ((5, 24, 40), (5, 40), (5, 40)))
    router[2] = 0  # a row without a step
    mine = with_gradients(lambda g, r: package.router_rows(g, r, statuses=True), gates, router, upstream)
    theirs = with_gradients(operators.router_rows, gates, router, upstream)
    for name, a, b in zip(("rows", "statuses", "gradient to the gates", "gradient to the router"), mine, theirs):
        assert torch.equal(a, b), f"{dtype}: {name} of the package and of the operators differ"
        checks += 1
    assert mine[1].tolist() == [0, 0, 1, 0, 0]

# One after the other in one graph: two steps.
gates, router = torch.randn(3, 8, 16, dtype=torch.float64), torch.randn(3, 16, dtype=torch.float64)
assert torch.autograd.gradcheck(lambda g, r: operators.router_rows(g, package.router_rows(g, r))[0],
                                (gates.requires_grad_(), router.requires_grad_()))

for refuse, kind in ((package.router_rows, ValueError), (operators.router_rows, RuntimeError)):
    try:
        refuse(gates, router[:, 1:])
    except kind as error:
        assert "3, 15" in str(error), error
    else:
        raise AssertionError(f"{refuse} takes a router of another width")
print(f"PyTorch {torch.__version__}, {sys.argv[2]} first: {checks} results are the same")
