# %% [markdown]
# Every figure of docs/theory.md once more: its numbers in numpy alone, beside those that the library wrote, and, where
# matplotlib is installed, drawn from numpy's. Cells begin with `# %%`: Jupyter (by jupytext), VS Code and Spyder show them
# as a notebook; `python3 notebook.py FOLDER` runs them all on the CSV files of FOLDER, which `./scripts/theory` fills
# (build/theory/figures), writes FOLDER/notebook/*.svg, and ends with 1 if any number differs. A notebook takes those of
# the project that it was started in. Where python/mpi_router.py finds its library (MPIROUTER_LIBRARY), rows and weights
# are compared with it too.

# %%
import json
import pathlib
import struct
import sys

import numpy as np

try:
    import matplotlib

    if "ipykernel" not in sys.modules:
        matplotlib.use("svg")  # no window
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mpi_router", "figure.figsize": (6.4, 4.2)})
except ImportError:
    plt = None
    print("no figures, for there is no matplotlib (apt-get install python3-matplotlib); the numbers are compared all the same")

interactive = "__file__" not in globals() or "ipykernel" in sys.modules  # then the arguments are the kernel's
here = pathlib.Path.cwd() if interactive else pathlib.Path(__file__).resolve().parent
root = next((p for p in (here, *here.parents) if (p / "examples" / "data").is_dir()), here)
folder = pathlib.Path(sys.argv[1]) if not interactive and len(sys.argv) > 1 else root / "build" / "theory" / "figures"
data = root / "examples" / "data"
failures, drawn = [], []
sys.path.append(str(root / "python"))
try:
    import mpi_router  # the library, through C
except ImportError:
    mpi_router = None


def read(name):
    return np.genfromtxt(folder / f"{name}.csv", delimiter=",", names=True)


def compare(figure, ours, theirs, relative=1e-6, absolute=1e-9):
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    same = ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=relative, atol=absolute, equal_nan=True)
    print(f"{figure:<34} {ours.size:6d} numbers  {'agree' if same else 'DIFFER'}")
    if not same:
        failures.append(figure)


def draw(name, *series, x, y, log="", **axes):
    """A figure: series are (label, xs, ys) or (label, xs, ys, format); its title is that of the program's figure."""
    if plt is None:
        return
    figure, plot = plt.subplots()
    for label, xs, ys, *style in series:
        plot.plot(xs, ys, *style, label=label)
    plot.set(xlabel=x, ylabel=y, **axes)
    for axis in log:
        getattr(plot, f"set_{axis}scale")("log")
    finish(name, figure, plot)


