"""The gate projection of grouped experts: its weight gradient takes that of the router rows along."""

from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .devices import Options, library_for
from .rows import _backward, _expect_call, _forward, _like, _options, _said, _to_router


class GroupedGateProjection:
    """Router rows, and the grouped product of tokens with the same gate matrices.

        gate_proj = GroupedGateProjection(gates, router)  # one tensor [N, F, D], and the router [N, D]
        logits = x @ gate_proj.rows.T
        outputs = gate_proj.product(tokens, offsets)      # [T, F]: row t is tokens[t] A_eᵀ of its expert e

    tokens [T, D] is sorted by expert; expert e ends before row offsets[e] (int32, on the device of the tokens, as torch's
    grouped products have them), the last at T. **The last two rows of each expert are padding**: of no token, finite, and
    what they give is not used.

    The gradient of a gate matrix through the router has rank 2, Ā_e = p zᵀ + w rᵀ. Of its own it costs a pass over
    memory of the size of the weights, and autograd another to add it up. Here the backward puts p and w into the padding
    of the gradient to `outputs`, z and r into that of the tokens, in the tokens' type, and the product that makes the
    weight gradient of the tokens makes both. Then both are as before; meanwhile no other stream or thread may use them.

    Without a call of product, or where the loss reaches the rows alone, the gates get their gradient as router_rows
    gives it. Several calls share the rows. One step; `statuses` [N] as router_rows returns. bfloat16 on GPUs takes
    PyTorch's grouped product, all else one product an expert, for which the host waits for the GPU. Not for torch.compile,
    nor for a reentrant checkpoint around the product alone.

    Raises ValueError where shapes, types or devices do not fit; on a CPU, too, where an expert has no two rows or the last
    does not end at T. A GPU is not asked: there the gradient to the gates of all experts with tokens is NaN then. float16, which lacks the range of
    the factors, is refused.
    """

    def __init__(self, gates: Tensor, router: Tensor, *, radius: Optional[float] = None, total_experts: Optional[int] = None):
        if not isinstance(gates, Tensor) or gates.dim() != 3:
            _refuse(f"gates is {_said(gates)}, not one tensor of 3 axes")
        if gates.dtype == torch.float16:
            _refuse(f"gates is {_said(gates)}; float16 has not the range of the gradient's factors")
        options = _options(radius, total_experts, 1, "all", [gates])
        _expect_call([gates], router, [], options)
        self._gates, self._saved, self._products = gates, {}, 0
        self.rows, self.statuses, self._ticket = _Rows.apply(options, self._saved, router, gates)

    def product(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """tokens [T, D] times the gate matrix of their expert: [T, F]."""
        self._expect(tokens, offsets)
        self._products += 1
        return _Product.apply(self._saved, self._products, tokens, offsets, self._gates, self._ticket)

    def _expect(self, tokens, offsets):
        n, _, d = self._gates.shape
        gates = f"gates {_said(self._gates)}"
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.shape[1] != d:
            _refuse(f"tokens is {_said(tokens)}, {gates} ask for (T, {d})")
        if (tokens.dtype, tokens.device) != (self._gates.dtype, self._gates.device):
            _refuse(f"tokens is {_said(tokens)}, unlike {gates}")
        if _overlaps(tokens):
            _refuse(f"tokens {_said(tokens)} has the strides {tokens.stride()}: its rows share memory")
        if (not isinstance(offsets, Tensor) or offsets.shape != (n,) or offsets.dtype != torch.int32 or
                offsets.device != tokens.device):
            _refuse(f"offsets is {_said(offsets)}, {gates} ask for int32 ({n},) on {tokens.device}")
        if not offsets.is_cuda and n > 0:
            sizes = _sizes(offsets)
            if int(sizes.min()) < 2:
                _refuse(f"expert {int(sizes.argmin())} has {int(sizes.min())} rows; two of each are padding")
            if int(offsets[-1]) != tokens.shape[0]:
                _refuse(f"the last expert ends at {int(offsets[-1])}, tokens is {_said(tokens)}")


def _refuse(text):
    raise ValueError("GroupedGateProjection: " + text)


class _Saved(NamedTuple):
    """What a product leaves for the backward of the rows, which comes after it: the ticket is its input."""

    tokens: Tensor
    offsets: Tensor
    grad: Tensor


class _Rows(torch.autograd.Function):
    """Returns rows, statuses and a ticket, which each product takes, so that its backward comes first. It has no elements."""

    @staticmethod
    def forward(ctx, options, saved, router, gates):
        rows, statuses, tape = _forward([gates], router, options)
        ctx.save_for_backward(router, statuses, tape, gates)
        ctx.options, ctx.saved = options, saved
        ctx.mark_non_differentiable(statuses)
        ctx.set_materialize_grads(False)  # a kernel each, for what nobody reads
        return rows, statuses, router.new_empty(0, dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rows, _, __):
        router, statuses, tape, gates = ctx.saved_tensors
        products = [ctx.saved.pop(i) for i in sorted(ctx.saved)]
        if grad_rows is None:  # the loss reaches products alone
            made = [_weight_gradient(*product) for product in products] if ctx.needs_input_grad[3] else []
            return None, None, None, sum(made[1:], made[0]) if made else None
        call = ([gates], router, ctx.options, statuses, tape, grad_rows)
        grad_gates = None
        if not ctx.needs_input_grad[3]:
            grad_router = _backward(*call, None)
        elif not products or gates.shape[0] == 0:
            grad_gates = _like([gates])
            grad_router = _backward(*call, [grad_gates])
        else:
            grad_router, factors = _factored(*call)
            grad_gates = _weight_gradient_and(factors, *products[0])
            for other in products[1:]:
                grad_gates += _weight_gradient(*other)
        return None, None, grad_router if ctx.needs_input_grad[2] else None, grad_gates


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, saved, number, tokens, offsets, gates, ticket):
        ctx.save_for_backward(tokens, offsets, gates)
        ctx.saved, ctx.number = saved, number
        return _grouped(tokens, gates.transpose(1, 2), offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        tokens, offsets, gates = ctx.saved_tensors
        grad_gates = grad_ticket = None
        if ctx.needs_input_grad[5]:
            grad_ticket = grad.new_empty(0, dtype=torch.float32)
            if ctx.needs_input_grad[4]:
                ctx.saved[ctx.number] = _Saved(tokens, offsets, grad)
                # Of a backward that does not reach the rows, nothing is left for the next.
                torch.autograd.Variable._execution_engine.queue_callback(ctx.saved.clear)
        elif ctx.needs_input_grad[4]:  # the rows were made without a graph
            grad_gates = _weight_gradient(tokens, offsets, grad)
        grad_tokens = _grouped(grad.contiguous(), gates, offsets) if ctx.needs_input_grad[2] else None
        return None, None, grad_tokens, None, grad_gates, grad_ticket


def _factored(gates, router, options: Options, statuses, tape, grad_rows) -> Tuple[Tensor, Tuple[Tensor, ...]]:
    """The gradient to the router, and the factors of that to the gates."""
    grad_router = _to_router(router)
    factors = library_for(router.device).backward_factored(gates, router, options, statuses, tape,
                                                           grad_rows.to(router.dtype), grad_router)
    return grad_router, factors


def _weight_gradient_and(factors, tokens, offsets, grad) -> Tensor:
    """The weight gradient with the factors as two more rows of each expert."""
    offsets = offsets.contiguous()
    if offsets.is_cuda:
        for t in (tokens, offsets, grad):  # they may come from the stream of the product
            t.record_stream(torch.cuda.current_stream(t.device))
    grad = grad.clone() if _storage(grad) == _storage(tokens) else grad.contiguous()
    with library_for(tokens.device).with_factors(grad, tokens, offsets, factors):
        return _weight_gradient(tokens, offsets, grad)


def _weight_gradient(tokens, offsets, grad) -> Tensor:
    grad, tokens = grad.contiguous(), tokens.contiguous()
    with torch.autocast(grad.device.type, enabled=False):
        if _has_grouped_product(grad):
            return _grouped_mm(grad.t(), tokens, offs=offsets)
        return torch.stack([g.t() @ t for g, t in zip(_split(grad, offsets), _split(tokens, offsets))])


def _grouped(a: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
    """Rows of a [T, K] times the matrix [K, M] of their expert."""
    with torch.autocast(a.device.type, enabled=False):
        if _has_grouped_product(a):
            return _grouped_mm(a, matrices, offs=offsets)
        made = [part @ matrix for part, matrix in zip(_split(a, offsets), matrices)]
        return torch.cat([*made, a.new_zeros(a.shape[0] - sum(len(m) for m in made), matrices.shape[2])])


_grouped_mm = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def _has_grouped_product(a: Tensor) -> bool:
    return _grouped_mm is not None and a.is_cuda and a.dtype == torch.bfloat16


def _split(a: Tensor, offsets: Tensor):
    bounds = [0, *offsets.tolist()]
    return [a[begin:end] for begin, end in zip(bounds, bounds[1:])]


def _sizes(offsets: Tensor) -> Tensor:
    return torch.diff(offsets, prepend=offsets.new_zeros(1))


def _overlaps(matrix: Tensor) -> bool:
    axes = sorted((stride, size) for stride, size in zip(matrix.stride(), matrix.shape) if size > 1)
    least = 1
    for stride, size in axes:
        if stride < least:
            return True
        least = stride * (size - 1) + least
    return False


def _storage(t: Tensor) -> int:
    return (t.untyped_storage() if hasattr(t, "untyped_storage") else t.storage()).data_ptr()
