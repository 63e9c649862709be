"""Manifold Power Iteration for MoE routers (arXiv 2606.12397) on NumPy arrays: the rows of a router, their
gradients, the gate, and certificates of how far rows are from the principal singular directions of their experts.

One file over ctypes and NumPy; it needs the shared library of mpi_router::c. That is looked for at the path in the
environment variable MPIROUTER_LIBRARY, beside this file, and where the system keeps libraries.

Experts are an array [N, F, D] of any strides, or a sequence of N arrays [F, D] with the same strides; arrays are
not copied. D is the length of a token: weights that are stored [N, D, F] are passed as `weights.transpose(0, 2, 1)`.
Types are float64, float32, float16, and bfloat16 as uint16 with bf16=True, or as ml_dtypes.bfloat16. What the
library refuses raises MpiRouterError (a ValueError) with its text, and MemoryError where its scratch does not fit; what
is no array or option that it could be asked about raises TypeError or ValueError.

Arrays on a GPU, PyTorch's or CuPy's, go through Cuda, which needs neither of them: see there.
"""

import ctypes
import ctypes.util
import operator
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np

__all__ = ["Cuda", "MpiRouterError", "certify", "certify_rows", "gate", "gate_vjp", "instruction_set", "router_rows",
           "router_rows_vjp", "step_options", "version"]

STATUSES = ("ok", "zero_row", "zero_image", "non_finite", "masked", "closed_expert")
CERTAINTIES = ("none", "heuristic", "probabilistic", "rigorous")
_NUMBERS = ("rayleigh", "cosine", "residual", "energy", "row_norm", "image_norm")
_CODES = {1: "invalid_argument", 2: "unsupported", 4: "internal", 5: "device_error"}
_F64, _F32, _BF16, _F16 = 1, 2, 3, 4
_VERSION = "0.1"  # of the library; before 1.0 every minor version may break its callers


