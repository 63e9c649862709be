// The page of the classroom: its module is the one that was built, and steps as the theory says.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";

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
console.log("the page steps as the theory says");
