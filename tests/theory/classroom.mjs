// The page of the classroom: its module is the one that was built and steps as the theory says, and its script says
// what is so after every move of a slider and every button. The script runs in a stand-in for the browser's page.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import vm from "node:vm";

const folder = process.argv[2];
const wasm = await readFile(`${folder}/classroom.wasm`);
const page = await readFile(`${folder}/index.html`, "utf8");
assert.ok(page.includes(`"${wasm.toString("base64")}"`), "the page carries another module");

const module = await WebAssembly.compile(wasm);
const imports = {};
for (const { module: from, name } of WebAssembly.Module.imports(module)) (imports[from] ??= {})[name] = () => 0;
const { exports } = await WebAssembly.instantiate(module, imports);
exports._initialize?.();
const view = (at, count) => new Float64Array(exports.memory.buffer, at, count);
const near = (a, b) => assert.ok(Math.abs(a - b) < 1e-13, `${a}, not ${b}`);

const sigma = [2, 1.5, 0.5];
const start = [0.6, 0.64, 0.48];
const set = row => { view(exports.sigma_data(), 3).set(sigma); view(exports.row_data(), 3).set(row); };
const squares = sigma.map(s => s * s);
const rho = start.reduce((sum, x, i) => sum + squares[i] * x * x, 0);

set(start);
assert.equal(exports.measure(), 0);
const [quotient, residual, angle, lambda] = view(exports.report_data(), 4);
near(quotient, rho);
near(residual, Math.hypot(...start.map((x, i) => (squares[i] - rho) * x)));
near(angle, Math.acos(0.6));
near(lambda, Math.sqrt(rho) / 2);

// The power step, and the same by way of the tangent space: η = t/ρ next to t = 1.
const image = start.map((x, i) => squares[i] * x);
const expected = image.map(x => x / Math.hypot(...image));
for (const t of [1, 1 + 1e-15]) {
  set(start);
  assert.equal(exports.step(t), 0);
  view(exports.row_data(), 3).forEach((x, i) => near(x, expected[i]));
}
// After many steps the row is the principal direction; a row of zeros is a status.
for (let k = 0; k < 100; ++k) exports.step(1);
exports.measure();
near(view(exports.report_data(), 4)[2], 0);
set([0, 0, 0]);
assert.notEqual(exports.measure(), 0);