class MpiRouterError(ValueError):
    """What the library refused; `code` is invalid_argument, unsupported, internal or device_error."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


# ---- The structs of mpi_router/c/mpi_router.h ---------------------------------------------------------------

_i32, _i64, _f64, _ptr = ctypes.c_int32, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class _Experts(ctypes.Structure):
    _fields_ = [("data", _ptr), ("pointers", _ptr), ("dtype", _i32), ("device", _i32), ("shape", _i64 * 3),
                ("strides", _i64 * 3)]


class _Matrix(ctypes.Structure):
    _fields_ = [("data", _ptr), ("dtype", _i32), ("device", _i32), ("shape", _i64 * 2), ("strides", _i64 * 2)]


class _Vector(ctypes.Structure):
    _fields_ = [("data", _ptr), ("dtype", _i32), ("device", _i32), ("size", _i64), ("stride", _i64)]


class _Options(ctypes.Structure):
    _fields_ = [("radius", _f64), ("radius_rule", _i32), ("degenerate", _i32), ("total_experts", _i64),
                ("steps", _i64), ("through", _i32), ("reserved", _i32)]


class _ByProducts(ctypes.Structure):
    _fields_ = [(name, _ptr) for name in ("statuses", *_NUMBERS)]


class _Buffer(ctypes.Structure):
    _fields_ = [("data", _ptr), ("bytes", _i64)]


_Task = ctypes.CFUNCTYPE(None, _ptr, _i64)
_ParallelFor = ctypes.CFUNCTYPE(None, _ptr, _i64, _Task, _ptr)


class _Threads(ctypes.Structure):
    _fields_ = [("parallel_for", _ParallelFor), ("context", _ptr)]


class _GatingOptions(ctypes.Structure):
    _fields_ = [("top_k", _i64), ("score_function", _i32), ("order", _i32), ("renormalize", _i32),
                ("group_score", _i32), ("scaling_factor", _f64), ("n_group", _i64), ("topk_group", _i64)]


class _CertifyOptions(ctypes.Structure):
    _fields_ = [("residual_tolerance", _f64), ("max_steps", _i64), ("basis", _i64), ("rigorous_up_to", _i64),
                ("failure_probability", _f64), ("probe_starts", _i64), ("probe_max_steps", _i64),
                ("seed", ctypes.c_uint64)]


class _CudaFacts(ctypes.Structure):
    _fields_ = [("stream", _ptr), ("workspace", _Buffer), ("inputs_at_rest", _i32), ("device", _i32),
                ("multiprocessors", _i32), ("capability", _i32), ("shared_memory", _i64), ("clusters", _i32 * 4)]


_DIRECTION = np.dtype([("certainty", "i4"), ("status", "i4"), ("angle_bound", "f8"), ("failure_probability", "f8"),
                       ("sigma_low", "f8"), ("sigma_high", "f8"), ("second_bound", "f8"), ("rayleigh", "f8"),
                       ("residual", "f8"), ("applications", "i8")])
_ROW = np.dtype([("certainty", "i4"), ("status", "i4"), ("angle", "f8"), ("angle_low", "f8"), ("angle_high", "f8"),
                 ("rayleigh", "f8"), ("residual", "f8")])


# ---- The library -------------------------------------------------------------------------------------------

def _load():
    names = (f"libmpi_router_c.so.{_VERSION}", "libmpi_router_c.so", "libmpi_router_c.dylib", "mpi_router_c.dll",
             "libmpi_router_c.dll")
    given = os.environ.get("MPIROUTER_LIBRARY")
    beside = [str(path) for path in (Path(__file__).with_name(name) for name in names) if path.exists()]
    tried = []
    for path in [given] if given else [*beside, *names, ctypes.util.find_library("mpi_router_c")]:
        try:
            if path:
                return ctypes.CDLL(path)
        except OSError as error:
            tried.append(str(error))
    raise ImportError("mpi_router: no shared library of mpi_router::c; set MPIROUTER_LIBRARY to its path. Tried: " +
                      "; ".join(tried))


_library = _load()
try:
    for _name in ("last_error", "version", "instruction_set"):
        getattr(_library, "mpi_router_" + _name).restype = ctypes.c_char_p
    _library.mpi_router_default_options.restype = _Options
    _library.mpi_router_default_gating_options.restype = _GatingOptions
    _library.mpi_router_default_gating_options.argtypes = [_i64]
    _library.mpi_router_default_certify_options.restype = _CertifyOptions
except AttributeError as error:
    raise ImportError(f"mpi_router: {_library._name} is not the library of mpi_router::c: {error}") from error


def version():
    """The version of the library that was loaded."""
    return _library.mpi_router_version().decode()


def instruction_set():
    """The instruction set that its kernels were chosen for."""
    return _library.mpi_router_instruction_set().decode()


if not version().startswith(_VERSION + "."):
    raise ImportError(f"mpi_router: this module is for version {_VERSION} of the library, and {version()} was found")


def _call(name, *arguments):
    """Calls a function of the library with structs (by reference), pointers, numbers or None."""
    passed = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
    threads = next((a for a in arguments if isinstance(a, _Threads)), None)

    def run():  # the text of an error belongs to the thread that called
        code = getattr(_library, "mpi_router_" + name)(*passed)
        return code, _library.mpi_router_last_error().decode() if code else ""

    code, text = run() if threads is None else _uninterrupted(run)
    if threads is not None and threads.raised:
        raise threads.raised[0]
    if code != 0:
        _raise(code, text)


def _raise(code, text):
    if code == 3:
        raise MemoryError(text)
    raise MpiRouterError(_CODES.get(code, "unknown"), text)


def _uninterrupted(run):
    """run() on a thread that no signal reaches: a callback must not leave while its tasks are under way."""
    result, interrupted = [], None
    thread = threading.Thread(target=lambda: result.append(run()))
    thread.start()
    while thread.is_alive():
        try:
            thread.join()
        except BaseException as error:  # KeyboardInterrupt, which waits until the call has ended
            interrupted = error
    if interrupted is not None:
        raise interrupted
    return result[0]


# ---- Arrays ------------------------------------------------------------------------------------------------

def _dtype(array, bf16, name):
    if not array.dtype.isnative:
        raise TypeError(f"{name}: {array.dtype} is not in the byte order of this machine")
    if array.dtype.name == "bfloat16" or (bf16 and array.dtype == np.uint16):
        return _BF16
    known = {"float64": _F64, "float32": _F32, "float16": _F16}
    if array.dtype.name not in known:
        hint = "; bfloat16 in uint16 is said by bf16=True" if array.dtype == np.uint16 else ""
        raise TypeError(f"{name}: {array.dtype} is none of float64, float32, float16 and bfloat16{hint}")
    return known[array.dtype.name]


def _strides(array, name):
    if any(stride % array.itemsize for stride in array.strides):
        raise ValueError(f"{name}: strides of {array.strides} bytes are not whole elements of {array.itemsize}")
    return [stride // array.itemsize for stride in array.strides]


def _as_array(array, name, axes, written=False):
    if written and not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is written to, so it must be a NumPy array, not {type(array).__name__}")
    array = np.asarray(array)
    if array.ndim != axes:
        raise ValueError(f"{name} has the shape {array.shape}, not {axes} axes")
    if written and not array.flags.writeable:
        raise ValueError(f"{name} is not writeable")
    return array


def _keeping(struct, *arrays):
    """The struct, which has their addresses: they live as long as it does."""
    struct.kept = arrays
    return struct


def _matrix(array, name, bf16=False, written=False):
    array = _as_array(array, name, 2, written)
    return _keeping(_Matrix(array.ctypes.data, _dtype(array, bf16, name), 0, (_i64 * 2)(*array.shape),
                            (_i64 * 2)(*_strides(array, name))), array)


def _vector(array, name):
    array = _as_array(array, name, 1)
    return _keeping(_Vector(array.ctypes.data, _dtype(array, False, name), 0, array.shape[0],
                            _strides(array, name)[0]), array)


def _experts(experts, name, bf16=False, written=False):
    if isinstance(experts, (list, tuple)) and experts and np.ndim(experts[0]) == 2:
        arrays = [_as_array(e, f"{name}[{i}]", 2, written) for i, e in enumerate(experts)]
        return _expert_pointers(arrays, name, bf16)
    array = _as_array(experts, name, 3, written)
    return _keeping(_Experts(array.ctypes.data, None, _dtype(array, bf16, name), 0, (_i64 * 3)(*array.shape),
                             (_i64 * 3)(*_strides(array, name))), array)


def _expert_pointers(arrays, name, bf16):
    first = arrays[0]
    for i, array in enumerate(arrays):
        if (array.shape, array.strides, array.dtype) != (first.shape, first.strides, first.dtype):
            raise ValueError(f"{name}: expert {i} is {array.dtype} {array.shape} with strides {array.strides}, "
                             f"expert 0 is {first.dtype} {first.shape} with strides {first.strides}")
    table = (_ptr * len(arrays))(*[array.ctypes.data for array in arrays])
    return _keeping(_Experts(None, ctypes.cast(table, _ptr), _dtype(first, bf16, name), 0,
                             (_i64 * 3)(len(arrays), *first.shape), (_i64 * 3)(0, *_strides(first, name))),
                    table, arrays)


def _pointer(array):
    return None if array is None else array.ctypes.data_as(_ptr)


def _sums(experts):
    return np.float64 if experts.dtype == _F64 else np.float32


# ---- Options -----------------------------------------------------------------------------------------------

def _number(name, value, names):
    if value not in names:
        raise ValueError(f"{name} is {value!r}, which is none of {', '.join(names)}")
    return names.index(value)


def _integer(name, value, lowest=-2**63, highest=2**63 - 1):
    value = operator.index(value)
    if not lowest <= value <= highest:  # which ctypes would wrap
        raise ValueError(f"{name} is {value}, which no 64 bits hold")
    return value


def _options(radius=4.0, radius_rule="scale_free", total_experts=0, steps=1, degenerate="keep", through="all"):
    return _Options(radius, _number("radius_rule", radius_rule, ("scale_free", "fixed")),
                    _number("degenerate", degenerate, ("keep", "zero")),
                    _integer("total_experts", total_experts), _integer("steps", steps),
                    _number("through", through, ("all", "last", "none")), 0)


def step_options(**options):
    """The options of router_rows as one object, which Cuda takes: made once for many calls."""
    return _options(**options)


def _threads(count):
    """A parallel_for of `count` threads, or None. The tasks run in C, without the interpreter's lock."""
    count = operator.index(count)
    if count < 1:
        raise ValueError(f"threads is {count}, not at least 1")
    if count == 1:
        return None
    raised = []

    def parallel_for(_, tasks, task, data):
        try:
            with ThreadPoolExecutor(count) as pool:
                for done in [pool.submit(task, data, index) for index in range(tasks)]:
                    done.result()
        except BaseException as error:  # which no callback of ctypes lets through
            raised.append(error)

    struct = _Threads(_ParallelFor(parallel_for), None)
    struct.raised = raised
    return struct


