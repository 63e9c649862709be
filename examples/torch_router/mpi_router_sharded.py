"""Router rows of experts that are spread over a process group: every rank multiplies by the weights that it has.

    rows = sharded_router_rows(experts.w1, router)             # w1 a DTensor [N, F, D]: Shard(0), Shard(1), EP x FSDP
    rows = sharded_router_rows(local, router, part=part)       # any local tensor, and where it lies
    logits = tokens @ rows.T

experts.w1 is a parameter as FSDP2, expert or tensor parallelism leave it: sharded over its experts, over the neurons
of each, or both, evenly or not; a flat [N * F, D] with Shard(0) too, if `num_experts` is given. Weights are never
gathered: one message of the group brings some N * (D + 5) floats for each layer (a slice of neurons: N * (D + 5) of
each rank). The router [N, D] is whole and the same on every rank (a DTensor of it is made whole: it is small), the
rows too, and so is the gradient to the router. The gradient to the weights is that of this rank's part, a DTensor as
the parameter is; it needs no message. `split_tokens`: every rank has tokens of its own, and what comes for the rows
is summed over the ranks first. Where the parameter has a `main_grad` (or one is given), the gradient is added there,
and autograd has none for it.

Several layers go in one message: sharded_router_rows([w, ...], [router, ...]) gives a list of rows.

Under torch.compile make the part before, outside: part_of(experts.w1); one layer a call; a main_grad is
not seen there, the gradient goes to autograd. In FSDP2 call
it where the parameter is sharded, outside of its module's forward, with a main_grad of its own that is added to the
local shard of .grad after the backward: FSDP reduces gradients on another stream. All ranks make the call, with the same
shapes and types: on GPUs nothing is compared.

Gates and router in bfloat16 or float32, on CPU in float64 too. The backend is c10d's: NCCL, gloo, MPI. The libraries
beside this file are built by nvcc and a C++ compiler (docs/guide-distributed.md); MPI_ROUTER_LIBRARY and
MPI_ROUTER_CPU_LIBRARY name other places. Can be differentiated once.
"""

import ctypes
import dataclasses
import math
import os
import pathlib
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_double, c_int, c_int64, c_void_p
from typing import List, Optional

import torch
import torch.distributed as dist
from torch import Tensor

try:
    from torch.distributed.tensor import DTensor
except ImportError:  # PyTorch before 2.5, where tensors come with a part
    DTensor = None

_TYPES = {torch.bfloat16: 0, torch.float32: 1, torch.float64: 2}
_GPU_TYPES = {torch.bfloat16: 0, torch.float32: 1}
_is_compiling = torch.compiler.is_compiling if hasattr(torch, "compiler") else lambda: False
_triple = c_int64 * 3
_GATHER = CFUNCTYPE(c_int, c_int64, c_int, c_void_p, c_void_p)


class _Tensor(Structure):
    _fields_ = [("data", c_void_p), ("size", _triple), ("stride", _triple), ("type", c_int)]


class _Layer(Structure):
    _fields_ = [("gates", POINTER(_Tensor)), ("whole", _triple), ("first_expert", c_int64), ("first_neuron", c_int64),
                ("is_rows", c_int64), ("most", c_int64)] + [
                    (name, POINTER(_Tensor)) for name in ("router", "rows")] + [
                    (name, c_void_p) for name in ("direction", "image_norm", "statuses")] + [
                    (name, POINTER(_Tensor)) for name in ("grad_rows", "grad_router", "grad_gates")]


class _Carrier(Structure):
    _fields_ = [("rank", c_int64), ("size", c_int64), ("gather", _GATHER)]


_libraries = {}


def _library(device: torch.device):
    kind = device.type
    if kind not in _libraries:
        variable, name = {"cuda": ("MPI_ROUTER_LIBRARY", "libmpi_router_sharded.so"),
                          "cpu": ("MPI_ROUTER_CPU_LIBRARY", "libmpi_router_sharded_cpu.so")}[kind]
        library = ctypes.CDLL(os.environ.get(variable, str(pathlib.Path(__file__).with_name(name))))
        library.mpi_router_sharded_error.restype = ctypes.c_char_p
        if kind == "cuda":
            library.mpi_router_sharded_context.restype = c_void_p
            library.mpi_router_sharded_workspace.restype = c_int64
        else:
            library.mpi_router_sharded_tape.restype = c_int64
            library.mpi_router_sharded_tape.argtypes = [c_int64, c_int64]
        _libraries[kind] = library
    return _libraries[kind]


