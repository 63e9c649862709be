// What the tests read from the classroom page and do to it.
import assert from "node:assert/strict";

export const state = page =>
  page.$eval("#state", form => Object.fromEntries([...form.elements].filter(e => e.name).map(e => [e.name, e.value])));
export const text = (page, id) => page.$eval("#" + id, element => element.textContent);
export const cells = (page, id) =>
  page.$$eval(`#${id} tr`, lines => lines.map(line => [...line.cells].map(cell => cell.textContent)));
export const settle = page =>
  page.evaluate(() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))));
export const slide = (page, id, value, kinds = ["input", "change"]) =>
  page.$eval(
    "#" + id,
    (input, v, events) => {
      input.value = v;
      for (const kind of events) input.dispatchEvent(new Event(kind, { bubbles: true }));
    },
    String(value),
    kinds,
  );

// What the library gives for the state that the page is in.
export async function expected(page, library) {
  const s = await state(page),
    number = name => Number(s[name]);
  return library.course(
    {
      s2: number("s2"),
      s3: number("s3"),
      t: number("t"),
      fixed: s.eta === "fixed" ? 1 : 0,
      theta: number("theta"),
      phi: number("phi"),
      drift: number("drift"),
      turned: s.frame === "turned" ? 1 : 0,
    },
    number("steps"),
  );
}
export const short = x => (x !== 0 && Math.abs(x) < 1e-3 ? x.toExponential(1) : x.toPrecision(3));

// The table shows the library's numbers, the newest step first and the start last.
export async function agrees(page, library) {
  const { moments } = await expected(page, library),
    lines = await cells(page, "log");
  assert.equal(lines.length, Math.min(12, moments.length));
  for (const line of lines) {
    const m = moments[line[0]];
    assert.deepEqual(line.slice(1), [
      short(m.theta),
      short(m.bound),
      m.rho.toFixed(4),
      short(m.residual),
      m.lambda.toFixed(4),
      short(m.ascentTheta),
    ]);
  }
  assert.equal(lines[0][0], String(moments.length - 1));
  assert.equal(lines.at(-1)[0], "0");
  return moments.at(-1);
}