# ---- The rows of a router ----------------------------------------------------------------------------------

def router_rows(experts, router, *, out=None, bf16=False, tape=False, threads=1, **options):
    """The rows that tokens are compared with: row i is C r_i M_i/‖r_i M_i‖ with M_i = A_iᵀA_i (Eq. 4, 5).

    router: [N, D]. options: radius (4), radius_rule ("scale_free": rows of length radius/√N, or "fixed"), total_experts,
    steps (1), degenerate ("keep" or "zero"). Returns rows (`out`, or an array like the router), statuses (see
    STATUSES), rayleigh, cosine, residual, energy, row_norm, image_norm, and with tape=True what router_rows_vjp needs.
    """
    router = np.asarray(router)
    rows = np.empty_like(router, order="C") if out is None else out
    e, o = _experts(experts, "experts", bf16), _options(**options)
    told = {name: np.zeros(e.shape[0]) for name in _NUMBERS}
    told["statuses"] = np.zeros(e.shape[0], np.uint8)
    saved = _buffer("tape_size", e, o) if tape else None
    _call("rows", e, _matrix(router, "router", bf16), o, _matrix(rows, "out", bf16, written=True),
          _ByProducts(**{name: array.ctypes.data for name, array in told.items()}),
          None if saved is None else _Buffer(saved.ctypes.data, saved.nbytes), _threads(threads))
    return SimpleNamespace(rows=rows, tape=saved, **told)


