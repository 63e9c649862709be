"""MPI routers for whole models: the parameter `weight` of a router stays what and where it was, and its forward reads r′.

convert gives the router module a class of its own, a subclass of the one that it had, in which `weight` is a property
that returns the rows made from the parameter and the experts beside it. The forward is the model's own; parameters,
their names, state_dict, save_pretrained and optimizers see the parameter.
"""

import dataclasses
import inspect
import types
import warnings
from typing import Iterator, List, Optional, Tuple

import torch
from torch import Tensor, nn

from .layouts import Gates, gates_of
from .rows import router_rows

# Gate matrices of all experts in one parameter: its name, and whether up projections are in it too.
STACKED = {"gate_up_proj": True, "gate_proj": False, "w1": False, "w1_EFD": False, "input_linear": True, "fc1": True}
# Of experts that are modules of a list: the name of the linear layer.
LISTED = {"gate_proj": False, "w1": False, "gate_up_proj": True}
ROUTERS = ("gate", "router", "gating")
# Classes of transformers whose layout was read in their code; of others what was assumed is said.
KNOWN = ("Mixtral", "Olmoe", "Qwen3Moe", "DeepseekV3", "GptOss")
INTERLEAVED = ("GptOss",)


@dataclasses.dataclass
class MoeLayer:
    """A router and its experts, as find_moe_layers found them."""

    router_name: str  # of the module in the model
    gates_name: str  # of the parameter, {} for the number of an expert
    layout: str  # of it, as gates_of names them
    shape: Tuple[int, int, int]  # N, F, D
    assumed: Tuple[str, ...]  # what neither the class nor the shapes say
    router: nn.Module
    experts: List[Tuple[nn.Module, str]]  # modules and the names of their parameters: one, or one for each expert
    radius: Optional[float] = None
    steps: int = 1
    through: str = "all"
    plain_class: Optional[type] = dataclasses.field(default=None, repr=False)  # of the router before it was converted
    own_class: Optional[type] = dataclasses.field(default=None, repr=False)  # and since

    def gates(self) -> Gates:
        """The gate matrices as they are now, views of the model's parameters."""
        weights = [getattr(module, name) for module, name in self.experts]
        return gates_of(weights[0] if weights[0].dim() == 3 else weights, self.layout)

    def rows(self, statuses: bool = False):
        """r′ from the parameter and the gates as they are now."""
        return router_rows(self.gates(), self.router._parameters["weight"], radius=self.radius, steps=self.steps,
                           through=self.through, statuses=statuses)

    def __str__(self) -> str:
        n, f, d = self.shape
        text = f"{self.router_name}.weight [{n}, {d}], {self.gates_name} {self.layout}, F = {f}"
        return text + (f"; assumed: {', '.join(self.assumed)}" if self.assumed else "")


# ---- Convert and bake ----------------------------------------------------------------------------------------

def convert(model: nn.Module, *, radius: Optional[float] = None, steps: int = 1, through: str = "all") -> List[MoeLayer]:
    """Gives all MoE layers of a model MPI routers, in place. Returns them; print one to see what was found.

    From then on every forward compares tokens with r′ = C rM/|rM| of its router and the experts beside it, and
    gradients flow into both. The parameters, their names and state_dict do not change, so that save_pretrained writes
    r; convert the model again after loading it. radius, steps, through: as for router_rows; C is by default 4/√N.
    What the code of a class does not say is assumed and warned of. Raises ValueError, and changes nothing, for a model
    that has experts which are not understood, or none, or is converted.
    """
    layers = find_moe_layers(model)
    for layer in layers:
        layer.radius, layer.steps, layer.through = radius, steps, through
        layer.rows()  # refuses here what every forward would
    for layer in layers:
        if layer.assumed:
            warnings.warn(f"mpi_router_torch: {layer}", stacklevel=2)
        router = layer.router
        router.__dict__["_mpi_router"] = layer  # no submodule: the experts stay where they are
        layer.plain_class, layer.own_class = type(router), _converted(type(router))
        router.__class__ = layer.own_class
    return layers