def _describe(t: Tensor):
    three = lambda x: _triple(*x, *(0 for _ in range(3 - len(x))))
    return ctypes.pointer(_Tensor(t.data_ptr(), three(tuple(t.shape)), three(t.stride()), _TYPES[t.dtype]))


# ---- Where a rank's part lies -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """Where the tensor that this rank holds lies in [N, F, D], and who holds the rest.

    first_expert, first_neuron: of the first element; of a flat [N * F, D], is_rows: first_neuron is its first row.
    most_experts: the most experts that any rank has a part of. groups: whose all-gathers, one within the other, bring
    the parts of all ranks; order: that of the ranks by their parts, or None where it is theirs. Make it with
    part_of() or part_in_group().
    """

    whole: tuple
    first_expert: int
    first_neuron: int
    is_rows: bool
    most_experts: int
    groups: tuple
    rank: int
    size: int
    order: Optional[tuple] = None
    key: str = ""


_parts = {}  # by their keys, for operators that torch.compile sees, which take no objects


def _kept(part: Part) -> Part:
    part = dataclasses.replace(part, key=f"part {len(_parts)}")
    _parts[part.key] = part
    return part


def _chunk(first: int, size: int, parts: int, index: int):
    """As torch.chunk, and so DTensor and FSDP, cut: pieces of the same size, the last ones smaller or empty."""
    step = -(-size // parts)
    begin = min(step * index, size)
    return first + begin, min(step, size - begin)


def _experts_of(place, ffn: int, is_rows: bool) -> int:
    (first_expert, experts), (first_neuron, neurons) = place
    if not is_rows:
        return experts if neurons > 0 else 0
    return 0 if experts == 0 else (first_expert + experts - 1) // ffn - first_expert // ffn + 1


def _part(whole, places, is_rows: bool, groups, rank: int) -> Part:
    """places: ((first, count) of experts or rows, (first, count) of neurons) of each rank."""
    n, f, _ = whole
    key = lambda r: (places[r][0][0], places[r][1][0], places[r][0][1] * max(places[r][1][1], 1) > 0, r)
    order = sorted(range(len(places)), key=key)
    mine = places[rank]
    return _kept(Part(tuple(whole), 0 if is_rows else mine[0][0], mine[0][0] if is_rows else mine[1][0], is_rows,
                      max(1, max(_experts_of(p, f, is_rows) for p in places)), tuple(groups), order.index(rank),
                      len(places), None if order == list(range(len(places))) else tuple(order)))


_cached = {}


def part_of(parameter, num_experts: Optional[int] = None) -> Part:
    """The part of a DTensor [N, F, D], or of a flat [N * F, D] with num_experts, with placements Shard(0), Shard(1)
    and Replicate on a mesh of any number of axes. Throws ValueError on other placements."""
    from torch.distributed.tensor import Replicate, Shard

    mesh, placements, shape = parameter.device_mesh, tuple(parameter.placements), tuple(parameter.shape)
    remembered = (id(mesh), placements, shape, num_experts)
    if remembered in _cached and _cached[remembered][0] is mesh:
        return _cached[remembered][1]
    is_rows = len(shape) == 2
    if is_rows and (num_experts is None or shape[0] % num_experts != 0):
        raise ValueError(f"sharded_router_rows: a flat {shape} needs num_experts, which divide its rows")
    whole = (num_experts, shape[0] // num_experts, shape[1]) if is_rows else shape
    axes = []  # of the mesh, that cut: (axis, dimension, is it cut after the others)
    for axis, placement in enumerate(placements):
        if isinstance(placement, Replicate):
            continue
        strided = type(placement).__name__ == "_StridedShard"
        dim = getattr(placement, "dim", None)
        if not (isinstance(placement, Shard) or strided) or dim not in ((0,) if is_rows else (0, 1)):
            raise ValueError(f"sharded_router_rows: a parameter {shape} with {placements}: Shard(0)"
                             f"{'' if is_rows else ' or Shard(1)'} and Replicate are taken")
        axes.append((axis, dim, strided))
    sizes = [mesh.size(axis) for axis, _, _ in axes]
    total = math.prod(sizes)

    def place(rank: int):
        index, rest = [0] * len(axes), rank
        for k in reversed(range(len(axes))):
            rest, index[k] = divmod(rest, sizes[k])
        cuts = [(0, shape[0]), (0, whole[1])]
        # FSDP over another sharding of the same dimension: its _StridedShard comes first in the mesh, and cuts last.
        for k in sorted(range(len(axes)), key=lambda k: axes[k][2]):
            dim = axes[k][1]
            cuts[dim] = _chunk(*cuts[dim], sizes[k], index[k])
        return tuple(cuts)

    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ValueError("sharded_router_rows: this rank is not in the mesh of the parameter")
    rank = 0
    for (axis, _, _), size in zip(axes, sizes):
        rank = rank * size + coordinate[axis]
    places = [place(r) for r in range(total)]
    local = tuple(parameter.to_local().shape)
    mine = (places[rank][0][1],) + (() if is_rows else (places[rank][1][1],))
    if local[:len(mine)] != mine and 0 not in local:
        raise ValueError(f"sharded_router_rows: the local part of {shape} with {placements} is {local}, not {mine}: cut "
                         "unevenly, it needs part_in_group()")
    part = _part(whole, places, is_rows, [mesh.get_group(axis) for axis, _, _ in axes], rank)
    _cached[remembered] = (mesh, part)
    return part


def part_in_group(local: Tensor, dim: int, group=None, num_experts: Optional[int] = None) -> Part:
    """The part of a local tensor in a group whose ranks have one piece after the other along `dim`, of any sizes:
    whole experts (0) or neurons (1) of [N, F, D], or, with num_experts, rows (0) of [N * F, D]. Asks the group once."""
    group = group if group is not None else dist.group.WORLD
    is_rows = local.dim() == 2
    if dim not in ((0,) if is_rows else (0, 1)):
        raise ValueError(f"sharded_router_rows: pieces along axis {dim} of a tensor of {local.dim()} axes")
    counts = [None] * dist.get_world_size(group)
    dist.all_gather_object(counts, int(local.shape[dim]), group=group)
    first = [sum(counts[:r]) for r in range(len(counts) + 1)]
    if is_rows:
        if num_experts is None or first[-1] % num_experts != 0:
            raise ValueError(f"sharded_router_rows: {first[-1]} rows need num_experts, which divide them")
        whole = (num_experts, first[-1] // num_experts, local.shape[1])
    else:
        whole = tuple(first[-1] if axis == dim else int(local.shape[axis]) for axis in range(3))
    along = [(first[r], counts[r]) for r in range(len(counts))]
    every = (0, whole[1 - dim])
    places = [(cut, (0, whole[1])) if dim == 0 else (every, cut) for cut in along]
    return _part(whole, places, is_rows, [group], dist.get_rank(group))


# ---- The messages -------------------------------------------------------------------------------------------------------


def _gather_once(mine: Tensor, group) -> Tensor:
    size = dist.get_world_size(group)
    if mine.is_cuda and dist.get_backend(group) == "gloo":  # over the host's memory, which waits
        return _gather_once(mine.cpu(), group).to(mine.device)
    out = mine.new_empty(size * mine.numel())
    if dist.get_backend(group) == "nccl":
        dist.all_gather_into_tensor(out, mine, group=group)
    else:
        dist.all_gather(list(out.split(mine.numel())), mine, group=group)
    return out


class _Messages:
    """Carries the library's messages over the groups of a part. `memory`: what device pointers point into."""

    def __init__(self, part: Part, memory: Optional[Tensor]):
        self.part, self.memory, self.error = part, memory, None
        self.c = _Carrier(part.rank, part.size, _GATHER(self._gather))

    def _view(self, pointer: int, count: int, dtype) -> Tensor:
        size = count * (8 if dtype == torch.float64 else 4)
        if self.memory is not None:
            at = pointer - self.memory.data_ptr()
            return self.memory[at:at + size].view(dtype)
        return torch.frombuffer((ctypes.c_char * size).from_address(pointer), dtype=dtype)

    def _gather(self, count, doubles, mine, all_of_them):
        try:
            if count == 0:
                return 0
            dtype = torch.float64 if doubles else torch.float32
            parts = self._view(mine, count, dtype)
            for group in reversed(self.part.groups):
                parts = _gather_once(parts, group)
            if self.part.order is not None:
                by_rank = parts.view(self.part.size, count)
                parts = torch.cat([by_rank[r] for r in self.part.order])
            self._view(all_of_them, count * self.part.size, dtype).copy_(parts)
            return 0
        except BaseException as error:  # not to pass through C
            self.error = error
            return 1

    def check(self, library, result: int):
        if self.error is not None:
            raise self.error
        if result != 0:
            raise RuntimeError(library.mpi_router_sharded_error().decode())


