"""The kernels for GPUs through libmpi_router_torch.so, which nvcc makes from examples/torch_router, for where mpi_router::c
was built without CUDA (docs/guide-pytorch.md).

Gates and router in bfloat16 or float32. Runs on the current stream, allocates by PyTorch, in CUDA graphs too.
"""

import ctypes
import os
import pathlib
from ctypes import c_double, c_int, c_int64, c_void_p

import torch

from .devices import shape_of

_NAME = "libmpi_router_torch.so"
_triple = c_int64 * 3


class _Tensor(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("size", _triple), ("stride", _triple), ("type", c_int)]


def _load(why):
    here = pathlib.Path(__file__).resolve().parent
    built = [here / _NAME, here.parents[1] / "examples" / "torch_router" / _NAME]
    given = os.environ.get("MPI_ROUTER_LIBRARY")
    for path in [given] if given else [str(path) for path in built if path.exists()]:
        return ctypes.CDLL(path)
    raise ImportError(f"mpi_router_torch: tensors on a GPU, and neither mpi_router::c with CUDA ({why}) nor {_NAME} "
                      f"({', '.join(map(str, built))}): docs/guide-pytorch.md builds one")


class CudaLibrary:
    """One step in bfloat16 and float32; experts in a list are stacked first, which copies them."""

    types = (torch.float32, torch.bfloat16)

    def __init__(self, why):
        self._lib = _load(why)
        self._lib.mpi_router_error.restype = ctypes.c_char_p
        self._lib.mpi_router_context.restype = c_void_p
        self._lib.mpi_router_workspace.restype = c_int64
        self._contexts = {}

    def tape_bytes(self, gates, options):
        n, _, d = shape_of(gates)
        return self._direction_bytes(n, d) + 8 * n  # of each row the direction of its image in float, |rM| in double

    def forward(self, gates, router, options, rows, tape, statuses):
        gates = self._stacked(gates)
        self._call(self._lib.mpi_router_forward, gates, None, False, self._describe(router), self._describe(rows),
                   c_double(options.radius), *self._saved(gates, tape, statuses))

    def backward(self, gates, router, options, statuses, tape, grad_rows, grad_router, grad_gates, add):
        listed = grad_gates is not None and grad_gates[0].dim() == 2
        gates = self._stacked(gates)
        target = None if grad_gates is None else torch.stack(grad_gates) if listed else grad_gates[0]
        self._call(self._lib.mpi_router_backward, gates, target, add, self._describe(router), self._describe(grad_rows),
                   self._describe(grad_router), self._describe(target), c_int(add), c_double(options.radius),
                   *self._saved(gates, tape, statuses))
        if listed and target is not None:
            for mine, made in zip(grad_gates, target):
                mine.copy_(made)

    @staticmethod
    def _stacked(gates):
        return gates[0] if gates[0].dim() == 3 else torch.stack(gates)

    @staticmethod
    def _saved(gates, tape, statuses):
        norms = tape.data_ptr() + CudaLibrary._direction_bytes(gates.shape[0], gates.shape[2])
        return c_void_p(tape.data_ptr()), c_void_p(norms), c_void_p(statuses.data_ptr())

    @staticmethod
    def _direction_bytes(n, d):
        return (4 * n * d + 7) // 8 * 8

    @staticmethod
    def _describe(t):
        if t is None:
            return None
        kind = {torch.bfloat16: 0, torch.float32: 1}[t.dtype]
        return ctypes.byref(_Tensor(t.data_ptr(), _triple(*t.shape), _triple(*t.stride()), kind))

    def _call(self, function, gates, grad_gates, add, *arguments):
        """function(context, stream, gates, *arguments, workspace, bytes) on the device of the gates."""
        with torch.cuda.device(gates.device):
            context, described = self._context(gates.device), self._describe(gates)
            size = self._lib.mpi_router_workspace(context, described, self._describe(grad_gates), c_int(add))
            workspace = torch.empty(size, dtype=torch.uint8, device=gates.device)
            stream = c_void_p(torch.cuda.current_stream().cuda_stream)
            if function(context, stream, described, *arguments, c_void_p(workspace.data_ptr()), c_int64(size)) != 0:
                raise RuntimeError(self._lib.mpi_router_error().decode())

    def _context(self, device):
        context = self._contexts.get(device.index)
        if context is None:
            context = c_void_p(self._lib.mpi_router_context())
            if not context:
                raise RuntimeError(self._lib.mpi_router_error().decode())
            self._contexts[device.index] = context
        return context
