// The module of the classroom page: its numbers are those of the theory, computed here once more from the formulas.
//   node module.mjs FOLDER     where scripts/classroom has built the page
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { start } from "../../../docs/classroom/library.js";

const folder = process.argv[2];
if (!existsSync(`${folder}/index.html`)) {
  console.log("skipped: the page was not built");
  process.exit(77);
}
const bytes = await readFile(`${folder}/classroom.wasm`);
assert.ok(
  (await readFile(`${folder}/index.html`, "utf8")).includes(bytes.toString("base64")),
  "the page carries another module",
);
const library = await start(bytes);

const degree = Math.PI / 180;
const near = (a, b, error = 1e-12) => assert.ok(Math.abs(a - b) <= error, `${a}, not ${b}`);
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const unit = a => a.map(x => x / Math.hypot(...a));
const usual = { s2: 0.75, s3: 0.4, t: 1, fixed: 0, theta: 83, phi: 69, drift: 0, turned: 0 };
const run = (changes, steps) => library.course({ ...usual, ...changes }, steps);
const firstRow = ({ theta, phi }) => [
  Math.cos(theta * degree),
  Math.sin(theta * degree) * Math.cos(phi * degree),
  Math.sin(theta * degree) * Math.sin(phi * degree),
];

// Each step, its ρ, ‖g‖, λ, both certificates and the line of κ²ᵏ; in turned coordinates too, up to rounding.
for (const changes of [
  {},
  { t: 1.8 },
  { t: 0.1, fixed: 1 },
  { t: 2.5, fixed: 1, s2: 0.5, s3: 0.3, theta: 40, phi: 30 },
  { s3: 0 },
  { turned: 1 },
  { turned: 1, t: 1.4, theta: 12 },
]) {
  const settings = { ...usual, ...changes },
    squares = [1, settings.s2 ** 2, settings.s3 ** 2];
  const { moments, powerRate, ascentRate } = run(changes, 12);
  assert.equal(moments.length, 13);
  near(powerRate, squares[1]);
  near(ascentRate, Math.max(...squares.slice(1).map(square => Math.abs(1 - settings.t * (1 - square)))));
  let row = firstRow(settings),
    ascent = row;
  moments.forEach((moment, k) => {
    if (k > 0) {
      row = unit(row.map((x, i) => squares[i] * x));
      const quotient = dot(
          squares,
          ascent.map(x => x * x),
        ),
        eta = settings.fixed ? settings.t : settings.t / quotient;
      ascent = unit(ascent.map((x, i) => x + eta * (squares[i] - quotient) * x));
    }
    const rho = dot(
        squares,
        row.map(x => x * x),
      ),
      residual = Math.hypot(...row.map((x, i) => (squares[i] - rho) * x));
    moment.row.forEach((x, i) => near(x, row[i]));
    moment.ascent.forEach((x, i) => near(x, ascent[i]));
    near(moment.theta * degree, Math.atan2(Math.hypot(row[1], row[2]), Math.abs(row[0])));
    near(moment.ascentTheta * degree, Math.atan2(Math.hypot(ascent[1], ascent[2]), Math.abs(ascent[0])));
    near(moment.rho, rho);
    near(moment.residual, residual);
    near(moment.lambda, Math.sqrt(rho));
    const trace = dot(squares, [1, 1, 1]),
      bound = alpha => (alpha < rho ? Math.atan2(residual, rho - alpha) / degree : 90);
    near(moment.bound, bound(squares[1]), 1e-9);
    near(moment.traceBound, bound(trace - rho), 1e-9);
    assert.ok(moment.theta <= moment.bound && moment.bound <= moment.traceBound);
    near(moment.expected, Math.atan(settings.s2 ** (2 * k) * Math.tan(settings.theta * degree)) / degree);
    assert.ok(moment.theta <= moment.expected + 1e-12);
    near(moment.stateless, moments[Math.min(1, moments.length - 1)].theta, 1e-9);
    assert.equal(moment.state, 0);
  });
}

