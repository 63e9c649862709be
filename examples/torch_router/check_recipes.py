"""Runs recipes/ against the classes of TorchTitan and Megatron-Core in checkouts of them.

    python3 check_recipes.py [--torchtitan DIR] [--megatron DIR] [cpu|cuda]

Packages that they import and this Python has not are replaced by empty ones, which is said; what the recipes inherit from
and call is theirs. Exit status 77: nothing to run.
"""

import copy
import dataclasses
import importlib
import importlib.machinery
import pathlib
import sys
import traceback
import types

import torch
import torch.nn.functional as F
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "python"), str(HERE), str(HERE / "recipes")]
from mpi_router_torch import gates_of  # noqa: E402

checks, failed, empty = 0, [], []
device = "cuda" if torch.cuda.is_available() else "cpu"
N, FFN, D = 4, 48, 64


def check(condition, what):
    global checks
    checks += 1
    print(("passed: " if condition else "FAILED: ") + what, flush=True)
    if not condition:
        failed.append(what)


def distance(x, reference):
    return ((x.double() - reference.double()).norm() / reference.double().norm().clamp(min=1e-30)).item()


def formula(gates, rows, radius=4 / N**0.5):
    image = torch.einsum("nf,nfd->nd", torch.einsum("nfd,nd->nf", gates, rows), gates)
    return radius * F.normalize(image, dim=-1)


# ---- Packages that are not here --------------------------------------------------------------------------------

