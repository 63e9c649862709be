"""convert, bake and MpiRouter on modules with the structure of transformers' models, beside the formula under autograd.
Exit status 77: there is no PyTorch."""

import copy
import io
import sys
import warnings
from pathlib import Path

try:
    import torch
except ImportError:
    print("skipped: python3 has no torch")
    sys.exit(77)

import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "python"), str(Path(__file__).resolve().parent)]
import models as m  # noqa: E402
from formula import distance, formula  # noqa: E402
from mpi_router_torch import MpiRouter, bake, convert, find_moe_layers, gates_of, router_rows  # noqa: E402

torch.manual_seed(2)
warnings.filterwarnings("error", message="mpi_router_torch")
LAYOUT = {"gpt_oss": "nd2f-interleaved", "listed": "nfd"}


def refused(text, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except (ValueError, RuntimeError) as error:
        assert text in str(error), f"{error!r} does not say {text!r}"
        return
    raise AssertionError(f"nothing refused: {text}")


def router_of(block):
    return getattr(block, block.attribute)


def by_formula(model, radius=None, steps=1):
    """Hooks that put the formula's rows in place of the parameter: the reference, by another way than convert."""
    for layer in model.layers:
        router, block = router_of(layer.mlp), layer.mlp
        parameter = router.weight

        def before(module, _, parameter=parameter, block=block):
            object.__setattr__(module, "_parameters", {k: v for k, v in module._parameters.items() if k != "weight"})
            module.__dict__["weight"] = formula(m.gate_matrices(block), parameter, radius, steps)

        def after(module, *_, parameter=parameter):
            del module.__dict__["weight"]
            module._parameters["weight"] = parameter

        router.register_forward_pre_hook(before)
        router.register_forward_hook(after)
    return model


def loss_of(model, x):
    out, logits = model(x)
    return out.square().mean() + sum(l.float().square().mean() for l in logits)


def train(model, x, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def logits_of(model, x):
    with torch.no_grad():
        out, logits = model(x)
    return [out, *logits]


x = torch.randn(2, 9, m.D)
for kind in m.KINDS:
    model = m.model(kind)
    reference = by_formula(copy.deepcopy(model))
    plain, keys = logits_of(model, x), list(model.state_dict())
    before = {name: p.clone() for name, p in model.named_parameters()}
    layers = convert(model)
    assert [layer.layout for layer in layers] == [LAYOUT.get(kind, "n2fd-concatenated")] * 2, kind
    assert all(layer.shape == (m.N, m.FFN, m.D) and not layer.assumed for layer in layers), kind
    assert list(model.state_dict()) == keys and dict(model.named_parameters()).keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    for layer, named in zip(model.layers, layers):
        router = router_of(layer.mlp)
        assert isinstance(router, type(router).__mro__[1]) and router is named.router
        assert distance(router.weight, formula(m.gate_matrices(layer.mlp), before[named.router_name + ".weight"])) < 1e-6
        assert torch.equal(router._parameters["weight"], before[named.router_name + ".weight"])

    # Forward and backward beside the formula; every parameter has its gradient.
    loss_of(model, x).backward()
    loss_of(reference, x).backward()
    exact = dict(reference.named_parameters())
    for name, p in model.named_parameters():
        assert distance(p.grad, exact[name].grad) < 1e-5, (kind, name)
    converted = logits_of(model, x)
    assert not torch.allclose(plain[1], converted[1])

    # Under gradient checkpointing, the same gradients.
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    inner = x
    told = []
    for layer in model.layers:
        inner, logits = checkpoint(layer, inner, use_reentrant=False)
        told.append(logits)
    (model.head(inner).square().mean() + sum(l.float().square().mean() for l in told)).backward()
    assert all(torch.allclose(p.grad, g, rtol=1e-5, atol=1e-7) for p, g in zip(model.parameters(), grads)), kind

    # A deep copy has experts of its own; its optimizer moves it alone.
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.layers[0].mlp.experts.parameters():
            p.mul_(torch.rand_like(p))
    assert all(torch.equal(a, b) for a, b in zip(logits_of(model, x), converted))
    assert not torch.equal(logits_of(twin, x)[1], converted[1])
    assert twin.layers[0].mlp.experts is not model.layers[0].mlp.experts

    # A few steps of training follow the formula's.
    ours, theirs = train(model, x, 5), train(reference, x, 5)
    assert all(abs(a - b) < 1e-4 * b for a, b in zip(ours, theirs)), (kind, ours, theirs)
    assert ours[-1] < ours[0]

    # save and load: r is what is stored, and converting again restores the router.
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    again = m.model(kind)
    again.load_state_dict(torch.load(io.BytesIO(stored.getvalue())))
    convert(again)
    trained = logits_of(model, x)
    assert all(torch.equal(a, b) for a, b in zip(logits_of(again, x), trained)), kind
    model.load_state_dict(again.state_dict())  # into a converted model too

    # bake: the same, bit for bit, from the model's own class.
    classes = [type(router_of(m.model(kind).layers[0].mlp))] * 2
    router = router_of(model.layers[0].mlp)
    own, router.__class__ = type(router), type("Other", (type(router),), {})
    refused("was given another class", bake, model)
    router.__class__ = own
    baked = bake(model)
    assert [type(router_of(layer.mlp)) for layer in model.layers] == classes
    assert all(torch.equal(a, b) for a, b in zip(logits_of(model, x), trained)), kind
    assert len(baked) == 2 and list(model.state_dict()) == keys
    refused("is converted", bake, model)
    fresh = m.model(kind)
    fresh.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(logits_of(fresh, x), trained)), kind
    convert(model)  # the baked rows are rows
    refused("converted already", convert, model)

# bfloat16, several steps, another radius.
model = m.model("mixtral").to(torch.bfloat16)
reference = by_formula(copy.deepcopy(model).double(), radius=2.0, steps=2)
convert(model, radius=2.0, steps=2)
y = x.to(torch.bfloat16)
for mine, exact in zip(model.layers, reference.layers):
    rows = formula(m.gate_matrices(exact.mlp), router_of(exact.mlp).weight, 2.0, 2)
    assert distance(router_of(mine.mlp).weight, rows) < 4e-3
out, logits = model(y)
assert out.dtype == torch.bfloat16 and torch.isfinite(out.float()).all()
(out.float().square().mean()).backward()

# A row without a step, and its name when it is baked.
model = m.model("mixtral", layers=1)
with torch.no_grad():
    model.layers[0].mlp.gate.weight[2] = 0
convert(model)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    bake(model)
assert len(said) == 1 and "layers.0.mlp.gate: rows [2] have no step" in str(said[0].message), said

# Experts that cannot be multiplied when the forward runs: an error, not the parameter in the place of r'.
model = m.model("mixtral", layers=1)
convert(model)
del model.layers[0].mlp.experts.gate_up_proj
refused("cannot be made", lambda: model(x))


# ---- What is refused, by name; nothing is changed -------------------------------------------------------------

def changed(make, change):
    model = make()
    change(model.layers[1].mlp)
    classes = [type(module) for module in model.modules()]
    return model, classes


def refuses(text, change, kind="mixtral"):
    model, classes = changed(lambda: m.model(kind), change)
    refused(text, convert, model)
    assert [type(module) for module in model.modules()] == classes
    assert not any("_mpi_router" in module.__dict__ for module in model.modules())


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape))