// t = 1 is the power step: the rules part by rounding alone. They both end on v₁.
const same = run({}, 150);
same.moments.forEach(({ apart }) => near(apart, 0));
assert.equal(same.ending, 2);
near(same.moments.at(-1).theta, 0, 1e-13);

// A repeated σ₁: the row ends on the circle of v₁ and v₂, and nothing is proven.
const repeated = run({ s2: 1, theta: 60, phi: 45 }, 40).moments.at(-1);
near(Math.hypot(repeated.row[0], repeated.row[1]), 1);
near(repeated.theta, Math.atan2(Math.sin(60 * degree) * Math.cos(45 * degree), Math.cos(60 * degree)) / degree);
assert.equal(repeated.bound, 90);

// Orthogonal: exactly so for ever along the axes, to v₂, and to v₃ where there is nothing along v₂; freed by rounding elsewhere.
for (const [phi, end] of [
  [69, 1],
  [90, 2],
]) {
  const { moments } = run({ theta: 90, phi }, 60);
  moments.forEach(({ row, theta }) => {
    assert.equal(row[0], 0);
    assert.equal(theta, 90);
  });
  near(moments.at(-1).row[end], 1);
}
const freed = run({ s2: 0.5, s3: 0.3, theta: 90, phi: 40, turned: 1 }, 60).moments;
assert.ok(Math.abs(freed[0].row[0]) < 1e-15 && freed[5].theta > 89.99);
near(freed.at(-1).theta, 0, 1e-9);

// No image: the row stays, and says so.
const none = run({ theta: 90, phi: 90, s3: 0 }, 5);
assert.equal(none.ending, 1);
assert.equal(none.moments.length, 1);
assert.notEqual(none.moments[0].state, 0);

// Too long a step ends in two places, the power step in one.
const long = run({ s2: 0.5, s3: 0.3, t: 2.5, fixed: 1, theta: 40, phi: 30 }, 80);
assert.equal(long.ending, 3);
const [a, b, c] = long.moments.slice(-3).map(({ ascent }) => ascent);
near(Math.abs(dot(a, c)), 1);
assert.ok(Math.abs(dot(a, b)) < 0.95);

// Drift: a step gives the angle that stays behind again, the stored row falls behind, and too fast a drift leaves none.
for (const [s2, drift] of [
  [0.8, 1],
  [0.5, 2],
  [0.8, 3],
]) {
  const { moments, floor, ending } = run({ s2, drift, theta: 60, phi: 30 }, 60);
  near(Math.tan(floor * degree), s2 ** 2 * Math.tan((floor + drift) * degree));
  near(floor, (s2 ** 2 * drift) / (1 - s2 ** 2), 0.02 * floor);
  near(moments.at(-1).theta, floor, 1e-6);
  moments.forEach(({ stateless, principal, second }, k) => {
    // M of now on the row of the start
    near(Math.abs(dot(principal, [Math.cos(k * drift * degree), Math.sin(k * drift * degree), 0])), 1);
    const first = firstRow({ theta: 60, phi: 30 }),
      parts = [dot(first, principal), s2 ** 2 * dot(first, second), 0.4 ** 2 * first[2]];
    near(stateless * degree, Math.atan2(Math.hypot(parts[1], parts[2]), Math.abs(parts[0])));
  });
  assert.equal(ending, 0);
  assert.ok(moments.every(({ theta, bound }) => theta <= bound));
}

for (const [s2, followed, lost] of [
  [0.8, 12.5, 13], // tan δ = (1 − κ²)/(2κ) at 12.7°, 6.0° and 0.58°
  [0.9, 5.5, 6.5],
  [0.99, 0.5, 1],
]) {
  const { moments, floor } = run({ s2, drift: followed, theta: 60, phi: 30 }, 400);
  near(Math.tan(floor * degree), s2 ** 2 * Math.tan((floor + followed) * degree));
  near(moments.at(-1).theta, floor, 0.03 * floor);
  const fast = run({ s2, drift: lost, theta: 60, phi: 30 }, 400);
  assert.ok(Number.isNaN(fast.floor), `a floor of ${fast.floor}`);
  const late = fast.moments.slice(200).map(({ theta }) => theta);
  assert.ok(Math.max(...late) - Math.min(...late) > 60);
}
assert.equal(run({ s2: 0, drift: 5, theta: 60 }, 3).floor, 0);
assert.ok(Number.isNaN(run({ s2: 1, drift: 5 }, 3).floor));

