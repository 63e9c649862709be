"""Hand-written modules with the structure (classes' names, parameters' names, shapes, forwards) of MoE models of
transformers 5, for machines that have PyTorch alone."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class TopKRouter(nn.Module):
    """As MixtralTopKRouter, OlmoeTopKRouter and Qwen3MoeTopKRouter: `weight` [N, D]."""

    def __init__(self, n, d, top_k):
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.randn(n, d) * 0.1)

    def forward(self, x):
        logits = F.linear(x.reshape(-1, x.shape[-1]), self.weight)
        weights, experts = logits.float().softmax(-1).topk(self.top_k, dim=-1)
        return logits, (weights / weights.sum(-1, keepdim=True)).to(x.dtype), experts


class DeepseekV3TopkRouter(nn.Module):
    def __init__(self, n, d, top_k):
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.randn(n, d) * 0.1)
        self.register_buffer("e_score_correction_bias", torch.zeros(n))

    def forward(self, x):
        logits = F.linear(x.reshape(-1, x.shape[-1]).float(), self.weight.float())
        scores = logits.sigmoid()
        experts = (scores + self.e_score_correction_bias).topk(self.top_k, dim=-1).indices
        weights = scores.gather(1, experts)
        return logits, (2.5 * weights / weights.sum(-1, keepdim=True)).to(x.dtype), experts


class GptOssTopKRouter(nn.Module):
    def __init__(self, n, d, top_k):
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.randn(n, d) * 0.1)
        self.bias = nn.Parameter(torch.randn(n) * 0.1)

    def forward(self, x):
        logits = F.linear(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        weights, experts = logits.topk(self.top_k, dim=-1)
        return logits, weights.softmax(-1), experts


class MixtralExperts(nn.Module):
    def __init__(self, n, f, d):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(n, 2 * f, d) * 0.1)
        self.down_proj = nn.Parameter(torch.randn(n, d, f) * 0.1)

    def one(self, x, e):
        gate, up = F.linear(x, self.gate_up_proj[e]).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj[e])

    def forward(self, x, experts, weights):
        out = torch.zeros_like(x)
        for e in range(self.down_proj.shape[0]):
            token, place = (experts == e).nonzero(as_tuple=True)
            out = out.index_add(0, token, self.one(x[token], e) * weights[token, place, None])
        return out


class GptOssExperts(MixtralExperts):
    def __init__(self, n, f, d):
        nn.Module.__init__(self)
        self.gate_up_proj = nn.Parameter(torch.randn(n, d, 2 * f) * 0.1)
        self.gate_up_proj_bias = nn.Parameter(torch.randn(n, 2 * f) * 0.1)
        self.down_proj = nn.Parameter(torch.randn(n, f, d) * 0.1)
        self.down_proj_bias = nn.Parameter(torch.randn(n, d) * 0.1)

    def one(self, x, e):
        both = x @ self.gate_up_proj[e] + self.gate_up_proj_bias[e]
        gate, up = both[..., ::2], both[..., 1::2]
        return ((up + 1) * gate * torch.sigmoid(1.702 * gate)) @ self.down_proj[e] + self.down_proj_bias[e]


def named(name, base):
    return type(name, (base,), {"__module__": __name__})


class Mlp(nn.Module):
    """An expert of its own, as transformers 4 has them: three linear layers."""

    def __init__(self, f, d):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)
        self.down_proj = nn.Linear(f, d, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class ListedExperts(nn.ModuleList):
    def forward(self, x, experts, weights):
        out = torch.zeros_like(x)
        for e, expert in enumerate(self):
            token, place = (experts == e).nonzero(as_tuple=True)
            out = out.index_add(0, token, expert(x[token]) * weights[token, place, None])
        return out


class LinearRouter(nn.Linear):
    """A linear layer, as Mixtral had it before transformers 5."""

    def __init__(self, n, d, top_k):
        super().__init__(d, n, bias=False)
        self.top_k = top_k

    def forward(self, x):
        logits = super().forward(x.reshape(-1, x.shape[-1]))
        weights, experts = logits.softmax(-1).topk(self.top_k, dim=-1)
        return logits, weights, experts


class Block(nn.Module):
    def __init__(self, router, experts, attribute="gate", shared=None):
        super().__init__()
        setattr(self, attribute, router)
        self.experts = experts
        self.attribute = attribute
        if shared is not None:
            self.shared_experts = shared

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        logits, weights, experts = getattr(self, self.attribute)(flat)
        out = self.experts(flat, experts, weights).reshape(x.shape)
        return (out + self.shared_experts(x) if hasattr(self, "shared_experts") else out), logits


class Layer(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        out, logits = self.mlp(F.layer_norm(x, x.shape[-1:]))
        return x + out, logits


class Model(nn.Module):
    """Layers, and a linear head. Returns its output and the router's logits of every layer."""

    def __init__(self, blocks, d):
        super().__init__()
        self.config = SimpleNamespace(model_type="made up")
        self.layers = nn.ModuleList(Layer(block) for block in blocks)
        self.head = nn.Linear(d, 11, bias=False)

    def forward(self, x):
        logits = []
        for layer in self.layers:
            x, told = layer(x)
            logits.append(told)
        return self.head(x), logits


N, FFN, D, K = 4, 6, 10, 2


def model(kind, layers=2, n=N, f=FFN, d=D):
    """A model of a kind in KINDS."""
    make = {
        "mixtral": lambda: Block(TopKRouter(n, d, K), MixtralExperts(n, f, d)),
        "olmoe": lambda: Block(TopKRouter(n, d, K), named("OlmoeExperts", MixtralExperts)(n, f, d)),
        "qwen3_moe": lambda: Block(TopKRouter(n, d, K), named("Qwen3MoeExperts", MixtralExperts)(n, f, d)),
        "deepseek_v3": lambda: Block(DeepseekV3TopkRouter(n, d, K), named("DeepseekV3NaiveMoe", MixtralExperts)(n, f, d),
                                     shared=Mlp(f, d)),
        "gpt_oss": lambda: Block(GptOssTopKRouter(n, d, K), GptOssExperts(n, f, d), attribute="router"),
        "listed": lambda: Block(LinearRouter(n, d, K), ListedExperts(Mlp(f, d) for _ in range(n))),
    }[kind]
    return Model([make() for _ in range(layers)], d)


KINDS = ("mixtral", "olmoe", "qwen3_moe", "deepseek_v3", "gpt_oss", "listed")


def gate_matrices(block):
    """A of all experts of a block [N, F, D], by hand."""
    experts = block.experts
    if isinstance(experts, nn.ModuleList):
        return torch.stack([expert.gate_proj.weight for expert in experts])
    fused = experts.gate_up_proj
    if isinstance(experts, GptOssExperts):
        return fused[..., ::2].transpose(1, 2)
    return fused[:, :fused.shape[1] // 2]
