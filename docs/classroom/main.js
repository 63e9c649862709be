// The page at work: the form is the state, and a change draws what shows it. Whatever is computed comes from library.js.
import { start } from "./library.js";
import { apply, link, order, presets, read, restore, set } from "./state.js";
import { drawRouting, drawRow, label, show } from "./panels.js";
import { drawSphere } from "./sphere.js";
import { save } from "./save.js";
import { ending, spoken } from "./words.js";
import { onTheme } from "./theme.js";

const wasm = "@WASM@";
const $ = id => document.getElementById(id);
let library,
  course,
  routed,
  timer = 0;
const drawn = { row: "", router: "" }; // the settings that were drawn

function draw() {
  const state = read(),
    { turn, tilt, at, experts, seed, msteps, ...rest } = state;
  const row = JSON.stringify(rest),
    router = JSON.stringify([experts, seed, msteps]);
  label(state);
  if (row !== drawn.row) course = drawRow(library, state);
  show("sphere", drawSphere(library, state, course));
  if (router !== drawn.router) routed = drawRouting(library, state);
  Object.assign(drawn, { row, router });
}
function redraw() {
  Object.assign(drawn, { row: "", router: "" });
  draw();
}

// What a screen reader is told, once it has settled.
let telling = 0;
function tell(text) {
  clearTimeout(telling);
  telling = setTimeout(() => {
    $("spoken").textContent = text;
  }, 500);
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
  if (ending(course, steps + 1)) {
    stop();
    changed();
  }
}
function run() {
  if (timer) {
    stop();
    return changed();
  }
  if (ending(course, read().steps)) return tell(spoken(read(), course));
  timer = setInterval(one, 350);
  $("run").textContent = "Pause";
}

function go(part) {
  document.querySelector("input[name=at]").value = part;
  $("part-" + part).scrollIntoView();
  $("part-" + part).focus({ preventScroll: true });
}

// A word’s definition, with a way back to where it was asked for: a button beside it, or Escape.
let origin = null;
function define(word, from) {
  const definition = $("word-" + word);
  if (!origin || !from.closest("#part-words")) origin = from;
  $("back")?.remove();
  const back = document.createElement("button");
  Object.assign(back, { type: "button", id: "back", textContent: "Back to the text", onclick: goBack });
  (definition.closest("dd") ?? definition.closest("dt").nextElementSibling).append(" ", back);
  definition.tabIndex = -1;
  definition.scrollIntoView({ block: "center" });
  definition.focus({ preventScroll: true });
}
function goBack() {
  if (!origin) return;
  // Words that were drawn anew since then have new links.
  const link = origin.isConnected ? origin : document.querySelector(`a[data-word="${origin.dataset.word}"]`);
  origin = null;
  $("back")?.remove();
  link?.scrollIntoView({ block: "center" });
  link?.focus({ preventScroll: true });
}

function turnByHand() {
  let from = null;
  $("sphere").addEventListener("pointerdown", e => {
    from = { x: e.clientX, y: e.clientY, ...read() };
    $("sphere").setPointerCapture(e.pointerId);
  });
  $("sphere").addEventListener("pointermove", e => {
    if (!from) return;
    set({
      turn: (((from.turn - (e.clientX - from.x) / 2.5) % 360) + 360) % 360,
      tilt: from.tilt + (e.clientY - from.y) / 2.5,
    });
    draw();
  });
  for (const kind of ["pointerup", "pointercancel"])
    $("sphere").addEventListener(kind, () => {
      if (from) remember();
      from = null;
    });
}

function fail(text) {
  $("failure").textContent = text;
  $("failure").hidden = false;
}
async function saved(wanted) {
  try {
    const name = await save(wanted, course, routed);
    $("failure").hidden = true;
    tell(`Saved ${name}`);
  } catch (error) {
    fail(`mpi-${wanted.figure}.${wanted.save} could not be saved: ${error.message}`);
  }
}

function listen() {
  const form = $("state");
  for (const [key, { name }] of Object.entries(presets)) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: name });
    button.dataset.preset = key;
    button.onclick = () => {
      stop();
      apply(key);
      changed();
    };
    $("presets").append(button);
  }
  form.addEventListener("submit", e => e.preventDefault());
  form.addEventListener("input", e => {
    stop();
    order(e.target.name);
    draw();
  });
  form.addEventListener("change", changed);
  $("one").onclick = () => {
    stop();
    one();
    changed();
  };
  $("run").onclick = run;
  $("mpi").onclick = () => {
    set({ t: 1, eta: "relative" });
    changed();
  };
  $("again").onclick = () => {
    stop();
    set({ steps: 0 });
    changed();
  };
  document.addEventListener("click", e => {
    const { dataset } = e.target;
    if (dataset?.save) saved(dataset);
    if (dataset?.go) {
      go(dataset.go);
      remember();
    }
    if (dataset?.word && !e.ctrlKey && !e.metaKey && !e.shiftKey) {
      e.preventDefault();
      define(dataset.word, e.target);
    }
  });
  document.addEventListener("keydown", e => {
    if (e.key === "Escape" && document.activeElement.closest("#part-words")) goBack();
  });
  for (const word of document.querySelectorAll("a[data-word]")) word.href = "#word-" + word.dataset.word;
  const follow = () => {
    if (location.hash === link()) return;
    stop();
    const was = read().at;
    restore(told());
    draw();
    const { at } = read();
    if (at !== was) go(at);
    tell(spoken(read(), course));
  };
  for (const kind of ["popstate", "hashchange"]) addEventListener(kind, follow);
  onTheme(redraw);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) {
      width = innerWidth;
      redraw();
    }
  });
  turnByHand();
}

start(Uint8Array.from(atob(wasm), c => c.charCodeAt(0)))
  .then(started => {
    library = started;
    listen();
    restore(told());
    draw();
    const { at } = read();
    if (at !== "row") go(at);
    const word = $(location.hash.slice(1)); // a definition, opened in a window of its own
    if (word?.tagName === "DFN") word.scrollIntoView({ block: "center" });
  })
  .catch(error => fail("The library could not be started: " + error));