def bake(model: nn.Module) -> List[MoeLayer]:
    """Writes r′ into the parameters of the routers that convert converted, and makes them what they were: the model
    computes the same, and its forward pays nothing. Returns the layers. Rows without a step become zero, as they were
    in every forward, and are warned of. Raises ValueError where nothing is converted."""
    layers = [module._mpi_router for module in model.modules() if "_mpi_router" in module.__dict__]
    if not layers:
        raise ValueError(f"bake: no router of this {type(model).__name__} is converted")
    for layer in layers:
        if type(layer.router) is not layer.own_class:
            raise ValueError(f"bake: {layer.router_name} was given another class since it was converted, "
                             f"{type(layer.router).__name__}")
    with torch.no_grad():
        made = [layer.rows(statuses=True) for layer in layers]  # all, before the first is written
        for layer, (rows, statuses) in zip(layers, made):
            if statuses.any():
                bad = statuses.nonzero().flatten().tolist()
                warnings.warn(f"bake: {layer.router_name}: rows {bad} have no step and become zero", stacklevel=2)
            router = layer.router
            router._parameters["weight"].copy_(rows)
            router.__class__ = layer.plain_class
            del router.__dict__["_mpi_router"]
    return layers


def _rows_of(router: nn.Module) -> Tensor:
    try:
        return router._mpi_router.rows()
    except AttributeError as error:  # or nn.Module would look further, and find the parameter
        raise RuntimeError(f"mpi_router_torch: the rows of this {type(router).__name__} cannot be made: {error}") from error


def _converted(cls: type) -> type:
    return type(cls.__name__, (cls,), {"weight": property(_rows_of), "__module__": cls.__module__, "__doc__": cls.__doc__})


# ---- Find ----------------------------------------------------------------------------------------------------

def find_moe_layers(model: nn.Module) -> List[MoeLayer]:
    """The routers and experts of a model, by the names and shapes of its modules; nothing is changed.

    Raises ValueError, with the class of the model, names and shapes, where experts have no gate matrix, no one router
    with a row for each of them, or a layout that shapes and classes leave open; where there are no experts; and where
    the model is converted.
    """
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if "_mpi_router" in module.__dict__:
            raise ValueError(f"{type(model).__name__}: {name} is converted already")
    try:
        found = list(_all_experts(modules))
        layers = [_layer_of(modules, experts, [other.name for other in found if other is not experts]) for experts in found]
    except ValueError as error:
        raise ValueError(f"{type(model).__name__}: {error}") from None
    if not layers:
        raise ValueError(f"{type(model).__name__}: no experts: no module called experts, and no parameter of three axes "
                         f"called {', '.join(STACKED)}")
    return layers


@dataclasses.dataclass
class _Experts:
    name: str
    module: nn.Module
    gates_name: str
    places: List[Tuple[nn.Module, str]]
    fused: bool


def _all_experts(modules) -> Iterator[_Experts]:
    for name, module in modules.items():
        last = name.rsplit(".", 1)[-1]
        if any(part.startswith("shared") for part in name.split(".")):
            continue
        experts = _stacked(name, last, module) or (_listed(name, module) if "expert" in last else None)
        if experts is not None:
            yield experts
        elif last == "experts" and not any(_stacked(f"{name}.{n}", n.rsplit(".", 1)[-1], m)
                                           for n, m in module.named_modules() if n):
            raise ValueError(f"{name} ({type(module).__name__}) has no gate matrices that are known: {_shapes(module)}")


def _stacked(name, last, module) -> Optional[_Experts]:
    for parameter, fused in STACKED.items():
        if _axes(module._parameters.get(parameter)) == 3:
            return _Experts(name, module, f"{name}.{parameter}", [(module, parameter)], fused)
    if last in STACKED and _axes(module._parameters.get("weight")) == 3:
        return _Experts(name, module, f"{name}.weight", [(module, "weight")], STACKED[last])
    return None


def _listed(name, module) -> Optional[_Experts]:
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)) or len(module) == 0:
        return None
    children = list(module.children())
    for linear, fused in LISTED.items():
        layers = [getattr(child, linear, None) for child in children]
        if all(isinstance(layer, nn.Module) and _axes(layer._parameters.get("weight")) == 2 for layer in layers):
            return _Experts(name, module, f"{name}.{{}}.{linear}.weight", [(layer, "weight") for layer in layers], fused)
    return None


def _layer_of(modules, experts: _Experts, others: List[str]) -> MoeLayer:
    weights = [getattr(module, name) for module, name in experts.places]
    for weight in weights:
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise ValueError(f"{experts.gates_name} is {weight.dtype} {tuple(weight.shape)}: packed weights are not "
                             f"multiplied here")
    n = len(weights) if weights[0].dim() == 2 else weights[0].shape[0]
    assumed: List[str] = []
    router_name = _router_of(modules, experts, others, n, assumed)
    router = modules[router_name]
    d = router._parameters["weight"].shape[1]
    layout = _layout_of(experts, weights[0], d, assumed)
    gates = gates_of(weights[0], layout)
    if not _reads_weight(type(router)) and not _reads_weight(type(modules[router_name.rpartition(".")[0]])):
        raise ValueError(f"{router_name} ({type(router).__name__}): no code of it names `weight`, so that nothing says "
                         f"where its forward takes the rows from")
    return MoeLayer(router_name, experts.gates_name, layout, (n, gates.shape[-2], gates.shape[-1]), tuple(assumed), router,
                    experts.places)


