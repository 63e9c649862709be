"""Router rows by Manifold Power Iteration for PyTorch, with gradients, on the kernels of mpi_router.

    rows = router_rows(gates, router, radius=C)      # [N, D]: C * rM / |rM| with M = gate^T gate of each expert
    logits = tokens @ rows.T

gates [N, F, D] may be any view of CUDA memory, such as half of a fused tensor or the transpose of [N, D, F]; router
[N, D]; both bfloat16 or float32. Works under torch.compile and in CUDA graphs. Reads the gates once forward, and once
backward while it writes their gradient; runs on the current stream. A row without a step (zero, orthogonal to its gate,
not finite) becomes zero and gets no gradient.

    rows = router_rows(gates, router, radius=C, main_grad=buffer)

adds the gradient to the gates to a buffer of their shape, in float32 or in their type, during the backward; autograd
then has none for them. So training keeps sums over micro-batches, and nothing of the size of the weights is written
twice. Not under torch.compile.

The library beside this file is built by nvcc (docs/guide-gpu.md); MPI_ROUTER_LIBRARY names another place.
"""

import ctypes
import os
import pathlib
from ctypes import c_double, c_int, c_int64, c_void_p
from typing import Optional

import torch
from torch import Tensor

_lib = ctypes.CDLL(os.environ.get("MPI_ROUTER_LIBRARY", str(pathlib.Path(__file__).with_name("libmpi_router_torch.so"))))
_lib.mpi_router_error.restype = ctypes.c_char_p
_lib.mpi_router_context.restype = c_void_p
_lib.mpi_router_workspace.restype = c_int64

_TYPES = {torch.bfloat16: 0, torch.float32: 1}
_triple = c_int64 * 3


class _Tensor(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("size", _triple), ("stride", _triple), ("type", c_int)]


def _describe(t: Optional[Tensor]):
    if t is None:
        return None
    return ctypes.byref(_Tensor(t.data_ptr(), _triple(*t.shape), _triple(*t.stride()), _TYPES[t.dtype]))


def _pointer(t: Tensor):
    return c_void_p(t.data_ptr())


_contexts = {}


def _context(device: torch.device):
    context = _contexts.get(device.index)
    if context is None:
        context = c_void_p(_lib.mpi_router_context())
        if not context:
            raise RuntimeError(_lib.mpi_router_error().decode())
        _contexts[device.index] = context
    return context


def _call(function, gates: Tensor, grad_gates: Optional[Tensor], add: bool, *arguments):
    """function(context, stream, gates, *arguments, workspace, bytes) on the device of the gates."""
    with torch.cuda.device(gates.device):
        context, described = _context(gates.device), _describe(gates)
        size = _lib.mpi_router_workspace(context, described, _describe(grad_gates), c_int(add))
        if size >= 0:
            workspace = torch.empty(size, dtype=torch.uint8, device=gates.device)
            stream = c_void_p(torch.cuda.current_stream().cuda_stream)
            size = function(context, stream, described, *arguments, _pointer(workspace), c_int64(size))
        if size != 0:
            raise RuntimeError(_lib.mpi_router_error().decode())


def _outputs(gates: Tensor, rows: Tensor):
    """The new rows, and what the backward needs: their direction, |rM| and statuses."""
    n, _, d = gates.shape
    return (rows.new_empty(n, d), rows.new_empty(n, d, dtype=torch.float32), rows.new_empty(n, dtype=torch.float64),
            rows.new_empty(n, dtype=torch.uint8))


def _forward(gates: Tensor, rows: Tensor, radius: float):
    out, *saved = _outputs(gates, rows)
    _call(_lib.mpi_router_forward, gates, None, False, _describe(rows), _describe(out), c_double(radius), *map(_pointer, saved))
    return out, *saved