class Anything(type):
    """A class that stands for whatever a missing package defines."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return anything()

    def __call__(cls, *arguments, **named):
        decorates = len(arguments) == 1 and not named and callable(arguments[0])
        return arguments[0] if decorates else super().__call__()

    def __getitem__(cls, _):
        return cls

    def __or__(cls, other):
        return cls

    __ror__ = __or__


class Instance:
    """What its classes make: as a decorator it changes nothing, and all that it has are functions that return nothing."""

    def __call__(self, function=None, *_, **__):
        return function

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: ()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def anything():
    return Anything("Anything", (Instance,), {})


class Empty(types.ModuleType):
    __version__ = "0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return anything()


class Missing:
    """Finds modules of packages that are not here."""

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in empty else None

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


def imported(name):
    """The module; packages that it lacks become empty ones."""
    for _ in range(20):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package in ("", "torch", "torchtitan", "megatron") or package in empty:
                raise
            empty.append(package)
            if len(empty) == 1:
                sys.meta_path.append(Missing())
            for loaded in [m for m in sys.modules if m.split(".")[0] in ("torchtitan", "megatron", name.split(".")[0])]:
                del sys.modules[loaded]
    raise ImportError(f"{name}: too many packages are missing: {empty}")


# ---- TorchTitan --------------------------------------------------------------------------------------------------

def model_config(moe):
    """A configuration with a MoE in a field and two in a list, as those of models have them."""
    from torchtitan.config import Configurable

    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        moe: object
        layers: list

    return Config(moe=moe, layers=[copy.deepcopy(moe) for _ in range(2)])


def torchtitan(folder):
    sys.path.insert(0, folder)
    recipe = imported("torchtitan_router")
    from torchtitan.models.common.linear import Linear
    from torchtitan.models.common.moe import GroupedExperts, MoE, RoutedExperts, TokenChoiceTopKRouter
    from torchtitan.models.common.token_dispatcher import LocalTokenDispatcher

    config = MoE.Config(
        num_experts=N,
        router=TokenChoiceTopKRouter.Config(num_experts=N, gate=Linear.Config(in_features=D, out_features=N), top_k=2,
                                            score_func="softmax", route_norm=True),
        routed_experts=RoutedExperts.Config(
            inner_experts=GroupedExperts.Config(dim=D, hidden_dim=FFN, num_experts=N),
            token_dispatcher=LocalTokenDispatcher.Config(num_experts=N, top_k=2)))
    whole = model_config(config)
    check(recipe.use_mpi_routers(whole, radius=1.0) == 3 and type(whole.moe) is recipe.MpiMoE.Config
          and all(moe.router.radius == 1.0 for moe in whole.layers), "TorchTitan: every MoE of a configuration is replaced")
    usual, mpi = config.build().to(device), recipe.mpi_config(config).build().to(device)
    check(list(usual.state_dict()) == list(mpi.state_dict()), "TorchTitan: the names in state_dict are those of the usual MoE")
    with torch.no_grad():
        for p in usual.parameters():
            p.normal_(std=0.1)
    mpi.load_state_dict(usual.state_dict())
    x = torch.randn(50, D, device=device)
    scores, experts, every = mpi.router(x, None)
    parameters = mpi.router.gate.weight, mpi.routed_experts.inner_experts.w1_EFD
    exact = [p.detach().double().requires_grad_() for p in parameters]
    expected = (x.double() @ formula(exact[1], exact[0]).T).softmax(-1)
    check(distance(every, expected) < 1e-5, "TorchTitan: MpiTopKRouter's scores are the formula's")
    upstream = torch.randn_like(every)
    every.backward(upstream)
    expected.backward(upstream.double())
    check(all(distance(p.grad, e.grad) < 1e-4 for p, e in zip(parameters, exact)), "TorchTitan: gradients to gate and w1")
    with torch.no_grad():
        usual.router.gate.weight.copy_(formula(parameters[1], parameters[0]))
        theirs = usual.router(x, None)
    check(torch.equal(experts, theirs[1]) and distance(scores, theirs[0]) < 1e-5,
          "TorchTitan: the usual router with those rows chooses and weighs alike")
    twin = copy.deepcopy(mpi)
    check(twin.router.gate.shown[0] is twin.routed_experts.inner_experts, "TorchTitan: a deep copy sees its own experts")
    try:
        mpi.zero_grad()
        out = mpi(x)
        out.square().sum().backward()
        check(torch.isfinite(out).all() and parameters[0].grad.norm() > 0, "TorchTitan: the whole MoE, forward and backward")
    except Exception as error:
        print(f"not run: TorchTitan's MoE.forward on {device}: {type(error).__name__}: {error}")


# ---- Megatron-Core -------------------------------------------------------------------------------------------------

class Fc1(torch.autograd.Function):
    """As Transformer Engine's linear layer with gradient_accumulation_fusion: adds to main_grad, gives autograd a dummy."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        ctx.weight = weight
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        x, _ = ctx.saved_tensors
        weight = ctx.weight
        weight.main_grad.add_(grad.T @ x)
        weight.grad_added_to_main_grad = True
        dummy = torch.zeros_like(weight) if getattr(weight, "zero_out_wgrad", False) else torch.full_like(weight, 7.0)
        return grad @ weight, dummy


class StandIn(nn.Module):
    """The parameters of TEGroupedMLP, without Transformer Engine."""

    def __init__(self):
        super().__init__()
        self.linear_fc1 = nn.Module()
        for e in range(N):
            self.linear_fc1.register_parameter(f"weight{e}", nn.Parameter(torch.randn(2 * FFN, D, device=device) * 0.1))


class Layer(nn.Module):
    def __init__(self, router, experts):
        super().__init__()
        self.router, self.experts = router, experts

    def forward(self, x):
        logits = self.router.gating(x)
        outs = [Fc1.apply(x, getattr(self.experts.linear_fc1, f"weight{e}")).square().mean() for e in range(N)]
        return logits.square().mean() + sum(outs)


def megatron_config(**more):
    from megatron.core.transformer.transformer_config import TransformerConfig

    return TransformerConfig(num_layers=1, hidden_size=D, num_attention_heads=4, num_moe_experts=N, moe_router_topk=2,
                             moe_ffn_hidden_size=FFN, gated_linear_unit=True, add_bias_linear=False, activation_func=F.silu,
                             moe_router_load_balancing_type="none", moe_aux_loss_coeff=0.0, params_dtype=torch.float32,
                             **more)


