"""The operator: router rows and their gradients, eager and under torch.compile."""

import math
from typing import List, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .devices import Options, library_for, shape_of
from .layouts import Gates

THROUGH = ("all", "last", "none")


def router_rows(gates: Gates, router: Tensor, *, radius: Optional[float] = None, total_experts: Optional[int] = None,
                steps: int = 1, through: str = "all", main_grad: Optional[Gates] = None,
                statuses: bool = False) -> Union[Tensor, Tuple[Tensor, Tensor]]:
    """The rows that tokens are compared with: row i is C r_i M_i/|r_i M_i| with M_i = A_iᵀA_i (Eq. 4, 5), [N, D] in the
    type of the router, which stays as it is.

    gates: A of all experts, [N, F, D] of any strides, or a list with [F, D] of each, all with the same strides
    (gates_of makes both from fused parameters); router: [N, D]. float64, float32, bfloat16 or float16; the router is
    float64 only where the gates are. radius: C, by default 4/√N (Eq. 7) with N = total_experts where the call has a
    part of the experts only. steps: power steps; through: of those, whose A is differentiated: "all", "last" or "none".

    Gradients flow into router and gates, once. main_grad: buffers as the gates are, in their type or float32, to which
    every backward adds the gradient to the gates; autograd then has none for them. They are written on the stream
    of the backward, and are yours to zero. statuses=True: (rows, statuses), a byte for each row, 0 where it is right.
    A row without a step (zero, orthogonal to its gate, not finite) becomes zero, as by torch.nn.functional.normalize,
    and has no gradient.

    Raises ValueError where shapes, types, devices or options do not fit. The weights are read once forward and
    once backward; the result is the same, bit for bit, from call to call.
    """
    weights = [gates] if isinstance(gates, Tensor) else list(gates)
    buffers = [] if main_grad is None else [main_grad] if isinstance(main_grad, Tensor) else list(main_grad)
    if not weights:
        _refuse("gates is an empty list")
    if main_grad is not None and len(buffers) != len(weights):
        _refuse(f"main_grad has {len(buffers)} buffers for {len(weights)} gates")
    options = _options(radius, total_experts, steps, through, weights)
    if steps > 1 and isinstance(router, Tensor) and router.is_cuda:
        rows, codes = _one_by_one(weights, router, buffers, options)
    else:
        rows, codes = _rows(weights, router, buffers, options)
    return (rows, codes) if statuses else rows


def _rows(weights: List[Tensor], router: Tensor, buffers: List[Tensor], options: Options) -> Tuple[Tensor, Tensor]:
    if _is_compiling():
        return _rows_op(weights, router, buffers, *options)[:2]  # which checks by itself
    _expect_call(weights, router, buffers, options)
    if buffers and torch.is_grad_enabled() and not weights[0].requires_grad:
        _refuse(f"main_grad is given for gates {_said(weights[0])} that require no gradient")
    return _Rows.apply(_Call(options, buffers), router, *weights)


def _one_by_one(weights: List[Tensor], router: Tensor, buffers: List[Tensor], options: Options) -> Tuple[Tensor, Tensor]:
    """GPUs take one step a call: the rows of a step are the router of the next, unrounded."""
    rows = router if router.dtype == torch.float64 else router.float()
    constant = [weight.detach() for weight in weights]
    codes = None
    for left in reversed(range(options.steps)):
        differentiated = options.through == "all" or (options.through == "last" and left == 0)
        rows, told = _rows(weights if differentiated else constant, rows, buffers if differentiated else [],
                           options._replace(steps=1, through="all" if differentiated else "none"))
        codes = told if codes is None else torch.where(codes == 0, told, codes)
    return rows.to(router.dtype), codes


# ---- What is refused ---------------------------------------------------------------------------------------

def _refuse(text):
    raise ValueError("router_rows: " + text)


def _said(t) -> str:
    if not isinstance(t, Tensor):
        return f"{type(t).__name__}, no tensor"
    return f"{_name(t.dtype)} {tuple(t.shape)} on {t.device}"


def _name(dtype) -> str:
    return str(dtype).replace("torch.", "")


def _expect_call(weights: List[Tensor], router: Tensor, buffers: List[Tensor], options: Options):
    _expect_gates(weights)
    _expect_router(weights, router)
    if buffers:
        if options.through == "none":
            _refuse("main_grad is given, and through='none' has no gradient to the gates")
        _expect_buffers(buffers, weights)


def _expect_gates(weights: List[Tensor]):
    first = weights[0]
    if len(weights) == 1 and isinstance(first, Tensor) and first.dim() != 2:
        if first.dim() != 3:
            _refuse(f"gates is {_said(first)}, not of 3 axes, nor a list of matrices")
    else:
        alike = (first.shape, first.dtype, first.device, first.stride()) if isinstance(first, Tensor) else None
        for i, t in enumerate(weights):
            if not isinstance(t, Tensor) or t.dim() != 2:
                _refuse(f"gates[{i}] is {_said(t)}, not of 2 axes")
            if (t.shape, t.dtype, t.device, t.stride()) != alike:
                _refuse(f"gates[{i}] is {_said(t)} with the strides {t.stride()}, "
                        f"gates[0] is {_said(first)} with {first.stride()}")
    _expect_kind("gates", first)


