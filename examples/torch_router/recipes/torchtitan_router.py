"""MPI routers in TorchTitan (read at b5bcd76, 2026-08-21): a subclass of TokenChoiceTopKRouter, and of the MoE that shows
it the experts.

    from torchtitan_router import use_mpi_routers
    use_mpi_routers(model_config)              # before it is built: every MoE in it; radius=C, by default 4/√N

Names, shapes and initialisation of parameters stay: router.gate.weight is r, and checkpoints are those of the usual
router. Pipeline stages, which deep-copy the model, keep router and experts of a copy together.

Where the experts are DTensors when the router runs (FSDP2 around the experts alone, expert or tensor parallelism),
the rows are made by sharded_router_rows of examples/torch_router, which gathers no weights; that way through
TorchTitan's own parallelize() was not run.
"""

import dataclasses
from dataclasses import dataclass

import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from torchtitan.models.common.linear import Linear
from torchtitan.models.common.moe import MoE, TokenChoiceTopKRouter

from mpi_router_torch import router_rows


class MpiGate(Linear):
    """The gate of a router, whose tokens meet r' in place of its weight r."""

    def forward(self, x):
        experts, radius = self.shown  # no attributes of their own, which would be submodules
        if isinstance(experts.w1_EFD, DTensor):
            from mpi_router_sharded import sharded_router_rows

            return F.linear(x, sharded_router_rows(experts.w1_EFD, self.weight, radius=radius), self.bias)
        return F.linear(x, router_rows(experts.w1_EFD, self.weight, radius=radius), self.bias)


class MpiTopKRouter(TokenChoiceTopKRouter):
    """TokenChoiceTopKRouter with the rows of Manifold Power Iteration."""

    @dataclass(kw_only=True, slots=True)
    class Config(TokenChoiceTopKRouter.Config):
        radius: float | None = None

    def __init__(self, config: Config):
        super().__init__(config)
        self.radius = config.radius
        self.gate.__class__ = MpiGate  # what the gate's own Config built, except its forward

    def show(self, experts):
        """The GroupedExperts whose w1_EFD are the gate matrices."""
        self.gate.shown = (experts, self.radius)


class MpiMoE(MoE):
    @dataclass(kw_only=True, slots=True)
    class Config(MoE.Config):
        pass

    def __init__(self, config: Config):
        super().__init__(config)
        self.router.show(self.routed_experts.inner_experts)


def _fields(config) -> dict:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}


def mpi_config(config: MoE.Config, radius: float | None = None) -> MpiMoE.Config:
    """The configuration of a MoE with an MPI router, from that of one with the usual router."""
    if type(config) is not MoE.Config or type(config.router) is not TokenChoiceTopKRouter.Config:
        raise ValueError(f"mpi_config: {type(config).__qualname__} with {type(config.router).__qualname__}, not MoE.Config "
                         f"with TokenChoiceTopKRouter.Config")
    return MpiMoE.Config(**{**_fields(config), "router": MpiTopKRouter.Config(**_fields(config.router), radius=radius)})


def use_mpi_routers(model_config, radius: float | None = None) -> int:
    """Puts MPI routers in the place of all usual ones of a model's configuration. Returns how many."""
    found = list(model_config.traverse(MoE.Config))
    for name, config, parent, where in found:
        made = mpi_config(config, radius)
        if parent is None:
            raise ValueError("use_mpi_routers: this is the configuration of a MoE itself: mpi_config makes another of it")
        if isinstance(where, int):
            parent[where] = made
        else:
            setattr(parent, where, made)
    return len(found)
