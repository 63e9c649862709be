// The page at work: the form is the state, and a change draws what shows it. Whatever is computed comes from library.js.
import { start } from "./library.js";
import { apply, current, link, order, presets, read, restore, set } from "./state.js";
import { drawSphere } from "./sphere.js";
import { drawCourse, drawEllipse, drawRouter } from "./charts.js";
import { saveCsv, savePng, saveSvg } from "./export.js";
import { ending, outlook, spoken } from "./words.js";
import { onTheme, short } from "./theme.js";

const wasm = "@WASM@";
const $ = id => document.getElementById(id);
const shown = 12;  // lines of the table
let library, course, routed, timer = 0;
const drawn = { row: "", router: "" };  // the settings that were drawn

const show = (id, svg) => $(id).replaceChildren(svg);
const widthOf = id => Math.max(260, Math.min($(id).clientWidth, 640));

function table() {
  const last = course.moments.length - 1, newest = course.moments.map((_, k) => k).reverse();
  const lines = last < shown ? newest : [...newest.slice(0, shown - 1), 0];
  $("log").replaceChildren();
  for (const k of lines) {
    const { theta, bound, rho, residual, lambda, ascentTheta } = course.moments[k], line = $("log").insertRow();
    if (k === 0 && last >= shown) line.className = "after-some";
    for (const text of [k, short(theta), short(bound), rho.toFixed(4), short(residual), lambda.toFixed(4), short(ascentTheta)])
      line.insertCell().textContent = text;
  }
}

function drawRow(state) {
  course = library.course(state, state.steps);
  const last = course.moments.length - 1, shape = library.mapCircle(last);
  show("course", drawCourse(course, state, widthOf("course")));
  show("ellipse", drawEllipse(shape, course.moments[last], state, widthOf("ellipse")));
  $("stretch").textContent = `The row now: ‖A r̂‖ = √ρ = ${short(course.moments[last].lambda)} σ₁.`;
  table();
  const paragraphs = outlook(state, course, presets[current()]);
  $("words").replaceChildren(...paragraphs.map(text => { const p = document.createElement("p"); p.textContent = text; return p; }));
}

function drawRouting(state) {
  routed = library.route(state.experts, state.seed, state.msteps);
  show("before", drawRouter(routed, routed.before, "before", widthOf("before")));
  show("after", drawRouter(routed, routed.after, "after", widthOf("after")));
  $("h-after").textContent = state.msteps === 1 ? "After one power step (MPI)" : `After ${state.msteps} power steps`;
  $("loads").replaceChildren();
  routed.before.load.forEach((load, i) => {
    const line = $("loads").insertRow();
    for (const text of [i + 1, load, routed.after.load[i], short(routed.before.angle[i]), short(routed.after.angle[i])])
      line.insertCell().textContent = text;
  });
  const percent = x => (100 * x).toFixed(0) + " %";
  $("routed").textContent = `MaxVio ${routed.before.maxViolation.toFixed(2)} before, ${routed.after.maxViolation.toFixed(2)} after. `
    + `Tokens that go to the expert with the largest ‖A x‖ for them: ${percent(routed.before.agreement)} before, `
    + `${percent(routed.after.agreement)} after. A row tells v₁ from −v₁, which ‖A x‖ does not.`;
}

function labels(state) {
  for (const input of document.querySelectorAll("input[type=range]")) {
    const { unit = "", spoken: inWords = unit } = input.dataset;
    document.querySelector(`output[for=${input.id}]`).textContent = input.value + (unit === "°" ? unit : "");
    input.setAttribute("aria-valuetext", input.value + inWords);
  }
  document.querySelector("output[for=s2]").textContent = `${state.s2}, gap ${(1 - state.s2).toFixed(2)}`;
  const chosen = current();
  for (const button of $("presets").children) button.setAttribute("aria-pressed", button.dataset.preset === chosen);
}

function draw() {
  const state = read(), { turn, tilt, at, experts, seed, msteps, ...rest } = state;
  const row = JSON.stringify(rest), router = JSON.stringify([experts, seed, msteps]);
  labels(state);
  if (row !== drawn.row) drawRow(state);
  show("sphere", drawSphere(library, state, course));
  if (router !== drawn.router) drawRouting(state);
  Object.assign(drawn, { row, router });
}
function redraw() { Object.assign(drawn, { row: "", router: "" }); draw(); }

// What a screen reader is told, once it has settled.
let telling = 0;
function tell(text) {
  clearTimeout(telling);
  telling = setTimeout(() => { $("spoken").textContent = text; }, 500);
}

// What the address says of the state; ?steps=8 opens with a path.
const told = () => location.hash.slice(1) || location.search;

// The link of the page follows its state; each change that was finished is one step of “back”.
function remember() {
  if (link() !== location.hash) location.hash = link();
}
function changed({ target } = {}) {
  draw();
  remember();
  tell(["experts", "msteps", "seed"].includes(target?.name) ? $("routed").textContent : spoken(read(), course));
}