def _buffer(size, experts, options):
    size_in_bytes = _i64()
    _call(size, experts, options, ctypes.byref(size_in_bytes))
    return np.zeros((size_in_bytes.value + 7) // 8, np.float64)


def router_rows_vjp(experts, router, tape, grad_rows, *, grad_experts=None, grad_router=None, accumulate=False,
                    factored=False, bf16=False, threads=1, **options):
    """The backward of router_rows, with the same experts, router, options and the tape that it gave.

    Returns (grad_router, grad_experts). Both are written, or with accumulate=True added to; grad_router is made like the
    router and grad_experts contiguous, in float32 (float64 of float64), where they are not given; accumulate needs
    both. factored=True: the gradient to the experts is a list with one (p, z, w, r) for each term, p and w [N, F], z and
    r [N, D], of which expert i has the sum of outer(p[i], z[i]) + outer(w[i], r[i]). through="none": no gradient to the
    experts.
    """
    router = np.asarray(router)
    e, o = _experts(experts, "experts", bf16), _options(**options)
    detached = o.through == 2
    if not isinstance(tape, np.ndarray) or tape.dtype != np.float64 or not tape.flags.c_contiguous:
        raise TypeError("tape is not what router_rows(…, tape=True) gave")
    if grad_experts is not None and (factored or detached):
        raise ValueError("grad_experts is given, and this backward writes none")
    if accumulate and (grad_router is None or (grad_experts is None and not factored and not detached)):
        raise ValueError("accumulate=True needs the gradients to add to")
    if grad_router is None:
        grad_router = np.empty_like(router, order="C")
    common = (e, _matrix(router, "router", bf16), o, _Buffer(tape.ctypes.data, tape.nbytes),
              _matrix(grad_rows, "grad_rows", bf16), _matrix(grad_router, "grad_router", bf16, written=True))
    mode, run = _i32(int(accumulate)), _threads(threads)
    if detached:
        _call("rows_vjp_detached", *common, mode, run)
        return grad_router, None
    if factored:
        memory = _buffer("factors_size", e, o)
        _call("rows_vjp_factored", *common, _Buffer(memory.ctypes.data, memory.nbytes), mode, run)
        return grad_router, _factors(memory, e, o)
    if grad_experts is None:
        grad_experts = np.empty(tuple(e.shape), _sums(e))
    _call("rows_vjp", *common, _experts(grad_experts, "grad_experts", bf16, written=True), mode, run)
    return grad_router, grad_experts


def _factors(memory, experts, options):
    n, f, d = experts.shape
    terms = options.steps if options.through == 0 else 1
    numbers = memory.view(_sums(experts))[:terms * n * 2 * (f + d)].reshape(terms, n, 2 * (f + d))
    return [tuple(np.split(term, (f, f + d, 2 * f + d), axis=1)) for term in numbers]


# ---- The gate ----------------------------------------------------------------------------------------------

def _gating(top_k, score_function="softmax", order="score_then_select", renormalize=None, scaling_factor=1.0,
            n_group=1, topk_group=1, group_score="top2_sum"):
    o = _library.mpi_router_default_gating_options(_integer("top_k", top_k))
    o.score_function = _number("score_function", score_function, ("softmax", "sigmoid", "sqrtsoftplus"))
    o.order = _number("order", order, ("score_then_select", "select_then_score"))
    o.renormalize = o.renormalize if renormalize is None else int(renormalize)
    o.group_score = _number("group_score", group_score, ("top2_sum", "top_k_share_sum", "max"))
    o.scaling_factor = scaling_factor
    o.n_group, o.topk_group = _integer("n_group", n_group), _integer("topk_group", topk_group)
    return o


def gate(logits, top_k, *, selection_bias=None, mask=None, threads=1, **options):
    """Selects top_k experts for each token and weighs them (Eq. 6).

    logits: [T, N], float32 or float64; selection_bias: [N] or None; mask: [T] of bool, which tokens count, or None.
    options: score_function, order, renormalize, scaling_factor, n_group, topk_group, group_score. Returns weights
    [T, K], experts [T, K] (int32, best first) and statuses [T].
    """
    logits = _as_array(logits, "logits", 2)
    tokens = logits.shape[0]
    told = SimpleNamespace(weights=np.zeros((tokens, max(top_k, 0)), logits.dtype),
                           experts=np.zeros((tokens, max(top_k, 0)), np.int32), statuses=np.zeros(tokens, np.uint8))
    masked = None
    if mask is not None:
        mask = _as_array(mask, "mask", 1)
        if mask.dtype != np.bool_:
            raise TypeError(f"mask is {mask.dtype}, not bool: True for the tokens that count")
        masked = np.where(mask, 0, STATUSES.index("masked")).astype(np.uint8)
        if masked.shape != (tokens,):
            raise ValueError(f"mask has the shape {masked.shape}, logits are {logits.shape}")
    _call("gate", _matrix(logits, "logits"), _gating(top_k, **options), _bias(selection_bias), _pointer(masked),
          _matrix(told.weights, "weights"), _pointer(told.experts), _pointer(told.statuses), _threads(threads))
    return told


def _bias(selection_bias):
    return None if selection_bias is None else _vector(selection_bias, "selection_bias")


def gate_vjp(logits, told, grad_weights, *, selection_bias=None, grad_logits=None, accumulate=False, threads=1,
             **options):
    """The backward of gate: the gradient to the logits [T, N], from what gate told of the same logits and options."""
    logits = _as_array(logits, "logits", 2)
    if accumulate and grad_logits is None:
        raise ValueError("accumulate=True needs the gradient to add to")
    grad_logits = np.empty_like(logits, order="C") if grad_logits is None else grad_logits
    ids, statuses = np.ascontiguousarray(told.experts), np.ascontiguousarray(told.statuses)
    if ids.dtype != np.int32 or statuses.dtype != np.uint8:
        raise TypeError(f"experts are {ids.dtype} and statuses {statuses.dtype}, not int32 and uint8")
    if ids.shape[:1] != logits.shape[:1] or ids.ndim != 2 or statuses.shape != logits.shape[:1]:
        raise ValueError(f"experts {ids.shape} and statuses {statuses.shape} are not of logits {logits.shape}")
    _call("gate_vjp", _matrix(logits, "logits"), _gating(ids.shape[1], **options), _bias(selection_bias),
          _pointer(ids), _pointer(statuses), _matrix(grad_weights, "grad_weights"),
          _matrix(grad_logits, "grad_logits", written=True), _i32(int(accumulate)), _threads(threads))
    return grad_logits


# ---- Certificates ------------------------------------------------------------------------------------------

def certify(experts, router, *, bf16=False, threads=1, **options):
    """Finds the principal right singular direction of each expert from its row, proves what it can, and says where the
    rows stand.

    options: residual_tolerance, max_steps, basis, rigorous_up_to, failure_probability, probe_starts, probe_max_steps,
    seed. Returns directions [N, D] (float64, unit rows), found and rows: structured arrays of N, with the fields of
    mpi_router_direction and mpi_router_row_certificate (see CERTAINTIES and STATUSES).
    """
    e, o = _experts(experts, "experts", bf16), _library.mpi_router_default_certify_options()
    for name, value in options.items():
        if name not in dict(_CertifyOptions._fields_):
            raise TypeError(f"certify has no option {name}")
        if name == "seed":
            value = _integer(name, value, 0, 2**64 - 1)
        elif dict(_CertifyOptions._fields_)[name] is _i64:
            value = _integer(name, value)
        setattr(o, name, value)
    n, _, d = e.shape
    found = SimpleNamespace(directions=np.zeros((n, d)), found=np.zeros(n, _DIRECTION))
    _call("find_directions", e, _matrix(router, "router", bf16), o, _pointer(found.found),
          _matrix(found.directions, "directions"), _threads(threads))
    found.rows = certify_rows(experts, router, found, bf16=bf16, threads=threads)
    return found


def certify_rows(experts, rows, certified, *, bf16=False, threads=1):
    """Where other rows of the same experts stand, against the directions that certify found."""
    e = _experts(experts, "experts", bf16)
    found = np.ascontiguousarray(certified.found, _DIRECTION)
    if found.shape != (e.shape[0],):
        raise ValueError(f"{found.shape} directions were found, and there are {e.shape[0]} experts")
    certificates = np.zeros(e.shape[0], _ROW)
    _call("certify_rows", e, _matrix(rows, "rows", bf16), _pointer(found), _matrix(certified.directions, "directions"),
          _pointer(certificates), _threads(threads))
    return certificates


# ---- On GPUs -----------------------------------------------------------------------------------------------

_device_dtypes = {}  # of PyTorch and CuPy, as they come


def _device_dtype(dtype):
    code = _device_dtypes.get(dtype)
    if code is None:
        name = str(dtype).removeprefix("torch.")
        known = {"float64": _F64, "float32": _F32, "float16": _F16, "bfloat16": _BF16}
        if name not in known:
            raise TypeError(f"{dtype} is none of float64, float32, float16 and bfloat16")
        code = _device_dtypes[dtype] = known[name]
    return code


def _device_array(array):
    """The address, shape, strides in elements and dtype of an array of PyTorch, or of one that has
    __cuda_array_interface__."""
    if hasattr(array, "data_ptr"):
        if array.device.type != "cuda":
            raise TypeError(f"an array on {array.device}, not on a GPU: router_rows and its like take those of NumPy")
        return array.data_ptr(), array.shape, array.stride(), array.dtype
    if not hasattr(array, "__cuda_array_interface__"):
        raise TypeError(f"{type(array).__name__} is no array on a GPU: it has neither data_ptr nor __cuda_array_interface__")
    told = array.__cuda_array_interface__
    dtype, shape = np.dtype(told["typestr"]), told["shape"]
    strides = told.get("strides")
    if strides is None:
        return told["data"][0], shape, tuple(int(np.prod(shape[i + 1:])) for i in range(len(shape))), dtype
    if any(stride % dtype.itemsize for stride in strides):
        raise ValueError(f"strides of {strides} bytes are not whole elements of {dtype.itemsize}")
    return told["data"][0], shape, tuple(stride // dtype.itemsize for stride in strides), dtype


def _address(array):
    return array.data_ptr() if hasattr(array, "data_ptr") else array.__cuda_array_interface__["data"][0]


def _device_pointer(array):
    return None if array is None else _ptr(_address(array))


def _ends(offsets, count=None):
    """The address of where experts end."""
    address, shape, strides, dtype = _device_array(offsets)
    if (str(dtype).removeprefix("torch.") != "int32" or len(shape) != 1 or count not in (None, shape[0]) or
            (shape[0] > 1 and strides[0] != 1)):
        raise ValueError(f"offsets is {dtype} {tuple(shape)} with strides {tuple(strides)}, not contiguous int32 "
                         f"({'N' if count is None else count},)")
    return _ptr(address)


class Cuda:
    """The calls on the GPU that is current when it is made; it must be current at each call, too. Keep one for each GPU.

    Arrays are PyTorch's tensors or CuPy's arrays, with any strides, and everything that is written is the caller's: no
    call allocates memory of the GPU or waits for it, and all may be captured in graphs. `stream` is the address of a
    cudaStream_t (torch.cuda.current_stream().cuda_stream, cupy.cuda.get_current_stream().ptr; 0: the default one),
    `workspace` an array of so many bytes as the _workspace method says, aligned to 256, as allocators do.

        gpu = mpi_router.Cuda()
        options = mpi_router.step_options(radius=2.0, radius_rule="fixed", degenerate="zero")
        scratch = torch.empty(gpu.router_rows_workspace(gates, options), dtype=torch.uint8, device="cuda")
        tape = torch.empty(gpu.tape_size(gates), dtype=torch.uint8, device="cuda")
        gpu.router_rows(gates, router, rows, scratch, stream, tape=tape, options=options)

    Experts that lie apart are passed as expert_pointers(…). Errors are those of the module; a call that fails on the GPU
    raises MpiRouterError with the code device_error. What is known of arrays of one form is kept, for each thread.
    """

    def __init__(self):
        self._facts = _CudaFacts()
        _call("cuda_of_current_device", self._facts)
        self._kept = threading.local()
        self._sizes = {}

    @property
    def device(self):
        return self._facts.device

    def expert_pointers(self, table, first, count):
        """Experts like `first` [F, D], whose addresses are in `table`: `count` of 64 bits, on the GPU."""
        _, shape, strides, dtype = _device_array(first)
        if len(shape) != 2:
            raise ValueError(f"an expert has the shape {tuple(shape)}, not 2 axes")
        return _keeping(_Experts(None, _address(table), _device_dtype(dtype), 1, (_i64 * 3)(count, *shape),
                                 (_i64 * 3)(0, *strides)), table)

    def tape_size(self, experts):
        """Bytes of the tape of one step."""
        return self._size("tape_size", experts, None)

    def factors_size(self, experts):
        """Bytes of the factors: p [N, F], z [N, D], w [N, F] in float32, one behind the other."""
        return self._size("factors_size", experts, None)

    def router_rows_workspace(self, experts, options=None):
        """Bytes of workspace of router_rows."""
        return self._size("cuda_rows_workspace_size", experts, options, key=options and options.steps)

    def router_rows_vjp_workspace(self, experts, grad_experts=None, accumulate=False):
        """Bytes of workspace of router_rows_vjp with this gradient to the experts."""
        if grad_experts is None:
            return self._size("cuda_rows_vjp_workspace_size", experts, None, _i32(0))
        return self._size("cuda_rows_vjp_workspace_size", experts, self._experts(grad_experts, "grad_experts"),
                          _i32(int(accumulate)), key=(self._form(grad_experts), accumulate))

    def router_rows(self, experts, router, out, workspace, stream=0, *, tape=None, options=None, inputs_at_rest=False,
                    **told):
        """The rows, written to `out` [N, D]; it may be the router. told: arrays of N by the names of router_rows, which
        are written: statuses (bytes) and numbers (float64)."""
        by_products = _ByProducts(**{name: _device_pointer(array) for name, array in told.items()}) if told else None
        self._run("cuda_rows", self._here(stream, workspace, inputs_at_rest), self._experts(experts, "experts"),
                  self._matrix(router, "router"), options, self._matrix(out, "out"), by_products, self._buffer(tape, "tape"))

    def router_rows_vjp(self, experts, router, tape, grad_rows, workspace, stream=0, *, grad_router=None,
                        grad_experts=None, factors=None, accumulate=False, options=None):
        """The backward. grad_router is written, or not wanted; grad_experts is written, with accumulate=True added to,
        or not wanted, and may be left as `factors`, of factors_size bytes."""
        here = self._here(stream, workspace)
        common = (here, self._experts(experts, "experts"), self._matrix(router, "router"), options,
                  self._buffer(tape, "tape"), self._matrix(grad_rows, "grad_rows"),
                  None if grad_router is None else self._matrix(grad_router, "grad_router"))
        if grad_experts is not None and factors is not None:
            raise ValueError("grad_experts and factors are given: one of them")
        if grad_experts is not None:
            self._run("cuda_rows_vjp", *common, self._experts(grad_experts, "grad_experts"), _i32(int(accumulate)))
        elif factors is not None:
            self._run("cuda_rows_vjp_factored", *common, self._buffer(factors, "factors"))
        else:
            self._run("cuda_rows_vjp_detached", *common)

    def put_factors(self, grads, tokens, offsets, router, factors, workspace, stream=0):
        """Puts the factors of router_rows_vjp into the padding of the operands of a grouped weight-gradient product,
        grads [T, F] and tokens [T, D], of which expert e ends before row offsets[e] (int32): its last two rows. The
        workspace keeps what was there, 2 N (F + D) elements, for restore_padding with the same arrays."""
        r = self._matrix(router, "router")
        self._run("cuda_put_factors", self._here(stream, workspace), self._matrix(grads, "grads"),
                  self._matrix(tokens, "tokens"), _ends(offsets, r.shape[0]), r, self._buffer(factors, "factors"))

    def restore_padding(self, grads, tokens, offsets, workspace, stream=0):
        """Puts back what put_factors took."""
        self._run("cuda_restore_padding", self._here(stream, workspace), self._matrix(grads, "grads"),
                  self._matrix(tokens, "tokens"), _ends(offsets), _i64(_device_array(offsets)[1][0]))

    def gate(self, logits, weights, experts, stream=0, *, statuses=None, load=None, selection_bias=None, mask=None,
             **options):
        """Selects K experts for each token: logits [T, N] to weights [T, K], both float32, and experts [T, K] (int32).
        statuses, mask: T bytes; load: N of int32, which is added to. options: as of gate."""
        w = self._matrix(weights, "weights")
        self._run("cuda_gate", self._here(stream), self._matrix(logits, "logits"), _gating(w.shape[1], **options),
                  None if selection_bias is None else self._vector(selection_bias), _device_pointer(mask), w,
                  _device_pointer(experts), _device_pointer(statuses), _device_pointer(load))

    # What ctypes makes of an array costs more than the call: a struct for each use and form of array is kept, and takes
    # but the address.

    def _struct(self, array, use, axes, make):
        address, shape, strides, dtype = _device_array(array)
        structs = self._kept.__dict__
        struct = structs.get((use, dtype, shape, strides))
        if struct is None:
            if len(structs) > 1024:  # of shapes that change from call to call
                structs.clear()
            if len(shape) != axes:
                raise ValueError(f"{use} has the shape {tuple(shape)}, not {axes} axes")
            struct = structs[use, dtype, shape, strides] = make(_device_dtype(dtype), shape, strides)
        struct.data = address
        return struct

    def _experts(self, experts, use):
        if isinstance(experts, _Experts):
            return experts
        return self._struct(experts, use, 3, lambda dtype, shape, strides: _Experts(
            None, None, dtype, 1, (_i64 * 3)(*shape), (_i64 * 3)(*strides)))

    def _matrix(self, array, use):
        return self._struct(array, use, 2, lambda dtype, shape, strides: _Matrix(
            None, dtype, 1, (_i64 * 2)(*shape), (_i64 * 2)(*strides)))

    def _vector(self, array):
        return self._struct(array, "selection_bias", 1, lambda dtype, shape, strides: _Vector(
            None, dtype, 1, shape[0], strides[0]))

    def _buffer(self, array, use):
        if array is None:
            return None
        buffer = self._kept.__dict__.setdefault(use, _Buffer())
        buffer.data, buffer.bytes = _address(array), array.nbytes
        return buffer

    def _here(self, stream, workspace=None, inputs_at_rest=False):
        here = self._kept.__dict__.get("here")
        if here is None:
            here = self._kept.__dict__["here"] = _CudaFacts.from_buffer_copy(self._facts)
        here.stream, here.inputs_at_rest = stream, inputs_at_rest
        if workspace is not None:
            here.workspace = self._buffer(workspace, "workspace")
        return here

    @staticmethod
    def _run(name, *arguments):
        code = getattr(_library, "mpi_router_" + name)(
            *[ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments])
        if code != 0:
            _raise(code, _library.mpi_router_last_error().decode())

    def _size(self, name, experts, *arguments, key=None):
        """What a function says of experts of this form, asked once."""
        form = name, key, self._form(experts)
        size = self._sizes.get(form)
        if size is None:
            bytes_needed = _i64()
            here = (self._here(0),) if name.startswith("cuda") else ()
            self._run(name, *here, self._experts(experts, "experts"), *arguments, ctypes.byref(bytes_needed))
            size = self._sizes[form] = bytes_needed.value
        return size

    @staticmethod
    def _form(experts):
        if isinstance(experts, _Experts):
            return experts.dtype, tuple(experts.shape), tuple(experts.strides), experts.pointers is not None
        return _device_array(experts)[1:]