# ---- The step and its gradient ------------------------------------------------------------------------------------------

_contexts = {}


def _layers(gates: List[Tensor], routers: List[Tensor], parts: List[Part], **more):
    """As C has them; `more`: lists of tensors, or of pointers to what a forward keeps."""
    layers = (_Layer * len(gates))()
    for i, (g, r, p) in enumerate(zip(gates, routers, parts)):
        layers[i] = _Layer(_describe(g), _triple(*p.whole), p.first_expert, p.first_neuron, int(p.is_rows), p.most_experts,
                           _describe(r))
        for name, values in more.items():
            pointer = name in ("direction", "image_norm", "statuses")
            setattr(layers[i], name, values[i].data_ptr() if pointer else _describe(values[i]))
    return layers


def _run(forward: bool, layers, gates: Tensor, part: Part, radius: float, saved: List[Tensor], add: bool, split: bool):
    library, count = _library(gates.device), len(layers)
    if not gates.is_cuda:
        messages = _Messages(part, None)
        if forward:
            result = library.mpi_router_sharded_forward(byref(messages.c), layers, count, c_double(radius),
                                                        c_void_p(saved[0].data_ptr()))
        else:
            result = library.mpi_router_sharded_backward(byref(messages.c), layers, count, c_double(radius), int(add),
                                                         int(split), c_void_p(saved[0].data_ptr()))
        return messages.check(library, result)
    with torch.cuda.device(gates.device):
        context = _contexts.get(gates.device.index)
        if context is None:
            context = _contexts[gates.device.index] = c_void_p(library.mpi_router_sharded_context())
        size = library.mpi_router_sharded_workspace(context, layers, count, c_int64(part.size), int(not forward), int(add),
                                                    int(split))
        if size < 0:
            raise RuntimeError(library.mpi_router_sharded_error().decode())
        memory = torch.empty(size, dtype=torch.uint8, device=gates.device)
        messages = _Messages(part, memory)
        stream = c_void_p(torch.cuda.current_stream().cuda_stream)
        tail = (c_void_p(memory.data_ptr()), c_int64(size))
        if forward:
            result = library.mpi_router_sharded_forward(context, stream, byref(messages.c), layers, count,
                                                        c_double(radius), *tail)
        else:
            result = library.mpi_router_sharded_backward(context, stream, byref(messages.c), layers, count,
                                                         c_double(radius), int(add), int(split), *tail)
        messages.check(library, result)