def _expect_kind(name: str, t: Tensor):
    if hasattr(t, "device_mesh"):
        _refuse(f"{name} is a DTensor: gather it first, or see docs/guide-distributed.md")
    types = library_for(t.device).types
    if t.dtype not in types:
        _refuse(f"{name} is {_said(t)}, and on {t.device.type} it must be one of {', '.join(map(_name, types))}")


def _expect_router(weights: List[Tensor], router: Tensor):
    n, f, d = shape_of(weights)
    first = weights[0]
    if not isinstance(router, Tensor) or tuple(router.shape) != (n, d) or router.device != first.device:
        _refuse(f"router is {_said(router)}, gates [N = {n}, F = {f}, D = {d}] on {first.device} ask for ({n}, {d})")
    _expect_kind("router", router)
    if router.dtype == torch.float64 and first.dtype != torch.float64:
        _refuse(f"router is {_said(router)} for gates that are {_said(first)}: float64 asks for gates in float64")


def _options(radius, total_experts, steps, through, weights) -> Options:
    n = shape_of(weights)[0]
    if radius is None:
        radius = 4 / math.sqrt(max(total_experts or n, 1))
    if not isinstance(radius, (int, float)):
        _refuse(f"radius must be a number, which has no gradient, not {type(radius).__name__}")
    if not (math.isfinite(radius) and radius > 0):
        _refuse(f"radius is {radius}, not above 0 and finite")
    if total_experts is not None and total_experts < n:
        _refuse(f"total_experts is {total_experts}, and there are {n} here")
    if not isinstance(steps, int) or steps < 1:
        _refuse(f"steps is {steps}, not at least 1")
    if through not in THROUGH:
        _refuse(f"through is {through!r}, which is none of {', '.join(THROUGH)}")
    return Options(float(radius), steps, through)


def _expect_buffers(buffers: List[Tensor], weights: List[Tensor]):
    gate, first = weights[0], buffers[0]
    sums = (gate.dtype,) if gate.dtype == torch.float64 else (gate.dtype, torch.float32)
    for buffer in buffers:
        if buffer.shape != gate.shape or buffer.device != gate.device or buffer.dtype not in sums:
            _refuse(f"main_grad {_said(buffer)} for gates {_said(gate)}: in their shape, "
                    f"and {' or '.join(map(_name, sums))}")
        if (buffer.dtype, buffer.stride()) != (first.dtype, first.stride()):
            _refuse(f"main_grad {_said(buffer)} with the strides {buffer.stride()}, "
                    f"the first is {_said(first)} with {first.stride()}")
        if buffer.requires_grad:
            _refuse(f"main_grad {_said(buffer)} requires a gradient")
        if any(s == 0 and n > 1 for s, n in zip(buffer.stride(), buffer.shape)):
            _refuse(f"main_grad {_said(buffer)} is expanded")


# ---- Eager: an autograd Function; an operator of torch.library takes the host several times as long --------

class _Call(NamedTuple):
    options: Options
    main_grad: List[Tensor]


def _made(gates: List[Tensor], router: Tensor, options: Options) -> Tuple[Tensor, Tensor, Tensor]:
    """Memory for rows, statuses and the tape."""
    n, _, d = shape_of(gates)
    tape = library_for(router.device).tape_bytes(gates, options)
    return (router.new_empty(n, d), router.new_empty(n, dtype=torch.uint8), router.new_empty(tape, dtype=torch.uint8))


def _forward(gates: List[Tensor], router: Tensor, options: Options) -> Tuple[Tensor, Tensor, Tensor]:
    rows, statuses, tape = _made(gates, router, options)
    library_for(router.device).forward(gates, router, options, rows, tape, statuses)
    return rows, statuses, tape


def _to_router(router: Tensor) -> Tensor:
    """Memory for the gradient to the router."""
    make = torch.empty_like if library_for(router.device).writes_router else torch.zeros_like
    return make(router, memory_format=torch.contiguous_format)


def _backward(gates, router, options, statuses, tape, grad_rows, grad_gates, add=False) -> Tensor:
    """Returns the gradient to the router; that to the gates is written, or added, to grad_gates, where it is given."""
    grad_router = _to_router(router)
    library_for(router.device).backward(gates, router, options, statuses, tape, grad_rows.to(router.dtype), grad_router,
                                        grad_gates, add)
    return grad_router


def _like(gates: List[Tensor]) -> Tensor:
    """Memory for the gradient to the gates; to a list in one piece."""
    return torch.empty_like(gates[0]) if gates[0].dim() == 3 else gates[0].new_empty(shape_of(gates))


