"""The gate product of grouped experts: its weight gradient takes that of the router rows along."""

from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .devices import Options, library_for
from .rows import _backward, _expect_call, _forward, _like, _options, _said


class GroupedGate:
    """Router rows, and the product of grouped experts with the same gates.

        gate = GroupedGate(gates, router)                 # gates [N, F, D], router [N, D]: the arguments of router_rows
        logits = x @ gate.rows.T
        hidden = gate.product(tokens, ends)               # [T, F]: row t is tokens[t] A_eᵀ of its expert e

    tokens [T, D] is sorted by expert; that of expert e ends before row ends[e] (int32, on the device of the tokens, the
    offsets of torch's grouped products). **The last two rows of each expert are free**: of no token, finite, and with an
    output that is not used.

    The gradient of a gate matrix through the router has rank 2, Ā_e = p zᵀ + w rᵀ. Of its own it costs a pass over
    memory of the size of the weights, and autograd another to add it up. Here the backward lays p and w in the free rows
    of the gradient to `hidden`, z and r in those of the tokens, in the tokens' type, and the product that makes the
    weight gradient of the tokens makes both. Neither tensor has changed when the backward is over.

    Without a call of product, or where the loss reaches the rows alone, the gates get their gradient as router_rows
    gives it. Several calls share the rows. One step, one tensor of gates; statuses [N] as router_rows returns. bfloat16
    on GPUs takes PyTorch's grouped product, all else one product an expert. Not for torch.compile.

    Raises ValueError where shapes, types or devices do not fit; on a CPU, too, where an expert has no two rows. A GPU is not
    asked: there the gradient to all experts with a row is NaN then. float16, which lacks the range, is refused.
    """

    def __init__(self, gates: Tensor, router: Tensor, *, radius: Optional[float] = None, total_experts: Optional[int] = None):
        if not isinstance(gates, Tensor) or gates.dim() != 3:
            raise ValueError(f"GroupedGate: gates is {_said(gates)}, not one tensor of 3 axes")
        if gates.dtype == torch.float16:
            raise ValueError(f"GroupedGate: gates is {_said(gates)}; float16 has not the range of the gradient's factors")
        options = _options(radius, total_experts, 1, "all", [gates])
        _expect_call([gates], router, [], options)
        self._gates, self._kept = gates, {}
        self.rows, self.statuses = _Rows.apply(options, self._kept, router, gates)
        self._products = 0

    def product(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """tokens [T, D] times the gate of their expert: [T, F]."""
        self._expect(tokens, ends)
        self._products += 1
        return _Product.apply(self._kept, self._products, tokens, ends, self._gates, self.rows)

    def _expect(self, tokens, ends):
        n, _, d = self._gates.shape
        gates = f"gates {_said(self._gates)}"
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.shape[1] != d:
            raise ValueError(f"GroupedGate: tokens is {_said(tokens)}, {gates} ask for (T, {d})")
        if (tokens.dtype, tokens.device) != (self._gates.dtype, self._gates.device):
            raise ValueError(f"GroupedGate: tokens is {_said(tokens)}, unlike {gates}")
        if any(stride == 0 and size > 1 for stride, size in zip(tokens.stride(), tokens.shape)):
            raise ValueError(f"GroupedGate: tokens {_said(tokens)} is expanded, so that its rows have no memory of their own")
        if not isinstance(ends, Tensor) or ends.shape != (n,) or ends.dtype != torch.int32 or ends.device != tokens.device:
            raise ValueError(f"GroupedGate: ends is {_said(ends)}, {gates} ask for int32 ({n},) on {tokens.device}")
        if not ends.is_cuda and n > 0:
            sizes = _sizes(ends)
            if int(sizes.min()) < 2 or int(ends[-1]) > tokens.shape[0]:
                raise ValueError(f"GroupedGate: expert {int(sizes.argmin())} has {int(sizes.min())} rows and the last ends at "
                                 f"{int(ends[-1])} of {tokens.shape[0]}; each needs two free ones")


class _Kept(NamedTuple):
    """What a product leaves for the backward of the rows, which comes after it: they are among its inputs."""

    tokens: Tensor
    ends: Tensor
    grad: Tensor


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, options, kept, router, gates):
        rows, statuses, tape = _forward([gates], router, options)
        ctx.save_for_backward(router, statuses, tape, gates)
        ctx.options, ctx.kept = options, kept
        ctx.mark_non_differentiable(statuses)
        return rows, statuses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rows, _):
        router, statuses, tape, gates = ctx.saved_tensors
        call = ([gates], router, ctx.options, statuses, tape, grad_rows)
        products = [ctx.kept.pop(i) for i in sorted(ctx.kept)]
        grad_gates = None
        if not ctx.needs_input_grad[3]:
            grad_router = _backward(*call, None)
        elif not products:
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
    def forward(ctx, kept, number, tokens, ends, gates, rows):
        ctx.save_for_backward(tokens, ends, gates)
        ctx.kept, ctx.number = kept, number
        return _grouped(tokens, gates.transpose(1, 2), ends)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        tokens, ends, gates = ctx.saved_tensors
        if ctx.needs_input_grad[4]:
            ctx.kept[ctx.number] = _Kept(tokens, ends, grad)
        grad_tokens = _grouped(grad.contiguous(), gates, ends) if ctx.needs_input_grad[2] else None
        return None, None, grad_tokens, None, None, None