function stop() {
  if (!timer) return;
  clearInterval(timer);
  timer = 0;
  $("run").textContent = "Run";
}
function one() {
  const { steps } = read();
  if (course.ending === 1 || steps >= 200) return stop();
  set({ steps: steps + 1 });
  draw();
  if (ending(course, steps + 1)) { stop(); changed(); }
}
function run() {
  if (timer) { stop(); return changed(); }
  if (ending(course, read().steps)) return tell(spoken(read(), course));
  timer = setInterval(one, 350);
  $("run").textContent = "Pause";
}

function go(part) {
  document.querySelector("input[name=at]").value = part;
  $("part-" + part).scrollIntoView();
  $("part-" + part).focus({ preventScroll: true });
}
function define(word) {
  const definition = $("word-" + word);
  definition.tabIndex = -1;
  definition.scrollIntoView({ block: "center" });
  definition.focus({ preventScroll: true });
}

function parameters(state) {
  return `σ = 1, ${state.s2}, ${state.s3}; start ${state.theta}° from v₁, ${state.phi}° around it; ascent with η = ${state.t}/`
    + `${state.fixed ? "σ₁²" : "ρ"}; drift ${state.drift}° a step; ${course.moments.length - 1} steps. ${link()}`;
}
const titles = { sphere: "Two rules on the sphere of directions", course: "The angle to v₁ over the steps",
                 ellipse: "What A does to the unit circle", before: "Tokens by expert, before the power step",
                 after: "Tokens by expert, after the power step" };
function saveNumbers(figure, name) {
  if (figure === "router") {
    return saveCsv(name, ["token", "x1", "x2", "expert_before", "expert_after"], routed.tokens.map((token, t) =>
      [t, ...token, routed.before.winner[t] + 1, routed.after.winner[t] + 1]));
  }
  saveCsv(name, ["step", "theta_deg", "theta_bound_deg", "theta_bound_by_trace_deg", "kappa_line_deg", "rho", "residual", "lambda",
                 "ascent_theta_deg", "ascent_rho", "apart_deg", "stateless_theta_deg", "row_v1", "row_v2", "row_v3", "ascent_v1", "ascent_v2", "ascent_v3"],
          course.moments.map((m, k) => [k, m.theta, m.bound, m.traceBound, m.expected, m.rho, m.residual, m.lambda, m.ascentTheta,
                                        m.ascentRho, m.apart, m.stateless, ...m.row, ...m.ascent]));
}
function save({ save: kind, figure }) {
  const name = "mpi-" + figure, state = read();
  tell(`Saved ${name}.${kind}`);
  if (kind === "csv") return saveNumbers(figure, name);
  const words = figure === "before" || figure === "after"
    ? `${state.experts} experts, seed ${state.seed}, ${state.msteps} power steps. ${link()}` : parameters(state);
  return (kind === "svg" ? saveSvg : savePng)(name, $(figure).querySelector("svg"), titles[figure], words);
}

function turnByHand() {
  let from = null;
  $("sphere").addEventListener("pointerdown", e => { from = { x: e.clientX, y: e.clientY, ...read() }; $("sphere").setPointerCapture(e.pointerId); });
  $("sphere").addEventListener("pointermove", e => {
    if (!from) return;
    set({ turn: (((from.turn - (e.clientX - from.x) / 2.5) % 360) + 360) % 360, tilt: from.tilt + (e.clientY - from.y) / 2.5 });
    draw();
  });
  for (const kind of ["pointerup", "pointercancel"]) $("sphere").addEventListener(kind, () => { if (from) remember(); from = null; });
}

function listen() {
  const form = $("state");
  for (const [key, { name }] of Object.entries(presets)) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: name });
    button.dataset.preset = key;
    button.onclick = () => { stop(); apply(key); changed(); };
    $("presets").append(button);
  }
  form.addEventListener("submit", e => e.preventDefault());
  form.addEventListener("input", e => { stop(); order(e.target.name); draw(); });
  form.addEventListener("change", changed);
  $("one").onclick = () => { stop(); one(); changed(); };
  $("run").onclick = run;
  $("mpi").onclick = () => { set({ t: 1, eta: "relative" }); changed(); };
  $("again").onclick = () => { stop(); set({ steps: 0 }); changed(); };
  document.addEventListener("click", e => {
    const { dataset } = e.target;
    if (dataset?.save) save(dataset);
    if (dataset?.go) { go(dataset.go); remember(); }
    if (dataset?.word) { e.preventDefault(); define(dataset.word); }
  });
  for (const word of document.querySelectorAll("a[data-word]")) word.href = "#word-" + word.dataset.word;
  const follow = () => {
    if (location.hash === link()) return;
    stop();
    restore(told());
    draw();
    tell(spoken(read(), course));
  };
  for (const kind of ["popstate", "hashchange"]) addEventListener(kind, follow);
  onTheme(redraw);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
  turnByHand();
}

start(Uint8Array.from(atob(wasm), c => c.charCodeAt(0))).then(started => {
  library = started;
  listen();
  restore(told());
  draw();
  const { at } = read();
  if (at !== "row" && $("part-" + at)) go(at);
}).catch(error => {
  $("failure").hidden = false;
  $("failure").textContent = "The library could not be started: " + error;
});
