"""Who multiplies: the library for each kind of device, all behind the same calls.

    tape_bytes(gates, options)
    forward(gates, router, options, rows, tape, statuses)
    backward(gates, router, options, statuses, tape, grad_rows, grad_router, grad_gates, add)
    backward_factored(gates, router, options, statuses, tape, grad_rows, grad_router)
    with_factors(grad, tokens, offsets, factors)

backward_factored returns the factors of one step, Ā = p zᵀ + w rᵀ the gradient to the gates, in a form of the library's
own; within with_factors they are the last two rows of each expert in the operands [T, F] and [T, D] of its weight gradient. gates is a list: of one
tensor [N, F, D], or of N tensors [F, D]; so is grad_gates, or it is None. The tape means something to the library alone.
All memory is the caller's, and grad_router is zero when it comes, unless `writes_router`.
"""

import contextlib
import ctypes
import functools
import threading
from typing import List, NamedTuple, Tuple

import torch
from torch import Tensor

ALONE = 1 << 18  # weights up to which one thread is quicker than several


class Options(NamedTuple):
    """radius: C, the length of the rows; steps: power steps; through: of those, whose A is differentiated."""

    radius: float
    steps: int
    through: str


def shape_of(gates: List[Tensor]) -> Tuple[int, int, int]:
    """N, F, D; for what has other axes zeros, which no router fits."""
    shape = tuple(getattr(gates[0], "shape", ()))
    return shape if len(shape) == 3 else (len(gates), *shape) if len(shape) == 2 else (0, 0, 0)


class _CStructs:
    """mpi_router::c, through the structs of mpi_router.py."""

    types = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    device = 0  # MPIROUTER_HOST
    writes_router = False  # it may add to grad_router

    def __init__(self):
        import mpi_router  # here: it loads the library

        self._m = mpi_router
        self._codes = {torch.float64: 1, torch.float32: 2, torch.bfloat16: 3, torch.float16: 4}
        self._options = functools.lru_cache(self._options)
        self._tape_bytes = functools.lru_cache(self._tape_bytes)

    def tape_bytes(self, gates: List[Tensor], options: Options) -> int:
        return self._tape_bytes(*map(int, shape_of(gates)), gates[0].dtype, options)

    def _tape_bytes(self, n, f, d, dtype, options):
        size, anywhere = ctypes.c_int64(), 64  # torch.compile asks with tensors that have no memory; none is read
        experts = self._m._Experts(anywhere, None, self._codes[dtype], self.device, (ctypes.c_int64 * 3)(n, f, d),
                                   (ctypes.c_int64 * 3)(f * d, d, 1))
        self._m._call("tape_size", experts, self._options(options), ctypes.byref(size))
        return size.value

    def _options(self, o):
        return self._m.step_options(radius=o.radius, radius_rule="fixed", degenerate="zero", steps=o.steps,
                                    through=o.through)


class HostLibrary(_CStructs):
    """Tensors on the CPU, over PyTorch's number of threads."""

    def forward(self, gates, router, options, rows, tape, statuses):
        told = self._m._ByProducts(statuses=statuses.data_ptr())
        self._m._call("rows", self._experts(gates), self._matrix(router), self._options(options), self._matrix(rows), told,
                      self._buffer(tape), self._threads(gates))

    def backward(self, gates, router, options, statuses, tape, grad_rows, grad_router, grad_gates, add):
        common = (self._experts(gates), self._matrix(router), self._options(options), self._buffer(tape),
                  self._matrix(grad_rows), self._matrix(grad_router))
        mode = ctypes.c_int32(int(add))
        if grad_gates is None:
            self._m._call("rows_vjp_detached", *common, mode, self._threads(gates))
        else:
            self._m._call("rows_vjp", *common, self._experts(grad_gates), mode, self._threads(gates))

    def backward_factored(self, gates, router, options, statuses, tape, grad_rows, grad_router):
        n, f, d = shape_of(gates)
        sums = torch.float64 if gates[0].dtype == torch.float64 else torch.float32
        factors = torch.empty(n, 2 * (f + d), dtype=sums)
        self._m._call("rows_vjp_factored", self._experts(gates), self._matrix(router), self._options(options),
                      self._buffer(tape), self._matrix(grad_rows), self._matrix(grad_router), self._buffer(factors),
                      ctypes.c_int32(0), self._threads(gates))
        p, z, w, r = factors.split((f, d, f, d), dim=1)
        return p, w, z, r

    @contextlib.contextmanager
    def with_factors(self, grad, tokens, offsets, factors):
        p, w, z, r = factors
        last = offsets.long().unsqueeze(1)
        places = torch.cat([last - 2, last - 1], 1).flatten()
        # A row without a step has w = 0, and may be what it is for not being finite.
        right = torch.nan_to_num(r, 0, 0, 0)
        sides = ((grad.data, (p, w)), (tokens.data, (z, right)))  # autograd, which could only object, is not told
        own = [matrix.index_select(0, places) for matrix, _ in sides]
        try:
            for matrix, rows in sides:
                matrix.index_copy_(0, places, torch.stack([x.to(matrix.dtype) for x in rows], 1).flatten(0, 1))
            yield
        finally:
            for (matrix, _), rows in zip(sides, own):
                matrix.index_copy_(0, places, rows)

    def _experts(self, gates):
        first, m = gates[0], self._m
        stacked = first.dim() == 3
        table = None if stacked else (ctypes.c_void_p * len(gates))(*[g.data_ptr() for g in gates])
        strides = first.stride() if stacked else (0, *first.stride())
        struct = m._Experts(first.data_ptr() if stacked else None, None if stacked else ctypes.cast(table, ctypes.c_void_p),
                            self._codes[first.dtype], 0, (ctypes.c_int64 * 3)(*shape_of(gates)),
                            (ctypes.c_int64 * 3)(*strides))
        return m._keeping(struct, table, gates)

    def _matrix(self, t):
        return self._m._keeping(self._m._Matrix(t.data_ptr(), self._codes[t.dtype], 0, (ctypes.c_int64 * 2)(*t.shape),
                                                (ctypes.c_int64 * 2)(*t.stride())), t)

    def _buffer(self, tape):
        return self._m._Buffer(tape.data_ptr(), tape.numel() * tape.element_size())

    def _threads(self, gates):
        n, f, d = shape_of(gates)
        return self._m._threads(torch.get_num_threads() if n * f * d > ALONE else 1)


