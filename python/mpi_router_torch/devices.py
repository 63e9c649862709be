"""Who multiplies: the library for each kind of device, all behind the same two calls.

    forward(gates, router, options, rows, tape, statuses)
    backward(gates, router, options, statuses, tape, grad_rows, grad_router, grad_gates, add)

gates is a list: of one tensor [N, F, D], or of N tensors [F, D]. tape has tape_bytes(gates, options) bytes, which mean
something to the library alone. What is written is the caller's.
"""

import ctypes
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


class CLibrary:
    """mpi_router::c, through the structs of mpi_router.py."""

    def __init__(self):
        import mpi_router  # here: it loads the library, which GPUs may do without

        self._m = mpi_router
        self._types = {torch.float64: 1, torch.float32: 2, torch.bfloat16: 3, torch.float16: 4}

    types = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

    def tape_bytes(self, gates: List[Tensor], options: Options) -> int:
        n, f, d = map(int, shape_of(gates))
        size, anywhere = ctypes.c_int64(), 64  # torch.compile asks with tensors that have no memory; none is read
        experts = self._m._Experts(anywhere, None, self._types[gates[0].dtype], 0, (ctypes.c_int64 * 3)(n, f, d),
                                   (ctypes.c_int64 * 3)(f * d, d, 1))
        self._m._call("tape_size", experts, self._options(options), ctypes.byref(size))
        return size.value

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

    def _experts(self, gates):
        first, m = gates[0], self._m
        stacked = first.dim() == 3
        table = None if stacked else (ctypes.c_void_p * len(gates))(*[g.data_ptr() for g in gates])
        strides = first.stride() if stacked else (0, *first.stride())
        struct = m._Experts(first.data_ptr() if stacked else None, None if stacked else ctypes.cast(table, ctypes.c_void_p),
                            self._types[first.dtype], 0, (ctypes.c_int64 * 3)(*shape_of(gates)),
                            (ctypes.c_int64 * 3)(*strides))
        return m._keeping(struct, table, gates)

    def _matrix(self, t):
        return self._m._keeping(self._m._Matrix(t.data_ptr(), self._types[t.dtype], 0, (ctypes.c_int64 * 2)(*t.shape),
                                                (ctypes.c_int64 * 2)(*t.stride())), t)

    def _buffer(self, tape):
        return self._m._Buffer(tape.data_ptr(), tape.numel() * tape.element_size())

    def _options(self, o):
        return self._m._options(radius=o.radius, radius_rule="fixed", degenerate="zero", steps=o.steps, through=o.through)

    def _threads(self, gates):
        n, f, d = shape_of(gates)
        return self._m._threads(torch.get_num_threads() if n * f * d > ALONE else 1)


_found = {}


def library_for(device: torch.device):
    """The library whose calls take memory of this device. Raises ValueError where there is none, ImportError where it is
    not built."""
    kind = device.type
    if kind not in _found:
        if kind == "cpu":
            _found[kind] = CLibrary()
        elif kind == "cuda":
            from .cuda_library import CudaLibrary

            _found[kind] = CudaLibrary()
        else:
            raise ValueError(f"router_rows: there is no library for tensors on {device}; cpu and cuda have one")
    return _found[kind]