def _split(grad: Tensor, gates: List[Tensor]) -> List[Tensor]:
    return [grad] if gates[0].dim() == 3 else list(grad.unbind())


def _wanted(needs, options: Options) -> bool:
    return options.through != "none" and any(needs)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, router, *gates):
        rows, statuses, tape = _forward(list(gates), router, call.options)
        ctx.save_for_backward(router, statuses, tape, *gates)
        ctx.call = call
        ctx.mark_non_differentiable(statuses)
        return rows, statuses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rows, _):
        router, statuses, tape, *gates = ctx.saved_tensors
        options, main_grad = ctx.call
        common = (gates, router, options, statuses, tape, grad_rows)
        none = [None] * len(gates)
        if main_grad:
            grad_router, grads = _backward(*common, main_grad, add=True), none
            for buffer in main_grad:
                _count_write(buffer)
        elif _wanted(ctx.needs_input_grad[2:], options):
            made = _like(gates)
            grad_router = _backward(*common, [made])
            grads = _split(made, gates)
        else:
            grad_router, grads = _backward(*common, None), none
        return (None, grad_router if ctx.needs_input_grad[1] else None, *grads)


def _count_write(buffer: Tensor):
    """Autograd's version of a tensor that C wrote to."""
    if hasattr(torch.autograd.graph, "increment_version"):  # PyTorch 2
        torch.autograd.graph.increment_version(buffer)


# ---- Compiled: operators that torch.compile sees -------------------------------------------------------------

_HAS_OPERATORS = hasattr(torch.library, "custom_op")  # from PyTorch 2.4; before, a compiled graph breaks here


def _is_compiling() -> bool:
    return _HAS_OPERATORS and torch.compiler.is_compiling()


if _HAS_OPERATORS:

    @torch.library.custom_op("mpi_router_torch::rows", mutates_args=())
    def _rows_op(gates: List[Tensor], router: Tensor, main_grad: List[Tensor], radius: float, steps: int,
                 through: str) -> Tuple[Tensor, Tensor, Tensor]:
        return _forward(gates, router, Options(radius, steps, through))

    @_rows_op.register_fake
    def _(gates, router, main_grad, radius, steps, through):
        options = Options(radius, steps, through)
        _expect_call(gates, router, main_grad, options)
        return _made(gates, router, options)

    @torch.library.custom_op("mpi_router_torch::rows_vjp", mutates_args=())
    def _vjp_op(gates: List[Tensor], router: Tensor, statuses: Tensor, tape: Tensor, grad_rows: Tensor, radius: float,
                steps: int, through: str, wants_gates: bool) -> List[Tensor]:
        """The gradients to the router and, where it is wanted, to the gates, in one piece."""
        grads = [_like(gates)] if wants_gates else []
        to_router = _backward(gates, router, Options(radius, steps, through), statuses, tape, grad_rows, grads or None)
        return [to_router, *grads]

    @_vjp_op.register_fake
    def _(gates, router, statuses, tape, grad_rows, radius, steps, through, wants_gates):
        to_router = torch.empty_like(router, memory_format=torch.contiguous_format)
        return [to_router, *([_like(gates)] if wants_gates else [])]

    @torch.library.custom_op("mpi_router_torch::rows_vjp_added", mutates_args={"main_grad"})
    def _vjp_added_op(gates: List[Tensor], router: Tensor, statuses: Tensor, tape: Tensor, grad_rows: Tensor,
                      main_grad: List[Tensor], radius: float, steps: int, through: str) -> Tensor:
        """The gradient to the router; that to the gates is added to main_grad."""
        return _backward(gates, router, Options(radius, steps, through), statuses, tape, grad_rows, main_grad, add=True)

    @_vjp_added_op.register_fake
    def _(gates, router, statuses, tape, grad_rows, main_grad, radius, steps, through):
        return torch.empty_like(router, memory_format=torch.contiguous_format)

    def _keep(ctx, inputs, output):
        gates, router, main_grad, *options = inputs
        ctx.save_for_backward(router, output[1], output[2], *gates)
        # Not among the saved tensors, of which autograd refuses those that were written to in between: this one is.
        ctx.main_grad, ctx.options = list(main_grad), Options(*options)

    def _pull_back(ctx, grad_rows, *_):
        router, statuses, tape, *gates = ctx.saved_tensors
        saved = (gates, router, statuses, tape, grad_rows)
        grads = [None] * len(gates)
        if ctx.main_grad:
            to_router = _vjp_added_op(*saved, ctx.main_grad, *ctx.options)
        else:
            wants_gates = _wanted(ctx.needs_input_grad[0], ctx.options)
            to_router, *made = _vjp_op(*saved, *ctx.options, wants_gates)
            grads = _split(made[0], gates) if wants_gates else grads
        return grads, to_router, [None] * len(ctx.main_grad), None, None, None

    _rows_op.register_autograd(_pull_back, setup_context=_keep)