def _factored(gates, router, options: Options, statuses, tape, grad_rows) -> Tuple[Tensor, Tuple[Tensor, ...]]:
    """The gradient to the router, and p, w [N, F] and z, r [N, D]."""
    grad_router = torch.zeros_like(router, memory_format=torch.contiguous_format)
    factors = library_for(router.device).backward_factored(gates, router, options, statuses, tape,
                                                           grad_rows.to(router.dtype), grad_router)
    return grad_router, factors


def _weight_gradient_and(factors, tokens, ends, grad) -> Tensor:
    """The weight gradient with the factors as two more rows of each expert."""
    p, w, z, r = factors
    last = ends.long().unsqueeze(1)
    places = torch.cat([last - 2, last - 1], 1).clamp_(min=0).flatten()
    below = torch.stack([p, w], 1)
    if ends.is_cuda:
        below = torch.where(_sizes(ends).min() < 2, float("nan"), below)
    grad = grad.contiguous()
    with _rows_laid(grad, places, below), _rows_laid(tokens, places, torch.stack([z.to(r.dtype), r], 1)):
        return _weight_gradient(tokens, ends, grad)


class _rows_laid:
    """Rows of a matrix are others for a while. Autograd, which could only object, is not told."""

    def __init__(self, matrix: Tensor, places: Tensor, rows: Tensor):
        self._matrix, self._places = matrix.data, places
        self._rows, self._own = rows.flatten(0, 1).to(matrix.dtype), self._matrix.index_select(0, places)

    def __enter__(self):
        self._matrix.index_copy_(0, self._places, self._rows)

    def __exit__(self, *_):
        self._matrix.index_copy_(0, self._places, self._own)


def _weight_gradient(tokens, ends, grad) -> Tensor:
    grad, tokens = grad.contiguous(), tokens.contiguous()
    if _has_grouped_product(grad):
        return _grouped_mm(grad.t(), tokens, offs=ends)
    return torch.stack([g.t() @ t for g, t in zip(_split(grad, ends), _split(tokens, ends))])


def _grouped(a: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Rows of a [T, K] times the matrix [K, M] of their expert. Rows behind the last end are not looked at."""
    if _has_grouped_product(a):
        return _grouped_mm(a, matrices, offs=ends)
    made = [part @ matrix for part, matrix in zip(_split(a, ends), matrices)]
    return torch.cat([*made, a.new_zeros(a.shape[0] - sum(len(m) for m in made), matrices.shape[2])])


_grouped_mm = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def _has_grouped_product(a: Tensor) -> bool:
    return _grouped_mm is not None and a.is_cuda and a.dtype == torch.bfloat16


def _split(a: Tensor, ends: Tensor):
    bounds = [0, *ends.tolist()]
    return [a[begin:end] for begin, end in zip(bounds, bounds[1:])]


def _sizes(ends: Tensor) -> Tensor:
    return torch.diff(ends, prepend=ends.new_zeros(1))
