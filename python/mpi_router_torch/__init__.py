"""Router rows by Manifold Power Iteration (arXiv 2606.12397) for PyTorch, on CPUs and GPUs, with gradients.

    rows = router_rows(gates, router)                # [N, D]: C rM/|rM| with M = AᵀA, A the gate matrix of each expert
    logits = tokens @ rows.T

    layers = convert(model)                          # a MoE model of transformers, in place; then train it
    bake(model)                                      # r' becomes the parameter: inference pays nothing

router_rows is the operator, gates_of the gate matrices of fused and interleaved parameters, GroupedGateProjection the grouped
product that takes the gradient of the rows along, MpiRouter a router as a module; convert, bake and find_moe_layers are for
whole models. Host memory goes through mpi_router.py, which lies beside this package, and the shared library of
mpi_router::c that it loads; docs/guide-pytorch.md says what GPUs need.
"""

from .grouped import GroupedGateProjection
from .layouts import LAYOUTS, gates_of
from .models import MoeLayer, bake, convert, find_moe_layers
from .module import MpiRouter
from .rows import router_rows

__all__ = ["LAYOUTS", "GroupedGateProjection", "MoeLayer", "MpiRouter", "bake", "convert", "find_moe_layers", "gates_of",
           "router_rows"]