class GpuLibrary(_CStructs):
    """Tensors on GPUs, on the current stream: mpi_router.Cuda. Of experts in a list the addresses are copied to the GPU once
    for as long as they stay the same."""

    device = 1  # MPIROUTER_CUDA
    writes_router = True
    KEPT = 4096  # tables of addresses, of layers and of their main_grads

    def __init__(self, device: torch.device):
        super().__init__()
        self._gpus, self._tables, self._captured, self._lock = {}, {}, {}, threading.Lock()
        self._gpu(device)  # raises where the library was built without CUDA

    def forward(self, gates, router, options, rows, tape, statuses):
        with torch.cuda.device(router.device):
            gpu, experts, o = self._gpu(router.device), self._experts(gates), self._options(options)
            gpu.router_rows(experts, router, rows, self._scratch(gpu.router_rows_workspace(experts, o), router),
                            torch.cuda.current_stream().cuda_stream, tape=tape, options=o, statuses=statuses)

    def backward(self, gates, router, options, statuses, tape, grad_rows, grad_router, grad_gates, add):
        with torch.cuda.device(router.device):
            gpu, experts, o = self._gpu(router.device), self._experts(gates), self._options(options)
            to_gates = None if grad_gates is None else self._experts(grad_gates)
            size = gpu.router_rows_vjp_workspace(experts, to_gates, add)
            gpu.router_rows_vjp(experts, router, tape, grad_rows, self._scratch(size, router),
                                torch.cuda.current_stream().cuda_stream, grad_router=grad_router, grad_experts=to_gates,
                                accumulate=add, options=o)

    def backward_factored(self, gates, router, options, statuses, tape, grad_rows, grad_router):
        with torch.cuda.device(router.device):
            n, f, d = shape_of(gates)
            gpu, experts, o = self._gpu(router.device), self._experts(gates), self._options(options)
            factors = torch.empty(n * (2 * f + d), dtype=torch.float32, device=router.device)
            gpu.router_rows_vjp(experts, router, tape, grad_rows, self._scratch(gpu.router_rows_vjp_workspace(experts), router),
                                torch.cuda.current_stream().cuda_stream, grad_router=grad_router, factors=factors, options=o)
        return factors, router

    @contextlib.contextmanager
    def with_factors(self, grad, tokens, offsets, factors):
        factors, router = factors
        grad, tokens = grad.detach(), tokens.detach()  # autograd, which could only object, is not told
        size = 2 * len(offsets) * (grad.shape[1] + tokens.shape[1]) * tokens.element_size()
        with torch.cuda.device(router.device):
            gpu, stream = self._gpu(router.device), torch.cuda.current_stream().cuda_stream
            kept = self._scratch(size, router)
            gpu.put_factors(grad, tokens, offsets, router, factors, kept, stream)
            try:
                yield
            finally:
                gpu.restore_padding(grad, tokens, offsets, kept, stream)

    def _gpu(self, device):
        if device not in self._gpus:
            with torch.cuda.device(device):
                self._gpus[device] = self._m.Cuda()
        return self._gpus[device]

    def _experts(self, gates):
        if gates[0].dim() == 3:
            return gates[0]
        addresses = (gates[0].device, *[gate.data_ptr() for gate in gates])
        with self._lock:  # the backward may run on a thread of autograd's
            table = self._tables.pop(addresses, None)
            if table is None:
                table = torch.tensor(addresses[1:], dtype=torch.int64, device=gates[0].device)
            self._tables[addresses] = table  # the last used is the last
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                self._captured[addresses] = table  # a graph reads it whenever it is replayed
            if len(self._tables) > self.KEPT:
                self._tables.pop(next(iter(self._tables)))
        return self._gpu(gates[0].device).expert_pointers(table, gates[0], len(gates))

    @staticmethod
    def _scratch(size, router):
        return torch.empty(size, dtype=torch.uint8, device=router.device)


_found = {}


def library_for(device: torch.device):
    """The library whose calls take memory of this device. Raises ValueError where there is none, also where it was built
    without CUDA, and ImportError where it is not found."""
    kind = device.type
    if kind not in _found:
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"router_rows: there is no library for tensors on {device}; cpu and cuda have one")
        _found[kind] = HostLibrary() if kind == "cpu" else GpuLibrary(device)
    return _found[kind]