def _saved_of(gates: Tensor, routers: List[Tensor]) -> List[Tensor]:
    """What a backward needs: on a GPU direction, |rM| and statuses of each layer, on the host one tape."""
    if not gates.is_cuda:
        n, d = sum(r.shape[0] for r in routers), routers[0].shape[1]
        wide = torch.float64 if torch.float64 in (gates.dtype, routers[0].dtype) else torch.float32
        return [gates.new_empty(_library(gates.device).mpi_router_sharded_tape(n, d), dtype=wide)]
    saved = []
    for r in routers:
        n, d = r.shape
        saved += [r.new_empty(n, d, dtype=torch.float32), r.new_empty(n, dtype=torch.float64),
                  r.new_empty(n, dtype=torch.uint8)]
    return saved


def _kept_on_gpu(gates: Tensor, saved):
    if not gates.is_cuda:
        return {}
    return {"direction": saved[0::3], "image_norm": saved[1::3], "statuses": saved[2::3]}


def _forward(gates, routers, parts, radius):
    rows = [r.new_empty(r.shape) for r in routers]
    saved = _saved_of(gates[0], routers)
    layers = _layers(gates, routers, parts, rows=rows, **_kept_on_gpu(gates[0], saved))
    _run(True, layers, gates[0], parts[0], radius, saved, False, False)
    return rows, saved