def gates_by_hand(weights, size):
    if size is None:
        return torch.stack(list(weights))[:, :FFN]
    index = [i for i in range(2 * FFN) if i // size % 2 == 0]
    return torch.stack(list(weights))[:, index]


def megatron_router(recipe, size):
    groups = types.SimpleNamespace(tp=None, cp=None, tp_cp=None, tp_dp_cp=None)
    what = f"Megatron-Core{'' if size is None else f', gates and ups in blocks of {size}'}"
    router = recipe.MpiTopKRouter(megatron_config(moe_mlp_glu_interleave_size=size), pg_collection=groups).to(device)
    experts = StandIn()
    router.show(experts)
    check([n for n, _ in router.named_parameters()] == ["weight"], f"{what}: the router's parameter is weight alone")
    x = torch.randn(10, 3, D, device=device)
    parameters = [router.weight, *experts.parameters()]
    exact = [p.detach().double().requires_grad_() for p in parameters]
    logits = router.gating(x)
    expected = x.double() @ formula(gates_by_hand(exact[1:], size), exact[0]).T
    check(distance(logits, expected) < 1e-5, f"{what}: MpiTopKRouter.gating")
    upstream = torch.randn_like(logits)
    logits.backward(upstream)
    expected.backward(upstream.double())
    check(all(distance(p.grad, e.grad) < 1e-4 for p, e in zip(parameters, exact)), f"{what}: gradients to weight and fc1")
    try:
        probs, routing_map = router(x)
        check(probs.shape == (30, N) and (routing_map.sum(-1) == 2).all(), f"{what}: TopKRouter.forward with those logits")
    except Exception as error:
        print(f"not run: {what}: TopKRouter.forward on {device}: {type(error).__name__}: {error}")
    return router, experts


def megatron_ddp(recipe, size):
    """Megatron's own DDP, whose hook drops an autograd gradient where the flag is set."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    router, experts = megatron_router(recipe, size)
    layer = Layer(router, experts)
    layer.zero_grad()
    x = torch.randn(30, D, device=device)
    exact = [p.detach().double().requires_grad_() for p in (router.weight, *experts.parameters())]
    loss = (x.double() @ formula(gates_by_hand(exact[1:], size), exact[0]).T).square().mean()
    loss = loss + sum((x.double() @ w.T).square().mean() for w in exact[1:])
    loss.backward()
    ddp = DistributedDataParallel(router.config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), layer)
    for _ in range(2):  # micro-batches
        ddp(x).backward()
    off = [distance(p.main_grad, 2 * e.grad) for p, e in zip((router.weight, *experts.parameters()), exact)]
    check(max(off) < 1e-4, f"Megatron-Core's DDP, interleave {size}: main_grad has both gradients, off by {max(off):.1e}")
    check(all(p.grad is None for p in layer.parameters()), f"Megatron-Core's DDP, interleave {size}: no grad is left")


def megatron(folder):
    sys.path.insert(0, folder)
    recipe = imported("megatron_router")
    for size in (None, 8):
        megatron_router(recipe, size)
    if device == "cpu":
        print("not run: Megatron-Core's DDP, which asks for a GPU")
        return
    import os

    import torch.distributed as dist
    from megatron.core import parallel_state

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
    dist.init_process_group("nccl", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    for size in (None, 8):
        megatron_ddp(recipe, size)
    dist.destroy_process_group()


def main(arguments):
    global device
    runs = []
    while arguments:
        word = arguments.pop(0)
        if word in ("--torchtitan", "--megatron"):
            runs.append(({"--torchtitan": torchtitan, "--megatron": megatron}[word], arguments.pop(0)))
        else:
            device = word
    if not runs:
        print("skipped: no checkout of TorchTitan or Megatron-Core is named")
        return 77
    torch.manual_seed(5)
    for run, folder in runs:
        try:
            run(folder)
        except Exception as error:
            traceback.print_exc()
            check(False, f"{run.__name__}: {type(error).__name__}: {error}")
        if empty:
            print(f"{run.__name__}: empty in the place of packages that are not here: {', '.join(empty)}")
    print(f"recipes on {device}, PyTorch {torch.__version__}: {checks} checks, {len(failed)} failures")
    return int(bool(failed))


sys.exit(main(sys.argv[1:]))