def _router_of(modules, experts: _Experts, others: List[str], n: int, assumed: List[str]) -> str:
    """The name of the module whose `weight` has a row for each expert, in the blocks around these experts alone."""
    for block in _blocks_around(experts.name, others):
        inside = f"{block}." if block else ""
        matrices = [name[len(inside):] for name, module in modules.items()
                    if name.startswith(inside) and not f"{name}.".startswith(experts.name + ".")
                    and _axes(module._parameters.get("weight")) == 2 and module._parameters["weight"].shape[0] == n]
        routers = [name for name in matrices if name.split(".")[0] in ROUTERS]
        if len(routers) > 1:
            raise ValueError(f"{experts.gates_name}: {', '.join(routers)} of {block} all have {n} rows, one for each expert")
        if not routers and len(matrices) == 1:
            routers = matrices
            assumed.append(f"{matrices[0]} is the router, the one matrix with {n} rows")
        if routers:
            return inside + routers[0]
    block = experts.name.rpartition(".")[0]
    raise ValueError(f"{experts.gates_name}: no router with a row for each of {n} experts in {block} "
                     f"({type(modules[block]).__name__}): {_shapes(modules[block], 2)}")


def _blocks_around(name: str, others: List[str]) -> Iterator[str]:
    """The block that the module is in and the one around that, as far as no other experts are in them."""
    for _ in range(min(2, name.count(".") + 1)):
        name = name.rpartition(".")[0]
        if any(other.startswith(f"{name}." if name else "") for other in others):
            return
        yield name


def _layout_of(experts: _Experts, weight: Tensor, d: int, assumed: List[str]) -> str:
    """A name in LAYOUTS, from the shape, what the module says of itself (is_transposed, is_concatenated), its class."""
    module = experts.module
    cls = type(module).__name__
    if d not in weight.shape[-2:]:
        raise ValueError(f"{experts.gates_name} is {tuple(weight.shape)}, and router rows have {d} numbers: no axis of it")
    transposed = _is_transposed(experts, weight, d, assumed)
    if weight.shape[-2 if transposed else -1] != d:
        raise ValueError(f"{experts.gates_name} is {tuple(weight.shape)}: {cls} says is_transposed = {transposed}, and "
                         f"router rows have {d} numbers")
    if not experts.fused:
        return "ndf" if transposed else "nfd"
    concatenated = getattr(module, "is_concatenated", None)
    if concatenated is None:
        concatenated = not cls.startswith(INTERLEAVED)
        if not cls.startswith(KNOWN):
            assumed.append("gates before ups, not interleaved")
    return ("nd2f" if transposed else "n2fd") + ("-concatenated" if concatenated else "-interleaved")


def _is_transposed(experts: _Experts, weight: Tensor, d: int, assumed: List[str]) -> bool:
    if weight.dim() == 2:
        return False  # nn.Linear: [out, in]
    said = getattr(experts.module, "is_transposed", None)
    if said is not None:
        return bool(said)
    if weight.shape[-1] != weight.shape[-2]:
        return weight.shape[-1] != d
    down = experts.module._parameters.get("down_proj")
    if experts.fused and _axes(down) == 3 and down.shape[-1] != down.shape[-2]:
        return down.shape[-1] == d
    raise ValueError(f"{experts.gates_name} is {tuple(weight.shape)}: nothing says which axis is D")


def _reads_weight(cls: type) -> bool:
    """Whether a method that a forward may call names `weight`."""
    others = ("__init__", "reset_parameters", "extra_repr")
    functions = (inspect.unwrap(f) for base in cls.__mro__ if base not in (nn.Module, object)
                 for name, f in vars(base).items() if inspect.isroutine(f) and name not in others)
    return any("weight" in _names(f.__code__) for f in functions if hasattr(f, "__code__"))


def _names(code: types.CodeType) -> set:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names, inner)) if code.co_consts else set(code.co_names)


def _axes(t) -> int:
    return t.dim() if isinstance(t, Tensor) else 0


def _shapes(module: nn.Module, axes: int = 0) -> str:
    found = [f"{name} {tuple(p.shape)}" for name, p in module.named_parameters() if not axes or p.dim() == axes]
    return ", ".join(found[:8]) + (", …" if len(found) > 8 else "") if found else "no parameters"
