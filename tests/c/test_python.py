"""What python/mpi_router.py promises, on small arrays. Exit status 77: there is no NumPy."""
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

try:
    import numpy as np
except ImportError:
    print("no numpy")
    sys.exit(77)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
import mpi_router as m  # noqa: E402

random = np.random.default_rng(5)


def refused(kind, text, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except kind as error:
        assert text in str(error), f"{error!r} does not say {text!r}"
        return error
    raise AssertionError(f"nothing refused: {text}")


def rows_by_numpy(A, r, radius):
    u = np.einsum("nfd,nf->nd", A, np.einsum("nfd,nd->nf", A, r))
    return radius * u / np.linalg.norm(u, axis=1, keepdims=True)


N, F, D = 3, 5, 7
A = random.standard_normal((N, F, D))
R = random.standard_normal((N, D))
G = random.standard_normal((N, D))

# Types, strides, lists of experts, threads: one function.
want = rows_by_numpy(A, R, 4 / np.sqrt(N))
for dtype, tolerance in ((np.float64, 1e-13), (np.float32, 1e-5), (np.float16, 1e-2)):
    rows = m.router_rows(A.astype(dtype), R.astype(dtype)).rows
    assert rows.dtype == dtype and np.abs(rows - want).max() < tolerance
bits = (A.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
cut = (bits.astype(np.uint32) << 16).view(np.float32)
R32 = R.astype(np.float32)
assert np.array_equal(m.router_rows(bits, R32, bf16=True).rows, m.router_rows(cut, R32).rows)
plain = m.router_rows(A, R, tape=True)
stored_ndf = np.ascontiguousarray(A.transpose(0, 2, 1)).transpose(0, 2, 1)
fused = np.empty((N, 2 * F, D))
fused[:, ::2] = A
for experts in (stored_ndf, fused[:, ::2], list(A), [a for a in fused[:, ::2]]):
    assert np.allclose(m.router_rows(experts, R).rows, plain.rows, rtol=0, atol=1e-14)
backwards = np.empty((N, 2 * D))[:, ::-2]
assert m.router_rows(A, R[:, ::-1][:, ::-1], out=backwards).rows is backwards
assert np.array_equal(backwards, plain.rows)
assert np.array_equal(m.router_rows(A, R, threads=3).rows, plain.rows)
fixed = m.router_rows(A, R, radius=2, radius_rule="fixed", steps=2).rows
assert np.allclose(fixed, rows_by_numpy(A, rows_by_numpy(A, R, 1), 2))

# By-products and statuses.
y = np.einsum("nfd,nd->nf", A, R)
assert np.allclose(plain.energy, (y * y).sum(1)) and np.allclose(plain.row_norm, np.linalg.norm(R, axis=1))
assert np.allclose(plain.rayleigh, plain.energy / plain.row_norm ** 2)
nothing = R.copy()
nothing[1] = 0
assert [m.STATUSES[s] for s in m.router_rows(A, nothing).statuses] == ["ok", "zero_row", "ok"]


# The gradients are those of differences.
def loss(a, r):
    return (m.router_rows(a, r).rows * G).sum()


h = 1e-6
to_router, to_experts = m.router_rows_vjp(A, R, plain.tape, G)
for index in ((0, 0), (2, 6)):
    step = np.zeros_like(R)
    step[index] = h
    assert abs((loss(A, R + step) - loss(A, R - step)) / (2 * h) - to_router[index]) < 1e-7
for index in ((0, 0, 0), (2, 4, 6)):
    step = np.zeros_like(A)
    step[index] = h
    assert abs((loss(A + step, R) - loss(A - step, R)) / (2 * h) - to_experts[index]) < 1e-7
twice_r, twice_e = to_router.copy(), to_experts.copy()
m.router_rows_vjp(A, R, plain.tape, G, grad_router=twice_r, grad_experts=twice_e, accumulate=True)
assert np.allclose(twice_r, 2 * to_router) and np.allclose(twice_e, 2 * to_experts)
into = [np.zeros((F, D)) for _ in range(N)]
m.router_rows_vjp(A, R, plain.tape, G, grad_experts=into)
assert np.array_equal(np.stack(into), to_experts)
three = m.router_rows(A, R, tape=True, steps=3)
for through, terms in (("all", 3), ("last", 1)):
    _, whole = m.router_rows_vjp(A, R, three.tape, G, steps=3, through=through)
    _, factors = m.router_rows_vjp(A, R, three.tape, G, steps=3, through=through, factored=True)
    outer = sum(np.einsum("nf,nd->nfd", p, z) + np.einsum("nf,nd->nfd", w, r) for p, z, w, r in factors)
    assert len(factors) == terms and np.allclose(outer, whole)
assert m.router_rows_vjp(A, R, three.tape, G, steps=3, through="none")[1] is None
float_gates = A.astype(np.float16)
half = m.router_rows(float_gates, R32, tape=True)
assert m.router_rows_vjp(float_gates, R32, half.tape, G.astype(np.float32))[1].dtype == np.float32

# The gate: softmax by NumPy.
logits = random.standard_normal((300, N))
told = m.gate(logits, 2, threads=2)
order = np.argsort(-logits, axis=1)[:, :2]
best = np.exp(np.take_along_axis(logits, order, 1))
assert np.array_equal(told.experts, order) and np.allclose(told.weights, best / best.sum(1, keepdims=True))
mask = np.ones(300, bool)
mask[4] = False
masked = m.gate(logits, 2, mask=mask, selection_bias=np.array([0, -np.inf, 0]))
assert m.STATUSES[masked.statuses[4]] == "masked" and not (masked.experts[mask] == 1).any()
gw = random.standard_normal(told.weights.shape)
gradient = m.gate_vjp(logits, told, gw)
step = np.zeros_like(logits)
step[7, 0] = h
difference = ((m.gate(logits + step, 2).weights - m.gate(logits - step, 2).weights) * gw).sum() / (2 * h)
assert abs(difference - gradient[7, 0]) < 1e-7
again = gradient.copy()
assert np.allclose(m.gate_vjp(logits, told, gw, grad_logits=again, accumulate=True), 2 * gradient)

# Certificates: NumPy's SVD lies within them.
_, sigma, v = np.linalg.svd(A)
for options in ({}, {"rigorous_up_to": 2}):
    c = m.certify(A, R, threads=2, **options)
    cosine = np.abs((v[:, 0] * R).sum(1)) / np.linalg.norm(R, axis=1)
    angle = np.arccos(cosine)
    assert (c.rows["angle_low"] <= angle).all() and (angle <= c.rows["angle_high"]).all()
    assert (c.found["sigma_low"] <= sigma[:, 0] * (1 + 1e-14)).all() and (c.found["sigma_high"] > sigma[:, 0] * (1 - 1e-14)).all()
    label = "rigorous" if not options else "probabilistic"
    assert all(m.CERTAINTIES[k] == label for k in c.found["certainty"])
nearer = m.certify_rows(A, plain.rows, c)
assert (nearer["rayleigh"] >= c.rows["rayleigh"]).all()

# Mistakes.
error = refused(m.MpiRouterError, "router is [3, 6], not [3, 7]", m.router_rows, A, R[:, :6])
assert error.code == "invalid_argument"
refused(m.MpiRouterError, "steps is 0", m.router_rows, A, R, steps=0)
error = refused(m.MpiRouterError, "router is f64, and the sums are taken in f32", m.router_rows, A.astype(np.float32), R)
assert error.code == "unsupported"
refused(m.MpiRouterError, "overlap", m.router_rows, A, R, out=R)
refused(m.MpiRouterError, "tape has 8 bytes", m.router_rows_vjp, A, R, np.zeros(1), G)
refused(m.MpiRouterError, "top_k is 9 for 3 experts", m.gate, logits, 9)
refused(m.MpiRouterError, "failure_probability", m.certify, A, R, failure_probability=2.0)
refused(TypeError, "int64 is none of float64", m.router_rows, A.astype(np.int64), R)
refused(TypeError, "bf16=True", m.router_rows, bits, R32)
refused(TypeError, "byte order", m.router_rows, A.astype(">f8"), R)
refused(TypeError, "no option depth", m.certify, A, R, depth=3)
refused(ValueError, "radius_rule is 'free'", m.router_rows, A, R, radius_rule="free")
refused(ValueError, "not 3 axes", m.router_rows, A[0], R)
refused(ValueError, "expert 1 is float32", m.router_rows, [A[0], A[1].astype(np.float32), A[2]], R)
refused(ValueError, "needs the gradients", m.router_rows_vjp, A, R, plain.tape, G, accumulate=True)
frozen = np.zeros_like(R)
frozen.flags.writeable = False
refused(ValueError, "not writeable", m.router_rows, A, R, out=frozen)
packed = np.zeros(N * D, np.dtype([("x", "f4"), ("y", "i2")]))["x"].reshape(N, D)
refused(ValueError, "whole elements", m.router_rows, A.astype(np.float32), packed)

# What is no array lives as long as the call, and is not written to.
lists = m.router_rows(A.tolist(), R.tolist(), tape=True)
assert np.array_equal(lists.rows, plain.rows)
big_r, big_g = random.standard_normal((8, 20000)), random.standard_normal((8, 20000))
big_a = random.standard_normal((8, 2, 20000))
big = m.router_rows(big_a, big_r, tape=True)
of_lists = m.router_rows_vjp(big_a, big_r, big.tape, big_g.tolist())
of_arrays = m.router_rows_vjp(big_a, big_r, big.tape, big_g)
assert all(np.array_equal(x, y) for x, y in zip(of_lists, of_arrays))
pair = np.array([[0.5, 0.25]])
chosen = m.gate(pair, 1, selection_bias=[0.0, -np.inf])
assert np.array_equal(m.gate_vjp(pair, chosen, [[1.0]], selection_bias=[0.0, -np.inf]),
                      m.gate_vjp(pair, chosen, np.ones((1, 1)), selection_bias=np.array([0.0, -np.inf])))
refused(TypeError, "must be a NumPy array, not list", m.router_rows, A, R, out=[[0.0] * D for _ in range(N)])
refused(m.MpiRouterError, "two of their pointers are one", m.router_rows_vjp, A, R, plain.tape, G,
        grad_experts=[np.zeros((F, D))] * N)

# What would be read as something else.
refused(TypeError, "mask is uint8, not bool", m.gate, logits, 2, mask=np.zeros(len(logits), np.uint8))
refused(m.MpiRouterError, "selection_bias has 0 elements", m.gate, logits, 2, selection_bias=np.zeros(0))
for tape in (None, np.stack([plain.tape] * 2, 1)[:, 0], plain.tape.astype(np.float32), plain.tape[::-1]):
    refused(TypeError, "tape is not what", m.router_rows_vjp, A, R, tape, G)
refused(ValueError, "this backward writes none", m.router_rows_vjp, A, R, plain.tape, G, factored=True,
        grad_experts=np.zeros((N, F, D)))
refused(ValueError, "no 64 bits", m.router_rows, A, R, steps=2**64 + 1)
refused(ValueError, "no 64 bits", m.certify, A, R, max_steps=2**64 + 5)
for threads in (0, -1):
    refused(ValueError, "not at least 1", m.router_rows, A, R, threads=threads)

# Threads of Python have texts of their own.
texts = []
worker = threading.Thread(target=lambda: texts.append(str(refused(m.MpiRouterError, "", m.router_rows, A, R[:1]))))
worker.start()
worker.join()
assert "router is [1, 7]" in texts[0]

# Arrays on a GPU, of which there is none here: what the calls would be given.
error = refused(m.MpiRouterError, "", m.Cuda)
assert (error.code, "without CUDA" in str(error)) in (("unsupported", True), ("device_error", False)), error


class TensorLike:  # says what a tensor of PyTorch says
    device = SimpleNamespace(type="cuda")

    def __init__(self, array, dtype=None):
        self.array, self.shape, self.nbytes = array, array.shape, array.nbytes
        self.dtype = dtype or f"torch.{array.dtype}"

    def data_ptr(self):
        return self.array.ctypes.data

    def stride(self):
        return tuple(s // self.array.itemsize for s in self.array.strides)


class CupyLike:
    def __init__(self, array, contiguous=False):
        self.array, self.nbytes = array, array.nbytes
        self.__cuda_array_interface__ = {"data": (array.ctypes.data, False), "shape": array.shape, "version": 3,
                                         "typestr": array.dtype.str, "strides": None if contiguous else array.strides}


gpu, asked = m.Cuda.__new__(m.Cuda), []
gpu._facts, gpu._kept, gpu._sizes = m._CudaFacts(capability=90, multiprocessors=132), threading.local(), {}
gpu._run = lambda name, *arguments: asked.append((name, arguments))
fused32, r32, scratch = np.zeros((N, 2 * F, D), np.float32)[:, ::2], R.astype(np.float32), np.zeros(512, np.uint8)
told = np.zeros(N)
options = m.step_options(radius=2.0, radius_rule="fixed", degenerate="zero")
for like in (TensorLike, CupyLike):
    gpu.router_rows(like(fused32), like(r32), like(r32), like(scratch), 77, tape=like(scratch), options=options,
                    rayleigh=like(told))
    name, (here, experts, router, given, rows, numbers, tape) = asked.pop()
    assert name == "cuda_rows" and given is options
    assert (here.stream, here.capability, here.workspace.data, here.workspace.bytes) == (77, 90, scratch.ctypes.data, 512)
    assert (experts.data, experts.dtype, experts.device) == (fused32.ctypes.data, m._F32, 1)
    assert tuple(experts.shape) == (N, F, D) and tuple(experts.strides) == (2 * F * D, 2 * D, 1)
    assert router is not rows and tuple(rows.strides) == (D, 1) and router.device == 1
    assert (tape.data, tape.bytes) == (scratch.ctypes.data, 512)
    assert (numbers.rayleigh, numbers.cosine) == (told.ctypes.data, None)
gpu.router_rows(TensorLike(fused32[1:]), TensorLike(r32[1:]), TensorLike(r32[1:]), TensorLike(scratch))
later = asked.pop()[1]
assert later[1].data == fused32[1:].ctypes.data and later[1].shape[0] == N - 1 and later[0].stream is None
gpu.router_rows_vjp(TensorLike(bits, "torch.bfloat16"), CupyLike(r32, True), TensorLike(scratch), TensorLike(r32),
                    TensorLike(scratch), grad_experts=TensorLike(fused32), accumulate=True)
name, arguments = asked.pop()
assert name == "cuda_rows_vjp" and arguments[1].dtype == m._BF16 and arguments[6] is None
assert tuple(arguments[2].strides) == (D, 1) and arguments[8].value == 1
for wanted, name in (({"factors": TensorLike(scratch)}, "cuda_rows_vjp_factored"), ({}, "cuda_rows_vjp_detached")):
    gpu.router_rows_vjp(TensorLike(fused32), TensorLike(r32), TensorLike(scratch), TensorLike(r32), TensorLike(scratch),
                        grad_router=TensorLike(r32), **wanted)
    assert asked.pop()[0] == name
pointers = gpu.expert_pointers(TensorLike(scratch), TensorLike(fused32[0]), N)
gpu.router_rows(pointers, TensorLike(r32), TensorLike(r32), TensorLike(scratch))
experts = asked.pop()[1][1]
assert (experts.data, experts.pointers, experts.strides[1]) == (None, scratch.ctypes.data, 2 * D)
ends = TensorLike(np.arange(N, dtype=np.int32))
gpu.put_factors(TensorLike(r32), TensorLike(r32), ends, TensorLike(r32), TensorLike(scratch), TensorLike(scratch), 77)
name, arguments = asked.pop()
assert name == "cuda_put_factors" and arguments[0].stream == 77 and arguments[3].value == ends.array.ctypes.data
assert arguments[5].bytes == 512
for wrong in (np.arange(N - 1, dtype=np.int32), np.arange(N, dtype=np.int64), np.arange(2 * N, dtype=np.int32)[::2]):
    refused(ValueError, "not contiguous int32", gpu.put_factors, TensorLike(r32), TensorLike(r32), TensorLike(wrong),
            TensorLike(r32), TensorLike(scratch), TensorLike(scratch))
gpu.restore_padding(TensorLike(r32), TensorLike(r32), ends, TensorLike(scratch))
name, arguments = asked.pop()
assert name == "cuda_restore_padding" and arguments[4].value == N
gpu.gate(TensorLike(r32), TensorLike(r32[:, :2]), TensorLike(scratch), load=TensorLike(scratch), score_function="sigmoid")
name, arguments = asked.pop()
assert name == "cuda_gate" and arguments[2].top_k == 2 and arguments[3] is None and arguments[8].value == scratch.ctypes.data
for size in (gpu.tape_size, gpu.tape_size, gpu.router_rows_workspace, gpu.router_rows_vjp_workspace):
    size(TensorLike(fused32))  # the second time it is known
assert [name for name, _ in asked] == ["tape_size", "cuda_rows_workspace_size", "cuda_rows_vjp_workspace_size"]
on_host = TensorLike(r32)
on_host.device = SimpleNamespace(type="cpu")
refused(TypeError, "not on a GPU", gpu.router_rows, TensorLike(fused32), on_host, on_host, TensorLike(scratch))
refused(TypeError, "ndarray is no array on a GPU", gpu.router_rows, A, R, R, TensorLike(scratch))
refused(TypeError, "torch.int64 is none of", gpu.router_rows, TensorLike(np.zeros((N, F, D), np.int64)),
        TensorLike(r32), TensorLike(r32), TensorLike(scratch))
refused(ValueError, "router has the shape (3, 5, 7), not 2 axes", gpu.router_rows, TensorLike(fused32),
        TensorLike(fused32), TensorLike(r32), TensorLike(scratch))
refused(ValueError, "one of them", gpu.router_rows_vjp, TensorLike(fused32), TensorLike(r32), TensorLike(scratch),
        TensorLike(r32), TensorLike(scratch), grad_experts=TensorLike(fused32), factors=TensorLike(scratch))

# No library: a clear error.
os.environ["MPIROUTER_LIBRARY"] = "/no/such/library.so"
refused(ImportError, "/no/such/library.so", m._load)
print("mpi_router", m.version(), m.instruction_set(), "numpy", np.__version__)