def finish(name, figure, *plots):
    script = (root / "examples" / "theory" / f"{name}.gp").read_text(encoding="utf-8")
    figure.suptitle(next(line[9:] for line in script.splitlines() if line.startswith("# title: ")))
    for plot in plots:
        if plot.get_legend_handles_labels()[0]:
            plot.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1))
    (folder / "notebook").mkdir(exist_ok=True)
    figure.savefig(folder / "notebook" / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    drawn.append(name)
    if "ipykernel" in sys.modules:
        plt.show()
    plt.close(figure)


def unit(r):
    return r / np.linalg.norm(r)


def rho(A, r):  # Eq. 3
    return np.sum((A @ r) ** 2) / np.sum(r**2)


def step(A, r):  # Eq. 4, 5 with C = 1
    return unit(A.T @ (A @ r))


def ascent(A, r, eta):  # Eq. 9, retracted
    r = unit(r)
    return unit(r + eta * (A.T @ (A @ r) - rho(A, r) * r))


def angle(x, v):  # between lines, in degrees, accurate near 0
    x, v = unit(x), unit(v)
    along = x @ v
    return np.degrees(np.arctan2(np.linalg.norm(x - along * v), abs(along)))


def turn(size, phi):
    T = np.eye(size)
    T[:2, :2] = [[np.cos(phi), -np.sin(phi)], [np.sin(phi), np.cos(phi)]]
    return T


# %% The router: which expert a token goes to, before and after a step
t = read("router-tokens")
circle = lambda degrees: np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
stored = np.array([circle(75), circle(165), circle(300)])
experts = [np.array([circle(v), 0.6 * circle(v + 90)]) for v in (20, 135, 260)]
stepped = np.array([step(A, r) for A, r in zip(experts, stored)])
k = np.arange(240)
x = (1.5 * np.sqrt((k + 0.5) / 240)) * np.array([np.cos(k * np.pi * (3 - 5**0.5)), np.sin(k * np.pi * (3 - 5**0.5))])
compare("router", np.r_[x[0], x[1]], np.r_[t["x"], t["y"]])
before, after = (stored @ x).argmax(0), (stepped @ x).argmax(0)
compare("router: winners", np.r_[before, after], np.r_[t["before"], t["after"]])
if mpi_router:
    compare("router: rows, by the library", stepped, mpi_router.router_rows(np.array(experts), stored, radius=1, radius_rule="fixed").rows)
draw("router", *[(f"tokens of expert {e}", *x[:, after == e], "o^s"[e]) for e in range(3)],
     ("changed by the step", *x[:, before != after], "kx"),
     *[(f"row r′ of expert {e}", *np.c_[[0, 0], stepped[e]], "-") for e in range(3)], x="", y="", aspect="equal")

# %% Eq. 6: softmax of the four largest logits, over the length C of the rows
w = read("weights-curves")
rows = np.array([step(np.array([circle(v), 0.6 * circle(v + 90)]), circle(r))
                 for v, r in zip(range(10, 360, 45), (35, 70, 120, 150, 215, 250, 300, 330))])
logits = np.sort(rows @ (np.sqrt(2) * circle(80)))[::-1]
softmax = lambda l: np.exp(l - l.max()) / np.sum(np.exp(l - l.max()))
of_four = np.array([softmax(c / np.sqrt(8) * logits[:4]) for c in w["c_prime"]])
of_all = np.array([softmax(c / np.sqrt(8) * logits)[:4] for c in w["c_prime"]])
compare("weights", np.c_[of_four, of_all], np.array(w.tolist())[:, 1:])
if mpi_router:
    at_four = 4 / np.sqrt(8) * logits[None]
    ours = mpi_router.gate(at_four, 4, order="select_then_score").weights
    compare("weights: by the library", softmax(at_four[0, :4])[None], ours)
draw("weights", *[(f"weight {i + 1}", w["c_prime"], of_four[:, i]) for i in range(4)],
     ("share of the four in all", w["c_prime"], of_all.sum(1), "k--"), x="C′ = C√N", y="weight", log="x")

# %% The ellipse: the longest image, and the best matrix of rank one
c = read("ellipse-circle")
A = turn(2, np.radians(15)) @ np.diag([2, 1]) @ turn(2, np.radians(30)).T
rows = [circle(a) for a in c["angle_deg"]]
compare("ellipse: images", [A @ r for r in rows], np.c_[c["image_x"], c["image_y"]])
compare("ellipse-quotient", [[rho(A, r), np.sum((A - np.outer(A @ r, r)) ** 2)] for r in rows], np.c_[c["rho"], c["error"]])
p = read("ellipse-path")
r, path = circle(105), []
for _ in p:
    path.append(r)
    r = step(A, r)
compare("ellipse: path", path, np.c_[p["x"], p["y"]])
images, on_path = np.array([A @ r for r in rows]).T, np.array(path).T
draw("ellipse", ("unit circle", *np.array(rows).T), ("image of the circle", *images), ("r and its steps", *on_path, "o-"),
     ("their images", *(A @ on_path), "s-"), x="", y="", aspect="equal")
quotients = np.array([rho(A, r) for r in rows])
draw("ellipse-quotient", ("ρ(r)", c["angle_deg"], quotients), ("error of rank one", c["angle_deg"], np.sum(A**2) - quotients),
     x="direction of the row r (degrees)", y="square of a length")

# %% Logits over N: other random numbers, so near, not equal
s = read("logits-sizes")
rng = np.random.default_rng(1)
tokens = rng.standard_normal((64, 512))
tokens *= 8 / np.linalg.norm(tokens, axis=0)
lengths = []
for n in s["experts"].astype(int):
    R = np.array([step(rng.standard_normal((32, 64)), rng.standard_normal(64)) for _ in range(n)])
    lengths.append(np.sqrt(np.sum((4 / np.sqrt(n) * R @ tokens) ** 2) / 512))
compare("logits", lengths, s["length"], relative=0.06)
compare("logits: bound", 4 * np.sqrt(64 / s["experts"]), s["bound"])
n = s["experts"]
draw("logits", ("length of the vector, C = C′/√N", n, lengths, "o-"), ("C stays", n, lengths * np.sqrt(n) / 2, "^-"),
     ("one logit", n, lengths / np.sqrt(n), "s-"), ("bound C′√(D/N)", n, 4 * np.sqrt(64 / n), "k--"),
     x="experts N", y="root mean square", log="xy")


# %% Real experts, of the two models in examples/data
def tensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        body = file.read()
    out = {}
    for name, about in header.items():
        if name != "__metadata__":
            bytes_ = body[slice(*about["data_offsets"])]
            if about["dtype"] == "BF16":  # the upper half of a float
                values = (np.frombuffer(bytes_, "<u2").astype("<u4") << 16).view("<f4")
            else:
                values = np.frombuffer(bytes_, "<f4")
            out[name] = values.astype(float).reshape(about["shape"])
    return out


real, layers = [], []
for mpi, name in enumerate(("tiny-vanilla", "tiny-mpi")):
    model = tensors(data / f"{name}.safetensors")
    for layer in (0, 1):
        prefix, of_layer = f"model.layers.{layer}.mlp.", []
        for r, A in zip(model[prefix + "router.weight"], model[prefix + "experts.gate_proj"]):
            sigma, V = np.linalg.svd(A, full_matrices=False)[1:]
            lam = lambda r: np.sqrt(rho(A, r)) / sigma[0]
            cos = lambda x, y: abs(unit(x) @ unit(y))
            after, mean = step(A, r), A.mean(axis=0)
            of_layer.append([mpi, layer, lam(r), lam(after), lam(mean), cos(after, V[0]), cos(mean, V[0]),
                             cos(after, mean), sigma[0] ** 2 / np.sum(A**2)])
            real.append([mpi, angle(r, V[0]), angle(r, after)])
        layers.append(np.mean(of_layer, axis=0))
layers, real = np.array(layers), np.array(real)
compare("targets", layers, np.array(read("targets-layers").tolist()))
compare("one_step-real", real, np.array(read("one_step-real").tolist()))
draw("targets", *[(label, range(4), layers[:, i], "o") for label, i in
                  (("λ of r", 2), ("λ of r′", 3), ("λ of the mean", 4), ("share σ₁²/‖A‖_F²", 8))],
     x="usual 0, usual 1, MPI 0, MPI 1", y="λ, or share", xticks=range(4))

# %% The sphere: Eq. 9 with several η, and MPI
start, v1 = unit(np.array([0.12, 0.35, 0.93])), np.eye(3)[0]


def walk(A, eta):
    rows = [start]
    while angle(rows[-1], v1) >= 1 and len(rows) <= 1000:
        r = rows[-1]
        rows.append(step(A, r) if eta == "MPI" else ascent(A, r, 1 / rho(A, r) if eta == "1/rho" else eta))
    return np.array(rows)


def steps(rows):
    return len(rows) - 1 if angle(rows[-1], v1) < 1 else np.nan


A = np.diag([1, 0.75, 0.4])
p = read("sphere-path")
rules = ["MPI", "1/rho", 0.05, 0.5, 1.5, 2]  # the seventh never arrives, and rounding decides where it is
walks = [walk(A, e) for e in rules]
compare("sphere", np.concatenate(walks), np.c_[p["v1"], p["v2"], p["v3"]][p["rule"] < 6])
l = read("sphere-landscape")
compare("sphere: landscape", l["v1"] ** 2 + (0.75 * l["v2"]) ** 2 + (0.4 * l["v3"]) ** 2, l["rho"])
s = read("sphere-steps")
taken = np.array([[steps(walk(A, e)), steps(walk(2 * A, e))] for e in s["eta"]])
compare("sphere-steps", taken, np.c_[s["steps"], s["steps_doubled"]])
if plt:
    figure = plt.figure()
    plot = figure.add_subplot(projection="3d")
    grid = np.array([l[v].reshape(19, 37) for v in ("v2", "v3", "v1")])
    plot.plot_surface(*grid, facecolors=plt.cm.Blues(l["rho"].reshape(19, 37) / 1.5), shade=False, alpha=0.4)
    for label, i in (("MPI", 0), ("η = 0.5/σ₁²", 3), ("η = 2/σ₁²", 5)):
        plot.plot(*(1.06 * walks[i].T[[1, 2, 0]]), "o-", label=label)
    plot.set(xlabel="v₂", ylabel="v₃", zlabel="v₁")
    plot.view_init(30, 55)
    finish("sphere", figure, plot)
draw("sphere-steps", ("Eq. 9 with this η", s["eta"], taken[:, 0]), ("weights doubled", s["eta"], taken[:, 1], "--"),
     ("MPI, both", s["eta"], np.full(len(s), steps(walks[0]))), x="fixed η (units of 1/σ₁²)",
     y="steps until within 1° of v₁", log="xy")

# %% One step size, t = ηρ
sigma = np.array([1, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3])
A, e1 = np.diag(sigma), np.eye(12)[0]
start = np.r_[1, np.full(11, 0.3 / np.sqrt(11))]
e = read("eta-rates")
theory = [np.max(np.abs(1 - t * (1 - sigma[1:] ** 2))) for t in e["t"]]
compare("eta: theory", theory, e["predicted"])
a = read("eta-angles")
best = 2 / (2 - sigma[1] ** 2 - sigma[-1] ** 2)
rows, course = [start] * 5, []
for _ in a:
    course.append([angle(r, e1) for r in rows])
    rows = [ascent(A, r, t / rho(A, r)) for r, t in zip(rows, (0.1, 0.4, 1, best, 1.1 * 2 / (1 - sigma[-1] ** 2)))]
compare("eta-angles", course, np.array(a.tolist())[:, 1:], relative=1e-3)
draw("eta-angles", *[(label, a["step"], angles) for label, angles in
                     zip(("t = 0.1", "t = 0.4", "t = 1, MPI", "best t", "too long"), np.array(course).T)],
     x="step", y="angle to v₁ (degrees)", log="y")
measured, seen = [], (e["t"] > 0.3) & (e["t"] < 1.5)
for t in e["t"][seen]:
    tangents, r = [], start
    while not tangents or tangents[-1] >= 1e-11:
        tangents.append(np.tan(np.radians(angle(r, e1))))
        r = ascent(A, r, t / rho(A, r))
    first = next(i for i, x in enumerate(tangents) if x < 1e-5)
    measured.append((tangents[-1] / tangents[first]) ** (1 / (len(tangents) - 1 - first)))
compare("eta: measured", measured, e["measured"][seen], relative=1e-3)
draw("eta", ("theory", e["t"], theory), ("measured", e["t"][seen], measured, "o"), x="t = ηρ",
     y="factor on tan θ, a step", log="x")


# %% λ on Gaussian matrices: other random numbers, so near, not equal
def course(F, D, steps):
    A = rng.standard_normal((F, D))
    sigma, V = np.linalg.svd(A, full_matrices=False)[1:]
    rows, means = rng.standard_normal((24, D)), []
    for _ in range(steps + 1):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        means.append([np.mean(np.linalg.norm(rows @ A.T, axis=1)) / sigma[0], np.mean(abs(rows @ V[0]))])
        rows = rows @ A.T @ A
    return np.array(means)  # λ and the cosine to v₁


k = read("lambda-steps")
means = course(1024, 1024, 40)
compare("lambda", means[:6, 0], k["lambda"][:6], relative=0.03)
draw("lambda", ("λ", k["step"], means[:, 0], "o-"), ("cosine to v₁", k["step"], means[:, 1], "^-"), x="step", y="mean")
s = read("lambda-shapes")
shapes = np.array([course(int(F), int(D), 1)[:, 0] for F, D in zip(s["F"], s["D"])])
compare("lambda-shapes", shapes, np.c_[s["lambda_stored"], s["lambda_one_step"]], relative=0.06)
q = s["D"] / s["F"]
null = lambda q: np.sqrt((1 + 3 * q + q**2) / (1 + q)) / (1 + np.sqrt(q))
compare("lambda-shapes: null", null(q), s["null_one_step"])
range_of_q = np.geomspace(0.1, 10)
draw("lambda-shapes", ("limit after one step", range_of_q, null(range_of_q)), ("limit before", range_of_q, 1 / (1 + np.sqrt(range_of_q))),
     ("λ after one step", q, shapes[:, 1], "^"), ("λ before", q, shapes[:, 0], "s"), x="q = D/F", y="λ", log="x")

# %% Drift
trained = unit(np.array([0.8, 0.2, 0.3, 0.3, 0.2, 0.3]))


def turned(kappa, phi):
    return np.diag(np.array([1, kappa, 0.5 * kappa, 0.3 * kappa, 0.2 * kappa, 0.1 * kappa])) @ turn(6, phi).T


d = read("drift-course")
tracked, rows = trained, []
for time in d["time"]:
    phi = np.radians(0.5 * time)
    A, v = turned(0.8, phi), turn(6, phi)[:, 0]
    tracked = step(A, tracked)
    rows.append([angle(trained, v), angle(step(A, trained), v), angle(tracked, v)])
compare("drift", rows, np.c_[d["stored_deg"], d["stateless_deg"], d["stateful_deg"]])
draw("drift", *[(label, d["time"], angles) for label, angles in
                zip(("stored row r", "stateless: one step from it", "stateful: written back"), np.array(rows).T)],
     x="time step", y="angle to v₁ (degrees)")
f = read("drift-floor")
floors = []
for kappa, delta in zip(f["kappa"], f["delta_deg"]):
    r = turn(6, np.radians(delta * 1700))[:, 0]  # from v₁ itself, and long enough to settle
    for time in range(1701, 2001):
        r = step(turned(kappa, np.radians(delta * time)), r)
    floors.append(angle(r, turn(6, np.radians(delta * 2000))[:, 0]))
compare("drift-floor", floors, f["measured_deg"], relative=1e-4)
draw("drift-floor", *[(f"κ = {kappa}", f["delta_deg"][f["kappa"] == kappa], np.array(floors)[f["kappa"] == kappa], "o-")
                      for kappa in np.unique(f["kappa"])],
     x="drift δ (degrees a time step)", y="angle behind v₁ (degrees)", log="xy")

# %% The gap: in the singular basis the rows are known in closed form
g = read("gap-certificates")
one = np.array([0.3, 0.5, 0.4, -0.3, 0.2, 0.4, -0.2, 0.1, 0.3, -0.3])
other = np.array([0.4, -0.2, 0.3, 0.3, -0.4, 0.2, 0.5, -0.1, 0.2, 0.3])
ends = lambda gap, r: unit(r * np.r_[1, 1 - gap, np.full(8, 0.3)] ** 6000)  # 3000 steps
apart = np.array([angle(ends(gap, one), ends(gap, other)) for gap in g["gap"]])
seen = apart > 1e-4  # degrees; below, the search has stopped before
compare("gap", apart[seen], g["apart_deg"][seen], relative=1e-3)
compare("gap: bounds hold", np.ones(len(g) - 1), g["angle_deg"][:-1] <= g["bound_deg"][:-1] * (1 + 1e-9))
shown = seen & (g["gap"] > 0)
draw("gap", ("between the ends of two starts", g["gap"][shown], apart[shown], "o"),
     ("certificate: at most (of the library)", g["gap"][:-1], g["bound_deg"][:-1]), x="gap 1 − κ", y="degrees", log="xy")

# %% The length of a step while the weights move
o = read("one_step-course")
rows = []
for delta in (0, 0.02, 0.5):
    r = unit(np.array([0.1, 0.5, -0.4, 0.4, 0.3, -0.4, 0.3, 0.3]))
    for time in range(81):
        T = turn(8, np.radians(delta * time))
        A = np.diag([1, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]) @ T.T
        after = step(A, r)
        rows.append([delta, time, angle(r, T[:, 0]), np.tan(np.radians(angle(r, after))), angle(r, after)])
        r = after
rows = np.array(rows)
compare("one_step", rows, np.array(o.tolist())[:, :5], relative=1e-4)
of = {delta: rows[rows[:, 0] == delta].T for delta in (0.5, 0.02, 0)}
draw("one_step", *[(f"W turns by {delta}° a step", at[1], at[4]) for delta, at in of.items()], x="time step",
     y="length ψ of the step (degrees)", log="y")
draw("one_step-real", ("rows that step on", of[0][2], of[0][4], "-"), ("usual tiny model", *real[real[:, 0] == 0].T[1:], "s"),
     ("MPI tiny model", *real[real[:, 0] == 1].T[1:], "o"), x="angle to v₁ (degrees)", y="length ψ of the step (degrees)")

# %% One step on the sphere: the row, its ascent by 1/ρ, and the ascent brought back
p = np.array(read("layer-points").tolist())
M = np.diag([1, 0.75, 0.4]) @ np.diag([1, 0.75, 0.4])
r = unit(np.array([0.35, 0.35, 0.87]))
p_ours = np.array([r, r @ M / (r @ M @ r), unit(r @ M)])
compare("layer", p_ours, p)
arc = np.array([unit(r + i / 12 * (p_ours[1] - r)) for i in range(13)])
draw("layer", ("row r", *p_ours[0][[2, 0]], "o"), ("ascent by 1/ρ", *p_ours[1][[2, 0]], "s"), ("r′", *p_ours[2][[2, 0]], "^"),
     ("on the sphere", arc[:, 2], arc[:, 0]), x="along v₃", y="along v₁", aspect="equal")

# %% Layouts: addresses by arithmetic; N = 2, F = 2, D = 3
strips = [lambda e, f, d, up: 6 * e + 3 * f + d, lambda e, f, d, up: 6 * e + 2 * d + f,
          lambda e, f, d, up: 12 * e + 3 * (f + 2 * up) + d, lambda e, f, d, up: 12 * e + 3 * (2 * f + up) + d,
          lambda e, f, d, up: 12 * e + 4 * d + f + 2 * up, lambda e, f, d, up: 12 * e + 4 * d + 2 * f + up]
c = read("layouts-cells").astype([(n, int) for n in ("strip", "address", "up", "expert", "neuron", "hidden")])
addresses = np.array([strips[s](e, f, d, up) for s, _, up, e, f, d in c.tolist()])
compare("layouts", addresses, c["address"])
draw("layouts", *[(label, addresses[of], -c["strip"][of], "s") for label, of in
                  (("expert 0, gate", (c["expert"] == 0) & (c["up"] == 0)), ("expert 1, gate", (c["expert"] == 1) & (c["up"] == 0)),
                   ("up", c["up"] == 1))], x="address", y="", yticks=[])

# %%
print("rows and weights: compared with the library too" if mpi_router else "rows and weights: no library to compare with")
print("all agree" if not failures else "differ: " + ", ".join(failures))
if drawn:
    print(f"{len(drawn)} figures in {folder / 'notebook'}")
if not interactive:
    sys.exit(1 if failures else 0)