def _backward(gates, routers, parts, grad_rows, saved, radius, grad_gates, add, split):
    grad_rows = [g.to(r.dtype) for g, r in zip(grad_rows, routers)]
    grad_routers = [torch.empty_like(r, memory_format=torch.contiguous_format) for r in routers]
    layers = _layers(gates, routers, parts, grad_rows=grad_rows, grad_router=grad_routers, grad_gates=grad_gates,
                     **_kept_on_gpu(gates[0], saved))
    _run(False, layers, gates[0], parts[0], radius, saved, add, split)
    return grad_routers


class _Step(torch.autograd.Function):
    """tensors: gates, routers, and the parameters themselves where their gradient goes into main_grads, so that
    autograd comes by."""

    @staticmethod
    def forward(ctx, parts, radius, main_grads, split, *tensors):
        count = len(parts)
        gates, routers = list(tensors[:count]), list(tensors[count:2 * count])
        rows, saved = _forward(gates, routers, parts, radius)
        ctx.save_for_backward(*gates, *routers, *saved)
        ctx.parts, ctx.radius, ctx.main_grads, ctx.split, ctx.inputs = parts, radius, main_grads, split, len(tensors)
        return tuple(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grad_rows):
        count = len(ctx.parts)
        gates, routers = list(ctx.saved_tensors[:count]), list(ctx.saved_tensors[count:2 * count])
        add = ctx.main_grads is not None
        grad_gates = ctx.main_grads if add else [torch.empty_like(g) for g in gates]
        grad_routers = _backward(gates, routers, ctx.parts, grad_rows, ctx.saved_tensors[2 * count:], ctx.radius,
                                 grad_gates, add, ctx.split)
        if add and hasattr(torch.autograd.graph, "increment_version"):
            for g in ctx.main_grads:
                torch.autograd.graph.increment_version(g)
        gradients = [*([None] * count if add else grad_gates), *grad_routers]
        return None, None, None, None, *gradients, *([None] * (ctx.inputs - 2 * count))


def _three(saved: List[Tensor]):
    return *saved, *(saved[0].new_empty(0) for _ in range(3 - len(saved)))