def _backward(gates: Tensor, rows: Tensor, upstream: Tensor, saved, radius: float, grad_gates: Tensor, add: bool):
    upstream = upstream.to(rows.dtype)
    grad_rows = torch.empty_like(rows)
    _call(_lib.mpi_router_backward, gates, grad_gates, add, _describe(rows), _describe(upstream), _describe(grad_rows),
          _describe(grad_gates), c_int(add), c_double(radius), *map(_pointer, saved))
    return grad_rows


class _Step(torch.autograd.Function):
    """Eager: an operator of torch.library takes the host several times as long."""

    @staticmethod
    def forward(ctx, gates, rows, radius, main_grad):
        out, *saved = _forward(gates, rows, radius)
        ctx.save_for_backward(gates, rows, *saved)
        ctx.radius, ctx.main_grad = radius, main_grad
        return out

    @staticmethod
    def backward(ctx, upstream):
        gates, rows, *saved = ctx.saved_tensors
        add = ctx.main_grad is not None
        grad_gates = ctx.main_grad if add else torch.empty_like(gates)
        grad_rows = _backward(gates, rows, upstream, saved, ctx.radius, grad_gates, add)
        return None if add else grad_gates, grad_rows, None, None


@torch.library.custom_op("mpi_router::step", mutates_args=(), device_types="cuda")
def _step(gates: Tensor, rows: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _forward(gates, rows, radius)


@_step.register_fake
def _(gates, rows, radius):
    return _outputs(gates, rows)


@torch.library.custom_op("mpi_router::step_vjp", mutates_args=(), device_types="cuda")
def _step_vjp(gates: Tensor, rows: Tensor, upstream: Tensor, direction: Tensor, norm: Tensor, statuses: Tensor,
              radius: float) -> tuple[Tensor, Tensor]:
    grad_gates = torch.empty_like(gates)
    return grad_gates, _backward(gates, rows, upstream, (direction, norm, statuses), radius, grad_gates, False)


@_step_vjp.register_fake
def _(gates, rows, upstream, direction, norm, statuses, radius):
    return torch.empty_like(gates), torch.empty_like(rows)


def _keep(ctx, inputs, output):
    gates, rows, ctx.radius = inputs
    ctx.save_for_backward(gates, rows, *output[1:])


_step.register_autograd(
    lambda ctx, upstream, *_: (*_step_vjp(*ctx.saved_tensors[:2], upstream, *ctx.saved_tensors[2:], ctx.radius), None),
    setup_context=_keep)


def router_rows(gates: Tensor, router: Tensor, radius: float, main_grad: Optional[Tensor] = None) -> Tensor:
    """C * rM / |rM| for each expert [N, D], in the type of the router. See the head of this file."""
    for name, t, axes in (("gates", gates, 3), ("router", router, 2)):
        if not t.is_cuda or t.dim() != axes or t.dtype not in _TYPES:
            raise ValueError(f"router_rows: {name} must be a CUDA tensor of {axes} axes in bfloat16 or float32, "
                             f"not {t.dtype} {tuple(t.shape)} on {t.device}")
    if (gates.shape[0], gates.shape[2]) != tuple(router.shape) or gates.device != router.device:
        raise ValueError(f"router_rows: router {tuple(router.shape)} on {router.device} for gates "
                         f"{tuple(gates.shape)} on {gates.device}")
    if main_grad is not None and (main_grad.shape != gates.shape or main_grad.device != gates.device or
                                  main_grad.dtype not in (torch.float32, gates.dtype)):
        raise ValueError(f"router_rows: main_grad {main_grad.dtype} {tuple(main_grad.shape)} on {main_grad.device} for "
                         f"gates {gates.dtype} {tuple(gates.shape)} on {gates.device}")
    if torch.compiler.is_compiling():
        if main_grad is not None:
            raise ValueError("router_rows: main_grad is written during the backward, which torch.compile does not see")
        return _step(gates, router, radius)[0]
    return _Step.apply(gates, router, radius, main_grad)
