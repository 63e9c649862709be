"""What mpi_router_torch asks of mpi_router.Cuda, on a machine without a GPU: a Cuda whose calls go to the host takes the
arguments that tensors on a GPU would bring, and all of test_rows.py must hold. Exit status 77: there is no PyTorch."""

import contextlib
import ctypes
import runpy
import sys
import types
from pathlib import Path

try:
    import torch
except ImportError:
    print("skipped: python3 has no torch")
    sys.exit(77)

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parents[1] / "python"))
import mpi_router as m  # noqa: E402
from mpi_router_torch import devices, rows  # noqa: E402

host = devices.HostLibrary()
asked = dict(forwards=0, backwards=0, lists=0)


class Cuda:
    """The calls of mpi_router.Cuda, with their names, on host memory."""

    def __init__(self):
        self.most = 0

    def router_rows_workspace(self, experts, options=None):
        return 64

    def router_rows_vjp_workspace(self, experts, grad_experts=None, accumulate=False):
        return 96 if grad_experts is not None else 32

    def expert_pointers(self, table, first, count):
        asked["lists"] += 1
        assert table.dtype == torch.int64 and table.shape == (count,) and first.dim() == 2
        return m._keeping(m._Experts(None, table.data_ptr(), host._codes[first.dtype], 0, (ctypes.c_int64 * 3)(count, *first.shape),
                                     (ctypes.c_int64 * 3)(0, *first.stride())), table)

    def router_rows(self, experts, router, out, workspace, stream=0, *, tape=None, options=None, inputs_at_rest=False, **told):
        asked["forwards"] += 1
        assert stream == 7 and workspace.numel() == 64 and options.steps == 1 and not inputs_at_rest and list(told) == ["statuses"]
        m._call("rows", self._experts(experts), host._matrix(router), options, host._matrix(out),
                m._ByProducts(statuses=told["statuses"].data_ptr()), host._buffer(tape), None)

    def router_rows_vjp(self, experts, router, tape, grad_rows, workspace, stream=0, *, grad_router=None, grad_experts=None,
                        factors=None, accumulate=False, options=None):
        asked["backwards"] += 1
        assert stream == 7 and workspace.numel() == (96 if grad_experts is not None else 32) and options.steps == 1
        common = (self._experts(experts), host._matrix(router), options, host._buffer(tape), host._matrix(grad_rows),
                  host._matrix(grad_router))
        if grad_experts is None:
            m._call("rows_vjp_detached", *common, ctypes.c_int32(0), None)
        else:
            m._call("rows_vjp", *common, self._experts(grad_experts), ctypes.c_int32(int(accumulate)), None)

    @staticmethod
    def _experts(experts):
        return experts if isinstance(experts, m._Experts) else host._experts([experts])


m.Cuda = Cuda
torch.cuda.device = lambda _: contextlib.nullcontext()
torch.cuda.current_stream = lambda: types.SimpleNamespace(cuda_stream=7)
devices.GpuLibrary.device = 0  # of the tape's size
devices._found["cpu"] = gpu = devices.GpuLibrary(torch.device("cpu"))
whole = rows._rows
rows._rows = lambda w, r, b, o: rows._one_by_one(w, r, b, o) if o.steps > 1 else whole(w, r, b, o)
runpy.run_path(str(here / "test_rows.py"))
assert asked["forwards"] > 400 and asked["backwards"] > 300 and asked["lists"] > 200, asked
assert 0 < len(gpu._tables) <= gpu.KEPT

# The tables of addresses: one for as long as the experts lie where they lie, and not without end.
weights = [torch.randn(3, 4) for _ in range(2)]
gpu._tables.clear()
gpu.KEPT = 20
for _ in range(3):
    rows.router_rows(weights, torch.randn(2, 4))
assert len(gpu._tables) == 1
kept = [[torch.randn(3, 4) for _ in range(2)] for _ in range(gpu.KEPT + 10)]
for experts in kept:
    rows.router_rows(experts, torch.randn(2, 4))
assert len(gpu._tables) == gpu.KEPT
print("mpi_router_torch: the calls on GPUs, by a host in their place")
