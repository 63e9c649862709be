"""Router rows by Manifold Power Iteration for PyTorch, with gradients, on the kernels of mpi_router.

    rows = router_rows(gates, router)                # [N, D]: C * rM / |rM| with M = gate^T gate of each expert
    logits = tokens @ rows.T

gates [N, F, D] may be any view of CUDA memory, such as half of a fused tensor or the transpose of [N, D, F]; router
[N, D]; both bfloat16 or float32. C is the argument radius, by default 4 / sqrt(N): where gates are a part of the experts,
pass that of the whole. Works under torch.compile and in CUDA graphs; runs on the current stream. Where D is
contiguous the gates are read once forward, and once backward while their gradient is written; of the transpose of
[N, D, F] the forward is nearly as fast, but the backward takes the plain path, which is slow. A row without a step (zero,
orthogonal to its gate, not finite) becomes zero and gets no gradient. Can be differentiated once.

    rows = router_rows(gates, router, main_grad=buffer)

adds the gradient to the gates to a buffer of their shape, in float32 or in their type, during every backward; autograd
then has none for them. So training keeps sums over micro-batches, and nothing of the size of the weights is written
twice. The buffer is written on the stream of the backward. Not under torch.compile.

The library beside this file is built by nvcc (docs/guide-gpu.md); MPI_ROUTER_LIBRARY names another place.
"""

import ctypes
import math
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
        if size < 0:
            raise RuntimeError(_lib.mpi_router_error().decode())
        workspace = torch.empty(size, dtype=torch.uint8, device=gates.device)
        stream = c_void_p(torch.cuda.current_stream().cuda_stream)
        if function(context, stream, described, *arguments, _pointer(workspace), c_int64(size)) != 0:
            raise RuntimeError(_lib.mpi_router_error().decode())


def _outputs(gates: Tensor, router: Tensor):
    """The rows, and what the backward needs: their direction, |rM| and statuses."""
    n, _, d = gates.shape
    return (router.new_empty(n, d), router.new_empty(n, d, dtype=torch.float32), router.new_empty(n, dtype=torch.float64),
            router.new_empty(n, dtype=torch.uint8))


def _forward(gates: Tensor, router: Tensor, radius: float):
    rows, *saved = _outputs(gates, router)
    _call(_lib.mpi_router_forward, gates, None, False, _describe(router), _describe(rows), c_double(radius),
          *map(_pointer, saved))
    return rows, *saved


def _backward(gates: Tensor, router: Tensor, grad_rows: Tensor, saved, radius: float, grad_router: Optional[Tensor],
              grad_gates: Optional[Tensor], add: bool = False):
    grad_rows = grad_rows.to(router.dtype)
    _call(_lib.mpi_router_backward, gates, grad_gates, add, _describe(router), _describe(grad_rows),
          _describe(grad_router), _describe(grad_gates), c_int(add), c_double(radius), *map(_pointer, saved))


class _Step(torch.autograd.Function):
    """Eager: an operator of torch.library takes the host several times as long."""

    @staticmethod
    def forward(ctx, gates, router, radius, main_grad):
        rows, *saved = _forward(gates, router, radius)
        ctx.save_for_backward(gates, router, *saved)
        ctx.radius, ctx.main_grad = radius, main_grad
        return rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_rows):
        gates, router, *saved = ctx.saved_tensors
        grad_router = torch.empty_like(router) if ctx.needs_input_grad[1] else None
        if ctx.main_grad is not None:
            _backward(gates, router, grad_rows, saved, ctx.radius, grad_router, ctx.main_grad, add=True)
            torch.autograd.graph.increment_version(ctx.main_grad)
            return None, grad_router, None, None
        grad_gates = torch.empty_like(gates) if ctx.needs_input_grad[0] else None
        _backward(gates, router, grad_rows, saved, ctx.radius, grad_router, grad_gates)
        return grad_gates, grad_router, None, None