// The ellipse, and the shades.
for (const changes of [{}, { turned: 1 }, { drift: 4 }]) {
  const { moments } = run(changes, 3),
    { points, row, image } = library.mapCircle(3);
  for (const [x1, x2, y1, y2] of points) {
    near(Math.hypot(x1, x2), 1);
    near(y1, x1);
    near(y2, 0.75 * x2);
  }
  image.forEach((y, i) => near(y, [1, 0.75, 0.4][i] * row[i]));
  near(Math.hypot(...image) ** 2, moments[3].rho);
  near(Math.abs(row[0]), Math.cos(moments[3].theta * degree));
  const camera = { right: [0, 1, 0], up: [0, 0, 1], eye: [1, 0, 0] },
    shades = library.shade(3, camera, 5);
  const [v1, v2] = [moments[3].principal, moments[3].second];
  const along = (v, w) => 1 * v[w] ** 2; // of the axis w
  near(shades[12], along(v1, 0) + 0.75 ** 2 * along(v2, 0));
  near(shades[14], along(v1, 1) + 0.75 ** 2 * along(v2, 1));
  near(shades[2], 0.4 ** 2);
  assert.ok(Number.isNaN(shades[0]));
}

// The router: rows after a step, logits, winners, loads and directions, from the gate matrices.
for (const [n, seed, steps] of [
  [4, 3, 1],
  [2, 1, 3],
  [6, 50, 1],
  [5, 7, 10],
]) {
  const { gates, tokens, principal, before, after } = library.route(n, seed, steps);
  const grams = Array.from({ length: n }, (_, i) => {
    const m = [
      [0, 0],
      [0, 0],
    ];
    for (let f = 0; f < 3; ++f)
      for (let p = 0; p < 2; ++p)
        for (let q = 0; q < 2; ++q) m[p][q] += gates[6 * i + 2 * f + p] * gates[6 * i + 2 * f + q];
    return m;
  });
  const times = (m, x) => m.map(line => dot(line, x)),
    radius = 4 / Math.sqrt(n);
  const lineAngle = (x, y) => Math.acos(Math.min(1, Math.abs(dot(unit(x), unit(y))))) / degree;
  grams.forEach((m, i) => {
    let row = before.rows[i];
    near(Math.hypot(...row), radius);
    for (let k = 0; k < steps; ++k) row = unit(times(m, row)).map(x => radius * x);
    row.forEach((x, j) => near(x, after.rows[i][j]));
    const angle = Math.atan2(2 * m[0][1], m[0][0] - m[1][1]) / 2,
      v1 = [Math.cos(angle), Math.sin(angle)];
    near(lineAngle(principal[i], v1), 0, 1e-5);
    for (const { rows, angle: told } of [before, after]) near(told[i], lineAngle(rows[i], v1), 1e-5);
  });
  for (const { rows, logits, winner, load, maxViolation, agreement } of [before, after]) {
    const most = values => values.indexOf(Math.max(...values));
    let agreeing = 0;
    tokens.forEach((x, t) => {
      rows.forEach((row, i) => near(logits[t * n + i], dot(row, x)));
      assert.equal(winner[t], most(rows.map(row => dot(row, x))));
      agreeing += winner[t] === most(grams.map(m => dot(x, times(m, x))));
    });
    load.forEach((count, i) => assert.equal(count, winner.filter(w => w === i).length));
    near(maxViolation, Math.max(...load) / (tokens.length / n) - 1);
    near(agreement, agreeing / tokens.length);
  }
}
console.log("the module computes what the theory says");
