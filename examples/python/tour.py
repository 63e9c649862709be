# %% [markdown]
# # mpi_router from Python
# Every function of `python/mpi_router.py` on the two small models of `examples/data`. NumPy is all it needs. The cells
# run one after the other, in an editor that knows `# %%`, or as a program: `python3 examples/python/tour.py`, with
# MPIROUTER_LIBRARY set to the shared library of mpi_router::c.

# %%
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
import mpi_router  # noqa: E402

print(f"mpi_router {mpi_router.version()}")

# %% [markdown]
# A safetensors file is the length of a header, the header in JSON, and the tensors. NumPy has no bfloat16: such weights
# stay uint16, and `bf16=True` says what they are.

# %%
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def load(path):
    data = np.fromfile(path, np.uint8)
    length = int(data[:8].view("<u8")[0])
    header = json.loads(data[8:8 + length].tobytes())
    tensors = {}
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in about["data_offsets"])
            tensors[name] = data[begin:end].view(DTYPES[about["dtype"]]).reshape(about["shape"])
    return tensors


models = {name: load(ROOT / "examples" / "data" / f"tiny-{name}.safetensors") for name in ("vanilla", "mpi")}
gates = models["mpi"]["model.layers.0.mlp.experts.gate_proj"]  # [N, F, D] of bfloat16
router = models["mpi"]["model.layers.0.mlp.router.weight"]  # [N, D] of float32
print(f"gates {gates.shape} {gates.dtype}, router {router.shape} {router.dtype}")

# %% [markdown]
# ## The rows that tokens are compared with
# r′ = C · rM/‖rM‖, C = 4/√N. The router stays as it is: it is the parameter.

# %%
step = mpi_router.router_rows(gates, router, bf16=True, tape=True)
print("lengths", np.round(np.linalg.norm(step.rows, axis=1), 4))
print("turned by a cosine of", np.round(step.cosine, 3))
assert all(mpi_router.STATUSES[s] == "ok" for s in step.statuses)

# The same by NumPy, which reads the weights twice.
A = (gates.astype(np.uint32) << 16).view(np.float32)
images = np.einsum("nfd,nf->nd", A, np.einsum("nfd,nd->nf", A, router))
expected = 4 / np.sqrt(len(router)) * images / np.linalg.norm(images, axis=1, keepdims=True)
print("NumPy's rows differ by", "less than 1e-5" if np.abs(step.rows - expected).max() < 1e-5 else "MORE")
assert np.abs(step.rows - expected).max() < 1e-5

# %% [markdown]
# ## Its gradients
# For a loss with the gradient `g` to the rows: the gradient to the router, and the one to the experts, as a matrix or in
# factored form. ⟨r̄, r⟩ = 0, for the length of r does not matter.

# %%
g = np.random.default_rng(0).standard_normal(router.shape).astype(np.float32)
to_router, to_gates = mpi_router.router_rows_vjp(gates, router, step.tape, g, bf16=True)
same_router, factors = mpi_router.router_rows_vjp(gates, router, step.tape, g, bf16=True, factored=True)
(p, z, w, r), = factors
outer = np.einsum("nf,nd->nfd", p, z) + np.einsum("nf,nd->nfd", w, r)
print(f"gradients {to_router.shape}, {to_gates.shape}; in factored form {p.shape} {z.shape} {w.shape} {r.shape}")
assert np.array_equal(to_router, same_router)
assert np.abs(outer - to_gates).max() < 1e-5 * np.abs(to_gates).max()
assert np.abs((to_router * router).sum(1)).max() < 1e-4 * np.abs(to_router).max()

# %% [markdown]
# ## From tokens to experts

# %%
tokens = np.random.default_rng(1).standard_normal((5, router.shape[1])).astype(np.float32)
logits = tokens @ step.rows.T
told = mpi_router.gate(logits, 2)
print("experts of token 0:", told.experts[0], "sum of its weights: %.4f" % told.weights[0].sum())
to_logits = mpi_router.gate_vjp(logits, told, np.ones_like(told.weights))
assert np.abs(to_logits).max() < 1e-5  # the weights of a token sum to 1, whatever the logits are

# %% [markdown]
# ## How far the rows are from the principal directions, and how much of that is proven

# %%
for name, model in models.items():
    for layer in range(2):
        gates = model[f"model.layers.{layer}.mlp.experts.gate_proj"]
        router = model[f"model.layers.{layer}.mlp.router.weight"]
        certified = mpi_router.certify(gates, router, bf16=True, threads=2)
        rows = mpi_router.router_rows(gates, router, bf16=True).rows
        after = mpi_router.certify_rows(gates, rows, certified, bf16=True)
        proven = sum(mpi_router.CERTAINTIES[c] == "rigorous" for c in certified.found["certainty"])
        print(f"tiny-{name}, layer {layer}: cosine %.3f, after one step %.3f, proven %d of %d" %
              (np.cos(certified.rows["angle"]).mean(), np.cos(after["angle"]).mean(), proven, len(router)))

# %% [markdown]
# ## Mistakes are exceptions with the text of the library

# %%
try:
    mpi_router.router_rows(gates, router[:, :-1], bf16=True)
except mpi_router.MpiRouterError as error:
    print(error)
