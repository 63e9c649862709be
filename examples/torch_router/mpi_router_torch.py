"""Router rows by Manifold Power Iteration for PyTorch, with gradients, on the kernels of mpi_router.

    rows = router_rows(gates, router)                # [N, D]: C * rM / |rM| with M = gate^T gate of each expert
    logits = tokens @ rows.T

gates [N, F, D] may be any view of CUDA memory, such as half of a fused tensor or the transpose of [N, D, F]; router
[N, D]; each bfloat16, float16 or float32. C is the argument radius, by default 4 / sqrt(N): where gates are a part of the experts,
pass that of the whole. Works under torch.compile and in CUDA graphs; runs on the current stream. Where D is
contiguous the gates are read once forward, and once backward while their gradient is written; of the transpose of
[N, D, F] the forward is nearly as fast, but the backward takes the plain path, which is slow. A row without a step (zero,
orthogonal to its gate, not finite) becomes zero and gets no gradient. Can be differentiated once.

    rows = router_rows(gates, router, main_grad=buffer)

adds the gradient to the gates to a buffer of their shape, in float32 or in their type, during every backward; autograd
then has none for them. So training keeps sums over micro-batches, and nothing of the size of the weights is written
twice. The buffer is written on the stream of the backward. Not under torch.compile.

It stands on python/mpi_router.py and its shared library, which nvcc builds beside that (docs/guide-gpu.md);
MPIROUTER_LIBRARY names another place.
"""

import functools
import math
import pathlib
import sys
from typing import Optional

import torch
from torch import Tensor

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "python"))
import mpi_router  # noqa: E402

_TYPES = (torch.bfloat16, torch.float16, torch.float32)


@functools.lru_cache(maxsize=None)
def _gpu(index: int):
    return mpi_router.Cuda()  # of the device that is current


@functools.lru_cache(maxsize=64)
def _options(radius: float):
    """The same for forward and backward: a row without a step is zero, and so is its gradient."""
    return mpi_router.step_options(radius=radius, radius_rule="fixed", degenerate="zero")


def _scratch(size: int, like: Tensor):
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def _outputs(gates: Tensor, router: Tensor):
    """The rows, and the tape of their backward."""
    n, _, d = gates.shape
    return router.new_empty(n, d), router.new_empty(n * (4 * d + 9), dtype=torch.uint8)


def _forward(gates: Tensor, router: Tensor, radius: float):
    rows, tape = _outputs(gates, router)
    with torch.cuda.device(gates.device):
        gpu, options = _gpu(gates.device.index), _options(radius)
        gpu.router_rows(gates, router, rows, _scratch(gpu.router_rows_workspace(gates, options), gates),
                        torch.cuda.current_stream().cuda_stream, tape=tape, options=options)
    return rows, tape


def _backward(gates: Tensor, router: Tensor, grad_rows: Tensor, tape: Tensor, radius: float,
              grad_router: Optional[Tensor], grad_gates: Optional[Tensor], add: bool = False):
    if grad_router is None and grad_gates is None:
        return
    with torch.cuda.device(gates.device):
        gpu = _gpu(gates.device.index)
        gpu.router_rows_vjp(gates, router, tape, grad_rows.to(router.dtype),
                            _scratch(gpu.router_rows_vjp_workspace(gates, grad_gates, add), gates),
                            torch.cuda.current_stream().cuda_stream, grad_router=grad_router, grad_experts=grad_gates,
                            accumulate=add, options=_options(radius))


class _Step(torch.autograd.Function):
    """Eager: an operator of torch.library takes the host several times as long."""

    @staticmethod
    def forward(ctx, gates, router, radius, main_grad):
        rows, tape = _forward(gates, router, radius)
        ctx.save_for_backward(gates, router, tape)
        ctx.radius, ctx.main_grad = radius, main_grad
        return rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_rows):
        gates, router, tape = ctx.saved_tensors
        grad_router = torch.empty_like(router) if ctx.needs_input_grad[1] else None
        if ctx.main_grad is not None:
            _backward(gates, router, grad_rows, tape, ctx.radius, grad_router, ctx.main_grad, add=True)
            torch.autograd.graph.increment_version(ctx.main_grad)
            return None, grad_router, None, None
        grad_gates = torch.empty_like(gates) if ctx.needs_input_grad[0] else None
        _backward(gates, router, grad_rows, tape, ctx.radius, grad_router, grad_gates)
        return grad_gates, grad_router, None, None


@torch.library.custom_op("mpi_router::step", mutates_args=(), device_types="cuda")
def _step(gates: Tensor, router: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    return _forward(gates, router, radius)


@_step.register_fake
def _(gates, router, radius):
    return _outputs(gates, router)


@torch.library.custom_op("mpi_router::step_vjp", mutates_args=(), device_types="cuda")
def _step_vjp(gates: Tensor, router: Tensor, grad_rows: Tensor, tape: Tensor, radius: float, wants_gates: bool) -> tuple[Tensor, Tensor]:
    grad_gates, grad_router = _gradients(gates, router, wants_gates)
    _backward(gates, router, grad_rows, tape, radius, grad_router, grad_gates if wants_gates else None)
    return grad_gates, grad_router


@_step_vjp.register_fake
def _(gates, router, grad_rows, tape, radius, wants_gates):
    return _gradients(gates, router, wants_gates)


def _gradients(gates, router, wants_gates):
    return torch.empty_like(gates) if wants_gates else gates.new_empty(0), torch.empty_like(router)


def _keep(ctx, inputs, output):
    gates, router, ctx.radius = inputs
    ctx.save_for_backward(gates, router, output[1])


def _pull_back(ctx, grad_rows, *_):
    gates, router, tape = ctx.saved_tensors
    wants_gates = ctx.needs_input_grad[0]
    grad_gates, grad_router = _step_vjp(gates, router, grad_rows, tape, ctx.radius, wants_gates)
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
            raise ValueError(f"router_rows: {name} must be a CUDA tensor of {axes} axes in bfloat16, float16 or float32, "
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
