"""Checks mpi_router_torch.convert and bake on five MoE models of transformers 5, made small and random.

    python3 check_models.py [--save DIR] [cpu] [cuda]      # by default all devices at hand

Each class, in float32 and bfloat16: forward, backward and five steps of AdamW beside the formula under autograd, under
gradient checkpointing and (on the first device) torch.compile, save_pretrained and from_pretrained, bake. --save keeps
what save_pretrained wrote in bfloat16, before and after bake, as DIR/NAME and DIR/NAME-baked, for verify_checkpoint.
Exit status 77: there is no transformers.
"""

import copy
import pathlib
import sys
import tempfile
import traceback
import warnings

import torch
import torch.nn.functional as F

try:
    import transformers
except ImportError:
    print("skipped: python3 has no transformers")
    sys.exit(77)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))
from mpi_router_torch import bake, convert  # noqa: E402

SMALL = dict(vocab_size=128, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=4, head_dim=16, max_position_embeddings=64, num_experts_per_tok=2, pad_token_id=0,
             bos_token_id=1, eos_token_id=2, initializer_range=0.2)
MODELS = {
    "mixtral": ("Mixtral", dict(num_local_experts=4)),
    "olmoe": ("Olmoe", dict(num_experts=4)),
    "qwen3_moe": ("Qwen3Moe", dict(num_experts=4, moe_intermediate_size=48)),
    "deepseek_v3": ("DeepseekV3", dict(n_routed_experts=4, moe_intermediate_size=48, n_shared_experts=1, n_group=1,
                                       topk_group=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=16,
                                       qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16, qk_head_dim=32)),
    "gpt_oss": ("GptOss", dict(num_local_experts=4)),
}
ROUTERS = {"mixtral": 2, "olmoe": 2, "qwen3_moe": 2, "deepseek_v3": 1, "gpt_oss": 2}  # MoE layers
LAYOUTS = {"gpt_oss": "nd2f-interleaved"}

checks, failed = 0, []


def check(condition, what):
    global checks
    checks += 1
    if not condition:
        failed.append(what)
        print("FAILED:", what, flush=True)


def distance(x, reference):
    return ((x.double() - reference.double()).norm() / reference.double().norm().clamp(min=1e-30)).item()


def formula(gates, parameter):
    """Eq. 4 and 5 with C = 4/√N, in float32, rounded to the type of the parameter."""
    gates, rows = gates.float(), parameter.float()
    image = torch.einsum("nf,nfd->nd", torch.einsum("nfd,nd->nf", gates, rows), gates)
    return (4 / rows.shape[0] ** 0.5 * F.normalize(image, dim=-1)).to(parameter.dtype)


def small(name, dtype, device):
    prefix, own = MODELS[name]
    config = getattr(transformers, prefix + "Config")(**{**SMALL, **own})
    torch.manual_seed(3)
    # as from_pretrained makes it: .to(dtype) would round buffers that it keeps in float32
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).to(device)


def blocks_of(model):
    """(block, router) of every MoE layer, by the names that the classes give them."""
    for layer in model.model.layers:
        router = getattr(layer.mlp, "gate", None) or getattr(layer.mlp, "router", None)
        if router is not None and hasattr(layer.mlp, "experts"):
            yield layer.mlp, router