// An element of the page, as far as the script uses one.
class Element {
  #text = "";
  constructor(value = "") { Object.assign(this, { value, className: "", rows: [], listeners: [] }); }
  get textContent() { return this.#text; }
  set textContent(text) { this.#text = String(text); }
  addEventListener(kind, listener) { this.listeners.push([kind, listener]); }
  getContext() {
    return new Proxy({}, { get: (_, name) => name === "createImageData" ? () => ({ data: { set() {} } }) : () => {},
                           set: () => true });
  }
  insertRow(at) { const row = new Element(); row.cells = []; this.rows.splice(at, 0, row); return row; }
  insertCell() { const cell = new Element(); this.cells.push(cell); return cell; }
  deleteRow(at) { this.rows.splice(at, 1); }
  replaceChildren() { this.rows = []; }
}

// The page, opened: its controls, its words and the numbers of its table, the newest first.
async function open() {
  const elements = {};
  for (const [tag] of page.matchAll(/<[a-z]+ [^>]*\bid="[^>]*>/g))
    elements[tag.match(/\bid="([^"]*)"/)[1]] = new Element(tag.match(/\bvalue="([^"]*)"/)?.[1]);
  elements.sphere.width = 8;  // pixels: nobody looks
  let timer = null;
  const script = page.slice(page.indexOf("<script>") + 8, page.indexOf("</script>"));
  vm.runInNewContext(script, {
    WebAssembly, Uint8Array, Float64Array, Math, URLSearchParams, atob, location: { search: "" },
    document: { getElementById: id => elements[id], body: new Element() },
    getComputedStyle: () => ({ color: "" }), matchMedia: () => new Element(),
    setInterval: f => { timer = f; return 1; }, clearInterval: () => { timer = null; } });
  for (let i = 0; i < 100 && elements.words.textContent === ""; ++i) await new Promise(r => setTimeout(r, 10));
  return {
    move(id, value) {
      elements[id].value = String(value);
      for (const [kind, listener] of elements[id].listeners) if (kind === "input") listener();
    },
    press: id => elements[id].onclick(),
    says: text => assert.ok(elements.words.textContent.includes(text), `"${elements.words.textContent}", not "${text}"`),
    text: id => elements[id].textContent,
    value: id => +elements[id].value,
    table: () => elements.log.rows.map(row => row.cells.map(cell => cell.textContent)),
    tick() { if (timer) timer(); },
    running: () => timer !== null };
}
function run(it, most = 400) {
  it.press("run");
  for (let k = 0; k < most && it.running(); ++k) {
    it.tick();
    for (const cell of it.table()[0]) assert.ok(cell.length <= 8, `"${cell}" is too wide for a narrow page`);
  }
}

const it = await open();
it.says("MPI. Near v₁, tan θ shrinks by 0.563 a step");
assert.equal(it.text("o-gap"), "0.25");
assert.deepEqual(it.table().map(line => line[0]), ["0"]);

// σ₂ ≥ σ₃ always, and the sliders and their labels say what is used.
it.move("s3", 0.9);
assert.equal(it.value("s2"), 0.9);
assert.equal(it.text("o-s2"), "0.9");
it.says((0.81).toFixed(3));
it.move("s2", 0.3);
assert.equal(it.value("s3"), 0.3);
assert.equal(it.text("o-s3"), "0.3");
it.says((0.09).toFixed(3));
it.move("s2", 0.75);
it.move("s3", 0.4);

// The status line follows the slider of t and its button.
it.move("t", -1.3);
it.says("Nearly Oja’s rule");
it.move("t", 0.5);
it.says("Too long");
it.press("mpi");
it.says("MPI. Near v₁");

// A run pauses, goes on, and stops by itself where only rounding is left; the start stays in the table.
it.press("run");
it.tick();
it.press("run");
assert.ok(!it.running());
run(it);
assert.ok(!it.running());
assert.equal(it.text("run"), "Run");
it.says("Stopped: only rounding is left");
const lines = it.table();
assert.equal(lines.length, 12);
assert.deepEqual(lines.at(-1).slice(0, 2), ["0", "83.00"]);
assert.ok(+lines[0][1] < 1e-13 && +lines[0][0] < 80, `${lines[0]}`);
assert.equal(+lines[0][0], +lines[10][0] + 10);
run(it);  // there is nothing to run
assert.equal(it.table()[0][0], lines[0][0]);

// Whatever the sliders say, a run ends.
for (const [s2, s3, t, theta, phi] of [[0.99, 0.99, -1.3, 89, 12], [1, 0.4, 0, 60, 45], [1, 1, 0.2, 70, 10],
                                       [0.5, 0, 0.5, 45, 45], [0.75, 0.4, 0.5, 83, 69], [0, 0, 0, 30, 30]]) {
  it.move("s3", 0); it.move("s2", s2); it.move("s3", s3); it.move("t", t); it.move("theta", theta); it.move("phi", phi);
  run(it);
  assert.ok(!it.running());
  it.says("Stopped");
}

// 90° is orthogonal, exactly: said, and no step leaves the plane of v₂ and v₃.
it.press("mpi"); it.move("s2", 0.75); it.move("s3", 0.4); it.move("phi", 69); it.move("theta", 90);
it.says("orthogonal to v₁");
it.says("ends at v₂");
run(it);
it.says("Stopped");
assert.equal(it.table()[0][1], "90.00");
near(+it.table()[0][2], 0.75 ** 2);
it.move("phi", 90);
it.says("ends at v₃");
it.move("s3", 0);
it.says("it has no image");
it.press("one");
assert.equal(it.table().length, 1);  // no step, no line
console.log("the page steps as the theory says, and says what it does");
