"""A router as a module: rows, logits, and the choice of experts."""

from typing import Callable, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from .layouts import Gates
from .rows import router_rows

# Logarithms of scores, so that weights can be renormalized at any depth.
LOG_SCORES = {
    "softmax": lambda x: x.log_softmax(-1),
    "sigmoid": nn.functional.logsigmoid,
    "sqrtsoftplus": lambda x: 0.5 * nn.functional.softplus(x.clamp(min=-80)).log(),
}


class MpiRouter(nn.Module):
    """A MoE router by Manifold Power Iteration: `weight` [N, D] is the parameter r, tokens are compared with r′.

        router = MpiRouter(hidden_dim, num_experts, top_k=2, gates=lambda: experts.gate_proj)
        weights, experts = router(tokens)                  # [T, K] and [T, K]
        logits = router.logits(tokens)                     # [T, N], float32 (float64 of float64)

    gates: what router_rows takes, or a function that returns it, asked at every call; or given to the calls. It is no
    part of the module: its parameters are the experts', and so is state_dict. With top_k=None forward returns logits.
    score_function: softmax, sigmoid or sqrtsoftplus; order: "score_then_select" or "select_then_score"; renormalize:
    weights of a token sum to one, by default where top_k > 1; scaling_factor multiplies them last; n_group,
    topk_group: groups of experts, a token may choose from the best of them, by the sum of their two best experts.
    These are the options of the gate in core/gating_options.hpp, which has those of released models.
    selection_bias=True: a buffer [N], e_score_correction_bias, added to what experts are selected by. radius, steps:
    as for router_rows. Logits are made in float32.
    """

    def __init__(self, hidden_dim: int, num_experts: int, top_k: Optional[int] = 2, *,
                 gates: Union[Gates, Callable[[], Gates], None] = None, radius: Optional[float] = None, steps: int = 1,
                 score_function: str = "softmax", order: str = "score_then_select", renormalize: Optional[bool] = None,
                 scaling_factor: float = 1.0, n_group: int = 1, topk_group: int = 1, selection_bias: bool = False,
                 device=None, dtype=None):
        super().__init__()
        _expect_gating(num_experts, top_k, score_function, order, n_group, topk_group)
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_dim, device=device, dtype=dtype))
        nn.init.normal_(self.weight, std=hidden_dim**-0.5)
        bias = torch.zeros(num_experts, device=device, dtype=torch.float32) if selection_bias else None
        self.register_buffer("e_score_correction_bias", bias)
        self.top_k, self.radius, self.steps = top_k, radius, steps
        self.score_function, self.order, self.scaling_factor = score_function, order, scaling_factor
        self.renormalize = (top_k or 0) > 1 if renormalize is None else renormalize
        self.n_group, self.topk_group = n_group, topk_group
        self._gates = (gates,)  # in a tuple, so that they do not become parameters of this module

    def rows(self, gates: Optional[Gates] = None) -> Tensor:
        """r′ [N, D]."""
        gates = self._gates[0] if gates is None else gates
        if gates is None:
            raise ValueError("MpiRouter: no gates, neither at its construction nor in the call")
        return router_rows(gates() if callable(gates) else gates, self.weight, radius=self.radius, steps=self.steps)

    def logits(self, tokens: Tensor, gates: Optional[Gates] = None) -> Tensor:
        """x · r′ of tokens [..., D] and all experts, [T, N]."""
        d = self.weight.shape[1]
        if tokens.dim() < 1 or tokens.shape[-1] != d:
            raise ValueError(f"MpiRouter: tokens are {tuple(tokens.shape)}, not [..., {d}]")
        sums = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        return tokens.reshape(-1, d).to(sums) @ self.rows(gates).to(sums).T

    def forward(self, tokens: Tensor, gates: Optional[Gates] = None) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """Weights and ids of the top_k experts of each token, [T, K] each, best first; or logits, where top_k is None."""
        logits = self.logits(tokens, gates)
        return logits if self.top_k is None else self.select(logits)

    def select(self, logits: Tensor) -> Tuple[Tensor, Tensor]:
        """The gate (Eq. 6): weights and ids for logits [T, N]."""
        log_score = LOG_SCORES[self.score_function]
        if self.order == "score_then_select":
            logs = log_score(logits)
            experts = self._best(logs.detach().exp()).topk(self.top_k, dim=-1).indices
            logs = logs.gather(-1, experts)
        else:
            experts = self._best(logits.detach()).topk(self.top_k, dim=-1).indices
            logs = log_score(logits.gather(-1, experts))
        weights = logs.softmax(-1) if self.renormalize else logs.exp()
        return weights * self.scaling_factor, experts

    def _best(self, values: Tensor) -> Tensor:
        """What experts are selected by: with the bias, and -inf outside of a token's groups."""
        if self.e_score_correction_bias is not None:
            values = values + self.e_score_correction_bias.to(values.dtype)
        if self.topk_group == self.n_group:
            return values
        grouped = values.unflatten(-1, (self.n_group, -1))
        worth = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        closed = torch.ones_like(worth, dtype=torch.bool)
        closed.scatter_(-1, worth.topk(self.topk_group, dim=-1).indices, False)
        return grouped.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(-2)

    def extra_repr(self) -> str:
        n, d = self.weight.shape
        return f"hidden_dim={d}, num_experts={n}, top_k={self.top_k}, radius={self.radius}, steps={self.steps}"


def _expect_gating(num_experts, top_k, score_function, order, n_group, topk_group):
    def expect(condition, text):
        if not condition:
            raise ValueError("MpiRouter: " + text)

    expect(score_function in LOG_SCORES, f"score_function is {score_function!r}, which is none of {', '.join(LOG_SCORES)}")
    expect(order in ("score_then_select", "select_then_score"), f"order is {order!r}")
    expect(n_group >= 1 and num_experts % n_group == 0,
           f"{num_experts} experts do not fall into n_group = {n_group} groups")
    expect(1 <= topk_group <= n_group, f"topk_group is {topk_group} of n_group = {n_group}")
    open_experts = topk_group * (num_experts // n_group)
    expect(top_k is None or 1 <= top_k <= open_experts, f"top_k is {top_k}, and a token chooses from {open_experts} experts")