def gates_by_hand(name, block):
    fused = block.experts.gate_up_proj
    return fused[..., ::2].transpose(1, 2) if name == "gpt_oss" else fused[:, :fused.shape[1] // 2]


def by_formula(name, model):
    """Hooks that put the formula's rows in place of the parameter: the reference, by another way than convert."""
    for block, router in blocks_of(model):
        parameter = router.weight

        def before(module, _, parameter=parameter, block=block):
            module._parameters = {k: v for k, v in module._parameters.items() if k != "weight"}
            module.__dict__["weight"] = formula(gates_by_hand(name, block), parameter)

        def after(module, *_, parameter=parameter):
            del module.__dict__["weight"]
            module._parameters["weight"] = parameter

        router.register_forward_pre_hook(before)
        router.register_forward_hook(after)
    return model


def loss_of(model, ids):
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def gradients(model, ids):
    model.zero_grad(set_to_none=True)
    loss = loss_of(model, ids)
    loss.backward()
    return loss.item(), {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}


def compare(what, mine, exact, bound):
    check(mine.keys() == exact.keys(), f"{what}: gradients of other parameters")
    floor = 1e-3 * max(g.double().norm() for g in exact.values())  # below it gradients are what rounding leaves
    worst = max((((g.double() - exact[n].double()).norm() / exact[n].double().norm().clamp(min=floor)).item(), n)
                for n, g in mine.items())
    check(worst[0] < bound, f"{what}: gradient off by {worst[0]:.1e} at {worst[1]}")
    return worst[0]


def train(model, ids, steps=5):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def same(logits, others, what):
    """Bit for bit; on a GPU, whose sums of experts are in no fixed order, nearly."""
    equal = torch.equal(logits, others)
    check(equal or (logits.is_cuda and distance(logits, others) < 1e-5), what)
    if not equal:
        print(f"not bit for bit: {what}")


def check_model(name, dtype, device, save, compiles):
    what = f"{name} {str(dtype).replace('torch.', '')} {device}"
    exact_type = dtype == torch.float32
    model = small(name, dtype, device)
    ids = torch.randint(3, 128, (2, 32), generator=torch.Generator().manual_seed(4)).to(device)
    reference = by_formula(name, copy.deepcopy(model))
    keys = list(model.state_dict())
    plain = logits_of(model.eval(), ids)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="mpi_router_torch")  # nothing is assumed of these classes
        layers = convert(model)
    check(len(layers) == ROUTERS[name], f"{what}: {len(layers)} routers")
    check(all(layer.layout == LAYOUTS.get(name, "n2fd-concatenated") for layer in layers), f"{what}: {layers[0]}")
    check(list(model.state_dict()) == keys, f"{what}: names in state_dict")
    for (block, router), (theirs, raw) in zip(blocks_of(model), blocks_of(reference)):
        off = distance(router.weight, formula(gates_by_hand(name, theirs), raw.weight))
        check(off < (1e-6 if exact_type else 4e-3), f"{what}: rows off by {off:.1e}")

    mine, exact = logits_of(model.eval(), ids), logits_of(reference.eval(), ids)
    off = distance(mine, exact)
    check(off < (1e-5 if exact_type else 3e-2), f"{what}: logits off by {off:.1e}")
    check(distance(plain, mine) > 1e-3, f"{what}: convert changed no logit")
    model.train(), reference.train()
    loss, grads = gradients(model, ids)
    exact_loss, exact_grads = gradients(reference, ids)
    check(abs(loss - exact_loss) < (1e-5 if exact_type else 1e-2) * exact_loss, f"{what}: loss {loss} and {exact_loss}")
    worst = compare(what, grads, exact_grads, 1e-4 if exact_type else 1e-1)

    model.gradient_checkpointing_enable()
    again = gradients(model, ids)[1]
    compare(what + " checkpointed", again, grads, 1e-5 if exact_type else 3e-2)
    model.gradient_checkpointing_disable()
    if compiles and exact_type:
        torch._dynamo.reset()
        try:
            compiled = gradients(torch.compile(model, backend="aot_eager"), ids)[1]
            compare(what + " compiled", {n.replace("_orig_mod.", ""): g for n, g in compiled.items()}, grads, 1e-4)
        except Exception as error:
            traceback.print_exc()
            check(False, f"{what} compiled: {type(error).__name__}: {error}")

    ours, theirs = train(model, ids), train(reference, ids)
    apart = max(abs(a - b) / b for a, b in zip(ours, theirs))
    check(apart < (1e-4 if exact_type else 2e-2) and ours[-1] < ours[0], f"{what}: losses {ours} and {theirs}")

    trained = logits_of(model.eval(), ids)
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(save or folder)
        kept, baked = base / name, base / (name + "-baked")
        model.save_pretrained(kept)
        loaded = type(model).from_pretrained(kept, dtype=dtype).to(device).eval()
        stored = model.state_dict()
        check(all(torch.equal(t.float(), stored[n].float()) for n, t in loaded.state_dict().items()),
              f"{what}: what was saved is not r")
        convert(loaded)
        same(logits_of(loaded, ids), trained, f"{what}: logits when saved, loaded and converted")
        cls = type(next(blocks_of(small(name, dtype, device)))[1])
        bake(model)
        check(all(type(router) is cls for _, router in blocks_of(model)), f"{what}: bake leaves a class behind")
        same(logits_of(model, ids), trained, f"{what}: logits after bake")
        model.save_pretrained(baked)
        loaded = type(model).from_pretrained(baked, dtype=dtype).to(device).eval()
        same(logits_of(loaded, ids), trained, f"{what}: logits when baked, saved and loaded")
    print(f"{what}: gradients within {worst:.1e}, losses of 5 steps within {apart:.1e}: {ours[0]:.4f} to {ours[-1]:.4f}", flush=True)


def main(arguments):
    save = None
    if arguments[:1] == ["--save"]:
        save, arguments = arguments[1], arguments[2:]
    transformers.logging.set_verbosity_error()
    devices = arguments or ["cuda"] * torch.cuda.is_available() + ["cpu"]
    for device in devices:
        for name in MODELS:
            for dtype in (torch.float32, torch.bfloat16):
                try:
                    check_model(name, dtype, device, save if dtype == torch.bfloat16 else None, device == devices[0])
                except Exception as error:
                    traceback.print_exc()
                    check(False, f"{name} {dtype} {device}: {type(error).__name__}: {error}")
    print(f"mpi_router_torch, PyTorch {torch.__version__}, transformers {transformers.__version__}: {checks} checks, "
          f"{len(failed)} failures")
    return failed != []


sys.exit(main(sys.argv[1:]))
