"""MPI routers in Megatron-Core (read at d98e8a6, 2026-08-22).

    MoESubmodules(experts=…, router=MpiTopKRouter)         # in the layer's spec
    show_experts(model)                                    # once, when the model is built, before or after DDP

`weight` of the router is r; the gate matrices are the first halves of linear_fc1.weight{i} [2F, D] of the experts here,
or of local_experts[i].linear_fc1.weight. With experts over ranks (EP) each rank makes the rows of its experts, and one
all-gather over the EP group, whose backward is a reduce-scatter, brings the others: N · D numbers.

Where gradients go: with gradient_accumulation_fusion, Transformer Engine adds the gradient of fc1 to weight.main_grad
by itself and sets weight.grad_added_to_main_grad, and then DDP drops weight.grad, with whatever autograd added
to it. So the operator adds its part to main_grad too. moe_mlp_glu_interleave_size = S stores S gates, S ups, …: no
strides say that, the gates are copied, and the gradient comes by autograd; weight.zero_out_wgrad = True makes Transformer
Engine fill its share of weight.grad with zeros and DDP add weight.grad in spite of the flag.
"""

import torch
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import router_gating_linear
from megatron.core.transformer.moe.router import TopKRouter

from mpi_router_torch import gates_of, router_rows


def fc1_weights(experts) -> list:
    """One parameter for each expert of this rank, [2F, D]: gates, then ups."""
    if hasattr(experts, "local_experts"):
        return [expert.linear_fc1.weight for expert in experts.local_experts]
    weights = []
    while hasattr(experts.linear_fc1, f"weight{len(weights)}"):
        weights.append(getattr(experts.linear_fc1, f"weight{len(weights)}"))
    if not weights or any(weight is None for weight in weights):
        raise ValueError(f"fc1_weights: {type(experts).__name__} has no linear_fc1.weight0, … and no local_experts")
    return weights


def interleaved_gates(weight: torch.Tensor, size: int) -> torch.Tensor:
    """A copy of the gates [F, D] of [2F, D] with `size` gates, `size` ups, and so on."""
    rows, d = weight.shape
    return weight.view(rows // (2 * size), 2, size, d)[:, 0].reshape(rows // 2, d)


class MpiTopKRouter(TopKRouter):
    """TopKRouter, whose tokens meet r' in place of weight."""

    radius = None  # C; by default 4/√N of all experts

    def show(self, experts, ep_group=None, first: int = 0):
        """The experts of this rank, of which `first` is the number of the first in the layer."""
        weights = fc1_weights(experts)
        if not self.config.gated_linear_unit:
            raise ValueError("MpiTopKRouter: gated_linear_unit is off: there are no gate matrices")
        if self.config.moe_mlp_glu_interleave_size is not None:
            for weight in weights:
                weight.zero_out_wgrad = True
        self.__dict__["shown"] = (experts, ep_group, first)  # no submodule: the experts stay where they are

    def rows(self) -> torch.Tensor:
        experts, ep_group, first = self.shown
        weights = fc1_weights(experts)
        size, sums = self.config.moe_mlp_glu_interleave_size, None
        if size is not None:
            gates = [interleaved_gates(weight, size) for weight in weights]
        else:
            gates = gates_of(weights, "n2fd-concatenated")
            if all(weight.requires_grad and hasattr(weight, "main_grad") for weight in weights):
                sums = gates_of([weight.main_grad for weight in weights], "n2fd-concatenated")
        mine = self.weight[first:first + len(weights)]
        rows = router_rows(gates, mine, radius=self.radius, total_experts=self.config.num_moe_experts, main_grad=sums)
        if len(weights) == self.config.num_moe_experts:
            return rows
        return gather_from_sequence_parallel_region(rows, group=ep_group)

    def gating(self, input: torch.Tensor) -> torch.Tensor:
        dtype = {"fp32": torch.float32, "fp64": torch.float64}.get(self.config.moe_router_dtype, input.dtype)
        return router_gating_linear(input, self.rows(), self.bias, dtype)


def show_experts(model: torch.nn.Module) -> int:
    """Shows every MpiTopKRouter the experts of its layer. Returns how many. Slices of experts (expert tensor
    parallelism) are refused: sharded_router_rows of examples/torch_router multiplies by them."""
    layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    for layer in layers:
        if layer.config.expert_tensor_parallel_size not in (None, 1):
            raise ValueError(f"show_experts: expert_tensor_parallel_size is {layer.config.expert_tensor_parallel_size}: "
                             f"each rank has a slice of every expert")
        layer.router.show(layer.experts, layer.ep_group, layer.local_expert_indices[0])
    return len(layers)