@torch.library.custom_op("mpi_router::step", mutates_args=(), device_types="cuda")
def _step(gates: Tensor, router: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _forward(gates, router, radius)


@_step.register_fake
def _(gates, router, radius):
    return _outputs(gates, router)


@torch.library.custom_op("mpi_router::step_vjp", mutates_args=(), device_types="cuda")
def _step_vjp(gates: Tensor, router: Tensor, grad_rows: Tensor, direction: Tensor, norm: Tensor, statuses: Tensor,
              radius: float, wants_gates: bool) -> tuple[Tensor, Tensor]:
    grad_gates, grad_router = _gradients(gates, router, wants_gates)
    _backward(gates, router, grad_rows, (direction, norm, statuses), radius, grad_router, grad_gates if wants_gates else None)
    return grad_gates, grad_router


@_step_vjp.register_fake
def _(gates, router, grad_rows, direction, norm, statuses, radius, wants_gates):
    return _gradients(gates, router, wants_gates)


def _gradients(gates, router, wants_gates):
    return torch.empty_like(gates) if wants_gates else gates.new_empty(0), torch.empty_like(router)


def _keep(ctx, inputs, output):
    gates, router, ctx.radius = inputs
    ctx.save_for_backward(gates, router, *output[1:])


def _pull_back(ctx, grad_rows, *_):
    gates, router, *saved = ctx.saved_tensors
    wants_gates = ctx.needs_input_grad[0]
    grad_gates, grad_router = _step_vjp(gates, router, grad_rows, *saved, ctx.radius, wants_gates)
    return grad_gates if wants_gates else None, grad_router, None


_step.register_autograd(_pull_back, setup_context=_keep)


def _expect_buffer(buffer: Tensor, gates: Tensor):
    what = f"router_rows: main_grad {buffer.dtype} {tuple(buffer.shape)} on {buffer.device}"
    if buffer.shape != gates.shape or buffer.device != gates.device or buffer.dtype not in (torch.float32, gates.dtype):
        raise ValueError(f"{what} for gates {gates.dtype} {tuple(gates.shape)} on {gates.device}")
    if buffer.requires_grad or any(s == 0 and n > 1 for s, n in zip(buffer.stride(), buffer.shape)):
        raise ValueError(f"{what} requires a gradient, or is expanded")
    if torch.is_grad_enabled() and not gates.requires_grad:
        raise ValueError(f"{what} for gates that require no gradient")


def router_rows(gates: Tensor, router: Tensor, radius: Optional[float] = None,
                main_grad: Optional[Tensor] = None) -> Tensor:
    """C * rM / |rM| for each expert [N, D], in the type of the router. See the head of this file."""
    for name, t, axes in (("gates", gates, 3), ("router", router, 2)):
        if not t.is_cuda or t.dim() != axes or t.dtype not in _TYPES:
            raise ValueError(f"router_rows: {name} must be a CUDA tensor of {axes} axes in bfloat16 or float32, "
                             f"not {t.dtype} {tuple(t.shape)} on {t.device}")
    if (gates.shape[0], gates.shape[2]) != tuple(router.shape) or gates.device != router.device:
        raise ValueError(f"router_rows: router {tuple(router.shape)} on {router.device} for gates "
                         f"{tuple(gates.shape)} on {gates.device}")
    if radius is None:
        radius = 4 / math.sqrt(max(gates.shape[0], 1))
    if not isinstance(radius, (int, float)):
        raise ValueError(f"router_rows: radius must be a number, which has no gradient, not {type(radius).__name__}")
    if main_grad is not None:
        _expect_buffer(main_grad, gates)
    if torch.compiler.is_compiling():
        if main_grad is not None:
            raise ValueError("router_rows: main_grad is written during the backward, which torch.compile does not see")
        return _step(gates, router, radius)[0]
    return _Step.apply(gates, router, radius, main_grad)