if hasattr(torch.library, "custom_op"):  # PyTorch 2.4 and newer: opaque to torch.compile

    @torch.library.custom_op("mpi_router::sharded_step", mutates_args=())
    def _step(gates: Tensor, router: Tensor, key: str, radius: float,
              split: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, saved = _forward([gates], [router], [_parts[key]], radius)
        return rows[0], *_three(saved)

    @_step.register_fake
    def _(gates, router, key, radius, split):
        return router.new_empty(router.shape), *_three(_saved_of(gates, [router]))

    @torch.library.custom_op("mpi_router::sharded_step_vjp", mutates_args=())
    def _step_vjp(gates: Tensor, router: Tensor, grad_rows: Tensor, first: Tensor, second: Tensor, third: Tensor,
                  key: str, radius: float, split: bool) -> tuple[Tensor, Tensor]:
        grad_gates = torch.empty_like(gates)
        grad_router = _backward([gates], [router], [_parts[key]], [grad_rows], [first, second, third], radius,
                                [grad_gates], False, split)
        return grad_gates, grad_router[0]

    @_step_vjp.register_fake
    def _(gates, router, grad_rows, first, second, third, key, radius, split):
        return torch.empty_like(gates), torch.empty_like(router, memory_format=torch.contiguous_format)

    def _keep(ctx, inputs, output):
        gates, router, ctx.key, ctx.radius, ctx.split = inputs
        ctx.save_for_backward(gates, router, *output[1:])

    def _pull_back(ctx, grad_rows, *_):
        gates, router, *saved = ctx.saved_tensors
        grad_gates, grad_router = _step_vjp(gates, router, grad_rows, *saved, ctx.key, ctx.radius, ctx.split)
        return grad_gates, grad_router, None, None, None

    _step.register_autograd(_pull_back, setup_context=_keep)


# ---- The operator -------------------------------------------------------------------------------------------------------


def _is_dtensor(t) -> bool:
    return DTensor is not None and isinstance(t, DTensor)


class _LocalPart(torch.autograd.Function):
    """to_local() whose gradient has the strides of the parameter. PyTorch's own (2.11) takes them from the local part,
    which misleads where it is cut unevenly along another dimension than the first: autograd then copies the gradient
    into one that is whole on every rank."""

    @staticmethod
    def forward(ctx, t):
        ctx.kind = (t.device_mesh, t.placements, t.shape, t.stride())
        return t.to_local()

    @staticmethod
    def backward(ctx, gradient):
        mesh, placements, shape, stride = ctx.kind
        return DTensor.from_local(gradient, mesh, placements, run_check=False, shape=shape, stride=stride)


def _is_cut_unevenly(t) -> bool:
    return any(p.is_shard() and p.dim > 0 and t.shape[p.dim] % t.device_mesh.size(axis) != 0
               for axis, p in enumerate(t.placements))


def _local(t) -> Tensor:
    if not _is_dtensor(t):
        return t
    return _LocalPart.apply(t) if t.requires_grad and _is_cut_unevenly(t) else t.to_local()


def _check(gates: Tensor, router: Tensor, part: Part):
    n, f, d = part.whole
    types = _GPU_TYPES if gates.is_cuda else _TYPES
    if gates.dtype not in types or router.dtype not in types:
        raise ValueError(f"sharded_router_rows: gates in {gates.dtype} and a router in {router.dtype} on {gates.device}")
    if tuple(router.shape) != (n, d) or gates.shape[-1] != d or gates.device != router.device:
        raise ValueError(f"sharded_router_rows: router {tuple(router.shape)} on {router.device} for a part "
                         f"{tuple(gates.shape)} on {gates.device} of experts {(n, f, d)}")


def _main_grad(parameter, given, local: Tensor):
    buffer = given if given is not None else getattr(parameter, "main_grad", None)
    if buffer is None or not parameter.requires_grad:
        return None
    buffer = buffer.to_local() if _is_dtensor(buffer) else buffer
    if buffer.shape != local.shape or buffer.device != local.device or buffer.dtype not in (torch.float32, local.dtype):
        raise ValueError(f"sharded_router_rows: main_grad {buffer.dtype} {tuple(buffer.shape)} on {buffer.device} for a "
                         f"part {local.dtype} {tuple(local.shape)} on {local.device}")
    return buffer


def sharded_router_rows(gates, router, part=None, *, radius: Optional[float] = None, main_grad=None,
                        split_tokens: bool = False, num_experts: Optional[int] = None):
    """C * rM / |rM| for each expert of all ranks [N, D], in the type of the router; C is `radius`, by default
    4 / sqrt(N). See the head of this file. Of lists of gates and routers (and parts, and main_grads): a list."""
    if not isinstance(gates, (list, tuple)):
        return sharded_router_rows([gates], [router], None if part is None else [part], radius=radius,
                                   main_grad=None if main_grad is None else [main_grad], split_tokens=split_tokens,
                                   num_experts=num_experts)[0]
    if len(gates) == 0:
        return []
    compiling = _is_compiling()
    if part is None:
        if compiling or not all(map(_is_dtensor, gates)):
            raise ValueError("sharded_router_rows: plain tensors, and all under torch.compile, need a part: part_of(…) of "
                             "a DTensor, part_in_group(…)")
        part = [part_of(g, num_experts) for g in gates]
    locals_ = [_local(g) for g in gates]
    routers = [r.full_tensor() if _is_dtensor(r) else r for r in router]
    for g, r, p in zip(locals_, routers, part):
        _check(g, r, p)
    if radius is None:
        if any(p.whole[0] != part[0].whole[0] for p in part):
            raise ValueError("sharded_router_rows: layers with other numbers of experts need a radius")
        radius = 4 / math.sqrt(max(part[0].whole[0], 1))
    if compiling:
        if len(gates) > 1 or main_grad is not None:
            raise ValueError("sharded_router_rows: under torch.compile one layer a call, and no main_grad")
        return [_step(locals_[0], routers[0], part[0].key, float(radius), split_tokens)[0]]
    buffers = [_main_grad(g, None if main_grad is None else main_grad[i], locals_[i]) for i, g in enumerate(gates)]
    if any(b is None for b in buffers) != all(b is None for b in buffers):
        raise ValueError("sharded_router_rows: some of the layers have a main_grad, others none")
    if buffers[0] is None:
        return list(_Step.apply(list(part), float(radius), None, split_tokens, *locals_, *routers))
    locals_ = [l.detach() for l in locals_]
    return list(_Step.apply(list(part), float(radius), buffers, split_tokens, *locals_, *routers, *gates))