class Other(nn.Module):
    """A module whose parameters are given, and whose forward reads `weight`."""

    def __init__(self, **parameters):
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, value)

    def forward(self, x):
        return x @ self.weight.T


class Silent(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return x @ next(self.parameters()).T


class SilentBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = Silent(parameter(4, 10)), m.MixtralExperts(4, 6, 10)


refused("no experts", convert, m.Model([m.Mlp(6, 10)], 10))
refuses("has no gate matrices that are known: up_proj (4, 6, 10)", lambda b: setattr(b, "experts", Other(up_proj=parameter(4, 6, 10))))
refuses("no router with a row for each of 4 experts", lambda b: setattr(b, "gate", m.TopKRouter(6, 10, 2)))
refuses("(4, 12, 8), and router rows have 10 numbers", lambda b: setattr(b, "experts", m.MixtralExperts(4, 6, 8)))
refuses("all have 4 rows", lambda b: setattr(b, "router", m.TopKRouter(4, 10, 2)))
refuses("is torch.int8 (4, 12, 10): packed", lambda b: setattr(b, "experts", Other(
    gate_up_proj=nn.Parameter(torch.ones(4, 12, 10, dtype=torch.int8), requires_grad=False))))
refuses("says is_transposed = True", lambda b: setattr(b.experts, "is_transposed", True))
refuses("nothing says which axis is D", lambda b: setattr(b, "experts", Other(gate_proj=parameter(4, 10, 10))))
refuses("float64 asks for gates in float64", lambda b: b.gate.double())
blocks = nn.ModuleList(m.model("mixtral", layers=1).layers[0].mlp for _ in range(2))  # without layers around them
assert len(find_moe_layers(blocks)) == 2
del blocks[1].gate
refused("no router with a row for each of 4 experts", find_moe_layers, blocks)
silent = m.Model([SilentBlock()], 10)
refused("no code of it names `weight`", convert, silent)

# Square parameters: the down projection says it, or the module itself.
square = Other(gate_up_proj=parameter(4, 10, 10), down_proj=parameter(4, 5, 10))
model = m.Model([m.Block(m.TopKRouter(4, 10, 2), square)], 10)
assert find_moe_layers(model)[0].layout == "nd2f-concatenated"
square.down_proj = parameter(4, 10, 5)
(layer,) = find_moe_layers(model)
assert layer.layout == "n2fd-concatenated" and layer.assumed == ("gates before ups, not interleaved",)
assert "assumed: gates before ups" in str(layer) and "layers.0.mlp.gate.weight [4, 10]" in str(layer)
square.is_transposed, square.is_concatenated = True, False
(layer,) = find_moe_layers(model)
assert layer.layout == "nd2f-interleaved" and not layer.assumed
model = m.Model([m.Block(m.TopKRouter(4, 10, 2), Other(gate_proj=parameter(4, 10, 6)))], 10)
assert find_moe_layers(model)[0].layout == "ndf"
with warnings.catch_warnings(record=True) as said:  # what was assumed is said
    warnings.simplefilter("always")
    model = m.Model([m.Block(m.TopKRouter(4, 10, 2), Other(gate_up_proj=parameter(4, 12, 10)), attribute="chooser")], 10)
    convert(model)
assert "chooser is the router, the one matrix with 4 rows" in str(said[0].message), said

# ---- Names of other families, as their modules have them --------------------------------------------------------

class Reads(nn.Module):
    def forward(self, x):
        return x @ self.weight.T


def tree(parameters, routers):
    """A module with parameters by their names; those that end in one of `routers` belong to modules that read them."""
    root = nn.Module()
    for name, shape in parameters.items():
        module, *path = root, *name.split(".")
        for i, part in enumerate(path[1:-1]):
            if not hasattr(module, part):
                reads = ".".join(path[1:i + 2]) in routers
                inner = Reads() if reads else nn.ModuleList() if path[i + 2].isdigit() else nn.Module()
                module.append(inner) if part.isdigit() else setattr(module, part, inner)
            module = module[int(part)] if part.isdigit() else getattr(module, part)
        setattr(module, path[-1], parameter(*shape))
    return root


def each(text, *shape):
    return {text.format(e): shape for e in range(4)}


FAMILIES = {  # router, its parameters and those of the experts; the layout that is found, or what is refused
    "Llama-4": ("feed_forward.router", {"feed_forward.experts.gate_up_proj": (4, 10, 12)}, "nd2f-concatenated"),
    "Granite": ("block_sparse_moe.router.layer", {"block_sparse_moe.input_linear.weight": (4, 12, 10),
                                                  "block_sparse_moe.output_linear.weight": (4, 10, 6)}, "n2fd-concatenated"),
    "Hunyuan": ("mlp.gate.wg", each("mlp.experts.{}.gate_proj.weight", 6, 10), "nfd"),
    "AFMoE": ("mlp.router.gate", each("mlp.experts.{}.gate_proj.weight", 6, 10), "nfd"),
    "Aria": ("mlp.router", {"mlp.experts.fc1.weight": (4, 10, 12), "mlp.experts.fc2.weight": (4, 6, 10)},
             "nd2f-concatenated"),
    "Mixtral, transformers 4": ("block_sparse_moe.gate", each("block_sparse_moe.experts.{}.w1.weight", 6, 10), "nfd"),
    "TorchTitan": ("moe.router.gate", {"moe.routed_experts.inner_experts.w1_EFD": (4, 6, 10),
                                       "moe.routed_experts.inner_experts.w2_EDF": (4, 10, 6)}, "nfd"),
    "with shared experts": ("mlp.gate", {"mlp.shared_experts.gate_proj.weight": (4, 10), "mlp.shared_expert_gate.weight": (1, 10),
                                         "mlp.experts.gate_up_proj": (4, 12, 10)}, "n2fd-concatenated"),
    "Nemotron-H": ("mixer.gate", {"mixer.experts.up_proj": (4, 6, 10)}, "has no gate matrices that are known"),
    "Nemotron-H, listed": ("mixer.gate", each("mixer.experts.{}.up_proj.weight", 6, 10), "has no gate matrices that are known"),
    "latent": ("mlp.gate", {"mlp.experts.gate_up_proj": (4, 12, 5)}, "and router rows have 10 numbers: no axis of it"),
}
for family, (router, experts, expected) in FAMILIES.items():
    model = tree({f"model.{router}.weight": (4, 10), **{f"model.{name}": shape for name, shape in experts.items()}}, [router])
    if " " in expected:
        refused(expected, find_moe_layers, model)
        continue
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that gates come before ups is assumed of some
        (layer,) = convert(model)
    assert (layer.router_name, layer.layout, layer.shape) == (router, expected, (4, 6, 10)), (family, str(layer))
    module = dict(model.named_modules())[router]
    by_hand = formula(torch.stack(list(layer.gates())), module._parameters["weight"])
    assert distance(module.weight, by_hand) < 1e-6, family
longcat = tree({"model.mlp.router.weight": (6, 10), "model.mlp.experts.gate_up_proj": (4, 12, 10)}, ["mlp.router"])
refused("no router with a row for each of 4 experts in mlp (Module): router.weight (6, 10)", find_moe_layers, longcat)

# ---- MpiRouter ---------------------------------------------------------------------------------------------------

experts = m.MixtralExperts(8, 6, 10)
gates = lambda: gates_of(experts.gate_up_proj, "n2fd-concatenated")  # noqa: E731
tokens = torch.randn(3, 5, 10)
router = MpiRouter(10, 8, top_k=3, gates=gates)
assert list(router.state_dict()) == ["weight"] and len(list(router.parameters())) == 1
weights, ids = router(tokens)
assert weights.shape == ids.shape == (15, 3) and torch.allclose(weights.sum(-1), torch.ones(15))
expected = tokens.reshape(-1, 10) @ formula(gates(), router.weight).T
assert torch.allclose(router.logits(tokens), expected, atol=1e-5)
assert torch.equal(router(tokens, gates())[1], ids) and torch.equal(MpiRouter.rows(router), router_rows(gates(), router.weight))
weights.square().sum().backward()
assert router.weight.grad.norm() > 0 and experts.gate_up_proj.grad.norm() > 0
no_choice = MpiRouter(10, 8, top_k=None)
assert no_choice(tokens, gates()).shape == (15, 8)
refused("no gates", no_choice, tokens)
refused("tokens are (3, 5, 9)", router, tokens[..., :9])
refused("top_k is 9", MpiRouter, 10, 8, 9)
refused("do not fall into n_group = 3", MpiRouter, 10, 8, 2, n_group=3)
refused("score_function is 'relu'", MpiRouter, 10, 8, 2, score_function="relu")

# The gate, beside that of the library: weights, choices and gradients.
import mpi_router  # noqa: E402

logits = torch.randn(40, 8)
for options in (dict(), dict(renormalize=False, scaling_factor=16.0), dict(score_function="sigmoid", scaling_factor=2.5),
                dict(score_function="sqrtsoftplus"), dict(order="select_then_score"),
                dict(score_function="sigmoid", n_group=4, topk_group=2), dict(n_group=2, topk_group=1),
                dict(score_function="sigmoid", order="select_then_score", renormalize=False)):
    for bias in (None, torch.randn(8)):
        module = MpiRouter(10, 8, 3, selection_bias=bias is not None, **options)
        if bias is not None:
            module.e_score_correction_bias.copy_(bias)
        leaf = logits.clone().requires_grad_()
        weights, ids = module.select(leaf)
        named = dict(selection_bias=None if bias is None else bias.numpy(), **options)
        told = mpi_router.gate(logits.numpy(), 3, **named)
        assert (ids.numpy() == told.experts).all(), options
        assert torch.allclose(weights, torch.from_numpy(told.weights), rtol=1e-5), options
        upstream = torch.randn_like(weights)
        weights.backward(upstream)
        exact = mpi_router.gate_vjp(logits.numpy(), told, upstream.numpy(), **named)
        assert torch.allclose(leaf.grad, torch.from_numpy(exact), rtol=1e-4, atol=1e-6), options
deep = MpiRouter(10, 8, 2, score_function="sigmoid").select(torch.full((1, 8), -300.0))[0]
assert torch.allclose(deep, torch.full((1, 2), 0.5))
print("mpi_router_torch: convert, bake and MpiRouter as the formula")
