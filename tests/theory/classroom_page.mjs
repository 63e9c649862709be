// The classroom page in a real browser: what it shows is what the library computes, its link holds its state, and it can be
// used by keyboard, by touch, by a screen reader, on a projector and on a telephone.
//   node classroom_page.mjs FOLDER CHROMIUM
import assert from "node:assert/strict";
import { mkdir, mkdtemp, readFile } from "node:fs/promises";
import { join } from "node:path";
import { start } from "../../docs/classroom/library.js";
import { launch } from "./browser.mjs";

const [folder, chromium] = process.argv.slice(2);
const browser = await launch(folder, chromium);
const library = await start(await readFile(join(folder, "classroom.wasm")));

const state = page => page.$eval("#state", form => Object.fromEntries([...form.elements].filter(e => e.name).map(e => [e.name, e.value])));
const text = (page, id) => page.$eval("#" + id, element => element.textContent);
const cells = (page, id) => page.$$eval(`#${id} tr`, lines => lines.map(line => [...line.cells].map(cell => cell.textContent)));
const settle = page => page.evaluate(() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))));
const slide = (page, id, value, kinds = ["input", "change"]) => page.$eval("#" + id, (input, v, events) => {
  input.value = v;
  for (const kind of events) input.dispatchEvent(new Event(kind, { bubbles: true }));
}, String(value), kinds);

// What the library gives for the state that the page is in.
async function expected(page) {
  const s = await state(page), number = name => Number(s[name]);
  return library.course({ s2: number("s2"), s3: number("s3"), t: number("t"), fixed: s.eta === "fixed" ? 1 : 0, theta: number("theta"),
                          phi: number("phi"), drift: number("drift"), turned: s.frame === "turned" ? 1 : 0 }, number("steps"));
}
const short = x => x !== 0 && Math.abs(x) < 1e-3 ? x.toExponential(1) : x.toPrecision(3);

// The table shows the library's numbers, the newest step first and the start last.
async function agrees(page) {
  const { moments } = await expected(page), lines = await cells(page, "log");
  assert.equal(lines.length, Math.min(12, moments.length));
  for (const line of lines) {
    const m = moments[line[0]];
    assert.deepEqual(line.slice(1), [short(m.theta), short(m.bound), m.rho.toFixed(4), short(m.residual), m.lambda.toFixed(4), short(m.ascentTheta)]);
  }
  assert.equal(lines[0][0], String(moments.length - 1));
  assert.equal(lines.at(-1)[0], "0");
  return moments.at(-1);
}

async function presets() {
  const page = await browser.open();
  assert.equal((await cells(page, "log")).length, 1);
  const press = async key => {
    await page.click(`[data-preset=${key}]`);
    assert.equal(await page.$eval("[aria-pressed=true]", button => button.dataset.preset), key);
    return { now: await agrees(page), words: await text(page, "words") };
  };
  const repeated = await press("repeated");
  assert.ok(repeated.now.theta > 10 && repeated.now.bound === 90 && repeated.now.residual < 1e-6);
  assert.match(repeated.words, /no one direction to find.*claims nothing/s);
  const orthogonal = await press("orthogonal");
  assert.equal(orthogonal.now.theta, 90);
  assert.ok(Math.abs(orthogonal.now.row[1]) > 0.99999);
  assert.match(orthogonal.words, /no step leaves that plane/);
  const freed = await press("freed");
  assert.ok(freed.now.theta < 0.1 && freed.now.bound < 0.1);
  const long = await press("long");
  assert.ok(long.now.theta < 1e-9 && long.now.ascentTheta > 5);
  assert.match(long.words, /too long a step.*Ended: the ascent is in a two-cycle/s);
  const drift = await press("drift");
  const floor = 0.64 * 2 / 0.36;
  assert.ok(Math.abs(drift.now.theta - floor) < 0.1, `${drift.now.theta}, not ${floor}`);
  assert.match(drift.words, /3\.56°/);
  assert.ok(drift.now.stateless > 60);
  assert.match(await text(page, "course"), /floor κ²δ/);
  await press("one");
  assert.match(await text(page, "course"), /κ²ᵏ tan θ₀/);

  // Back and forward go through them; the link of each, opened anew, is the same page.
  await page.goBack();
  assert.equal(await page.$eval("[aria-pressed=true]", button => button.dataset.preset), "drift");
  await page.goBack();
  assert.equal(await page.$eval("[aria-pressed=true]", button => button.dataset.preset), "long");
  await page.goForward();
  assert.equal(await page.$eval("[aria-pressed=true]", button => button.dataset.preset), "drift");
  await page.close();
}

async function links() {
  const page = await browser.open();
  for (const [id, value] of [["s2", 0.6], ["s3", 0.2], ["t", 1.7], ["theta", 47], ["phi", 111], ["drift", 1.5], ["steps", 9], ["turn", 200],
                             ["tilt", -30], ["experts", 5], ["seed", 17], ["msteps", 4], ["eta", "fixed"], ["frame", "turned"]])
    await slide(page, id, value);
  await page.click("[data-go=router]");
  const hash = await page.evaluate(() => location.hash), figures = ["sphere", "course", "ellipse", "before", "after", "log", "loads", "words", "routed"];
  const drawn = async p => Promise.all(figures.map(id => p.$eval("#" + id, element => element.innerHTML.replace(/plot-clip-\d+/g, "clip"))));
  const other = await browser.open({ hash });
  assert.deepEqual(await state(other), await state(page));
  assert.equal((await state(other)).at, "router");
  const [there, here] = [await drawn(other), await drawn(page)];
  figures.forEach((id, i) => assert.ok(there[i] === here[i], `the link shows another ${id}`));
  assert.ok(await other.$eval("#part-router", part => Math.abs(part.getBoundingClientRect().top) < 100), "opened at the router");
  await page.close();
  await other.close();

  // A link that says nonsense, and one that says little.
  const odd = await browser.open({ hash: "#s2=abc&s3=9&eta=best&steps=1e9&theta=-5&seed=&frame=%00" }), at = await state(odd);
  assert.deepEqual([at.s2, at.s3, at.eta, at.steps, at.theta, at.seed, at.frame], ["0.75", "0.75", "relative", "200", "0", "3", "axes"]);
  await agrees(odd);
  await odd.close();
  const query = await browser.open({ hash: "?steps=8" });
  assert.equal((await state(query)).steps, "8");
  await query.close();
}

// Where a number has no value the page says so, and draws the rest.
async function extremes() {
  const page = await browser.open();
  for (const hash of ["s2=1&drift=2&steps=9", "s2=1&s3=1&steps=9", "s2=0&s3=0&theta=30&steps=3", "s2=0&s3=0&theta=90", "theta=0&steps=5", "theta=0&drift=10&steps=200",
                      "theta=90&steps=200&t=3", "t=0.05&steps=200&frame=turned", "s2=0.99&s3=0.99&theta=89&steps=200&t=3&eta=fixed"]) {
    await page.evaluate(to => { location.hash = to; }, hash);
    await page.waitForFunction(steps => document.getElementById("steps").value === steps, {}, new URLSearchParams(hash).get("steps") ?? "0");
    await settle(page);
    await agrees(page);
    assert.doesNotMatch(await page.$eval("main", main => main.innerHTML), /NaN|Infinity|undefined/, hash);
  }
  await page.close();
}

async function controls() {
  const page = await browser.open({ hash: "#steps=5" });
  await slide(page, "s3", 0.9);  // σ₂ ≥ σ₃: the one that was moved takes the other along
  assert.equal((await state(page)).s2, "0.9");
  await slide(page, "s2", 0.3);
  assert.equal((await state(page)).s3, "0.3");
  await slide(page, "t", 0.1);
  assert.match(await text(page, "words"), /nearly Oja’s rule/);
  await page.click("#mpi");
  assert.match(await text(page, "words"), /the same step/);
  await agrees(page);
  await page.click("#again");
  assert.equal((await state(page)).steps, "0");
  await page.click("#one");
  assert.equal((await state(page)).steps, "1");
  // A run goes on, pauses, and ends; so does what a screen reader is told.
  await page.click("#run");
  await page.waitForFunction(() => Number(document.getElementById("steps").value) >= 3);
  await page.click("#run");
  assert.equal(await text(page, "run"), "Run");
  await slide(page, "steps", 198);
  await slide(page, "s2", 1);
  await slide(page, "t", 0.05);
  await page.click("#run");
  await page.waitForFunction(() => document.getElementById("run").textContent === "Run");
  assert.equal((await state(page)).steps, "200");
  await page.waitForFunction(() => /Step 200.*Ended: 200 steps are enough/.test(document.getElementById("spoken").textContent));
  await slide(page, "phi", 90); await slide(page, "theta", 90); await slide(page, "s3", 0); await slide(page, "s2", 0.5);
  assert.match(await text(page, "words"), /no image/);
  assert.equal((await cells(page, "log")).length, 1);
  await page.close();
}

async function keyboard() {
  const page = await browser.open();
  const wanted = await page.$$eval("button, select, input[type=range], a[data-word], [tabindex='0']", all => all.length), met = new Set();
  for (let i = 0; i < wanted + 2; ++i) {
    await page.keyboard.press("Tab");
    met.add(await page.evaluate(() => {
      const it = document.activeElement, style = getComputedStyle(it);
      return it === document.body ? "" : (style.outlineStyle === "none" ? "no outline: " : "")
        + [...document.querySelectorAll("*")].indexOf(it);
    }));
  }
  met.delete("");
  assert.equal(met.size, wanted, "not all controls are met by Tab");
  assert.ok(![...met].some(name => name.startsWith("no outline")), "a control shows no focus");
  await page.focus("#s2");
  await page.keyboard.press("ArrowRight");
  assert.equal((await state(page)).s2, "0.76");
  await page.focus("#theta");
  await page.keyboard.press("ArrowLeft");
  assert.equal(await page.$eval("#theta", input => input.getAttribute("aria-valuetext")), "82 degrees");
  await page.focus("#one");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Space");
  const now = await agrees(page);
  assert.equal((await state(page)).steps, "2");
  await page.waitForFunction(() => document.getElementById("spoken").textContent.startsWith("Step 2."));
  assert.ok((await text(page, "spoken")).includes(`Power step ${short(now.theta)} degrees`));
  await page.focus("#turn");
  const before = await page.$eval("#sphere", element => element.innerHTML);
  await page.keyboard.press("ArrowRight");
  assert.notEqual(await page.$eval("#sphere", element => element.innerHTML), before);
  // Each word leads to its definition, and leaves the state alone.
  const hash = await page.evaluate(() => location.hash);
  for (const word of await page.$$("a[data-word]")) {
    await word.focus();
    await page.keyboard.press("Enter");
    const [name, focused] = await word.evaluate(link => [link.dataset.word, document.activeElement.id]);
    assert.equal(focused, "word-" + name);
  }
  assert.equal(await page.evaluate(() => location.hash), hash);
  await page.close();
}

async function touch() {
  const page = await browser.open({ width: 375, height: 812, touch: true });
  const box = await (await page.$("#sphere svg")).boundingBox(), x = box.x + box.width / 2, y = box.y + box.height / 2;
  await page.touchscreen.touchStart(x, y);
  for (let i = 1; i <= 5; ++i) await page.touchscreen.touchMove(x + 10 * i, y);
  await page.touchscreen.touchEnd();
  assert.equal((await state(page)).turn, "32");
  await (await page.$("[data-preset=long]")).tap();
  assert.equal((await state(page)).t, "2.5");
  await page.close();
}

// The winners, from the logits of the library; the page shows them as colours, shapes and in words.
async function router() {
  const page = await browser.open(), shapesOf = {};
  for (const [experts, seed, msteps] of [[4, 3, 1], [2, 9, 1], [6, 12, 5]]) {
    for (const [id, value] of Object.entries({ experts, seed, msteps })) await slide(page, id, value);
    const routed = library.route(experts, seed, msteps);
    for (const when of ["before", "after"]) {
      const { logits, load, angle } = routed[when], dots = await page.$$eval(`#${when} [data-mark=dot] path`, marks =>
        marks.map(mark => ({ fill: mark.getAttribute("fill"), shape: mark.getAttribute("d")?.replace(/[\d.e-]+/g, "") ?? "", title: mark.textContent })));
      assert.equal(dots.length, routed.tokens.length);
      const colors = new Map();
      dots.forEach(({ fill, shape, title }, t) => {
        const own = logits.slice(t * experts, (t + 1) * experts), winner = own.indexOf(Math.max(...own));
        assert.equal(title, `token ${t}: expert ${winner + 1}`);
        if (!colors.has(winner)) colors.set(winner, fill);
        assert.equal(fill, colors.get(winner));
        (shapesOf[winner] ??= new Set()).add(shape);
      });
      assert.equal(new Set(colors.values()).size, colors.size, "two experts of one colour");
      const column = when === "before" ? 1 : 2;
      (await cells(page, "loads")).forEach((line, i) => {
        assert.equal(line[column], String(load[i]));
        assert.equal(line[column + 2], short(angle[i]));
      });
      assert.equal((await page.$$(`#${when} [data-mark=arrow]`)).length, 2);  // each with its border
    }
  }
  Object.values(shapesOf).forEach(shapes => assert.equal(shapes.size, 1));
  await page.close();
}

async function exports() {
  await mkdir(join(folder, "downloads"), { recursive: true });
  const page = await browser.open({ hash: "#steps=7&t=1.5" }), downloads = await mkdtemp(join(folder, "downloads", "x"));
  const client = await page.createCDPSession();
  await client.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: downloads, eventsEnabled: true });
  const save = async (kind, figure) => {
    const done = new Promise(resolve => client.on("Browser.downloadProgress", ({ state: at }) => { if (at === "completed") resolve(); }));
    await page.click(`[data-save=${kind}][data-figure=${figure}]`);
    await done;
    return readFile(join(downloads, `mpi-${figure}.${kind}`));
  };
  for (const figure of ["sphere", "course", "ellipse", "before", "after"]) {
    const svg = String(await save("svg", figure)), png = await save("png", figure);
    const [root, title, desc, broken] = await page.evaluate(source => {
      const it = new DOMParser().parseFromString(source, "image/svg+xml");
      return [it.documentElement.namespaceURI, it.querySelector("title")?.textContent, it.querySelector("desc")?.textContent, !!it.querySelector("parsererror")];
    }, svg);
    assert.ok(!broken && root === "http://www.w3.org/2000/svg" && title.length > 10, figure);
    assert.ok(desc.includes("#") && desc.includes("steps=7"), "no link in " + figure);
    assert.equal(png.toString("latin1", 1, 4), "PNG");
    assert.equal(png.readUInt32BE(16), 1600);
    assert.ok(png.length > 10000, `${figure}.png is empty`);
  }
  const rows = String(await save("csv", "course")).trim().split("\n").map(line => line.split(",")), { moments } = await expected(page);
  assert.equal(rows.length, 9);
  moments.forEach((m, k) => {
    const row = Object.fromEntries(rows[0].map((name, i) => [name, Number(rows[k + 1][i])]));
    assert.deepEqual([row.step, row.theta_deg, row.theta_bound_deg, row.theta_bound_by_trace_deg, row.rho, row.residual, row.lambda, row.ascent_theta_deg, row.row_v3],
                     [k, m.theta, m.bound, m.traceBound, m.rho, m.residual, m.lambda, m.ascentTheta, m.row[2]]);
  });
  const tokens = String(await save("csv", "router")).trim().split("\n").map(line => line.split(",")), routed = library.route(4, 3, 1);
  routed.tokens.forEach((x, t) => assert.deepEqual(tokens[t + 1].map(Number), [t, ...x, routed.before.winner[t] + 1, routed.after.winner[t] + 1]));
  await page.close();
}

// On a screen, a projector and a telephone, light and dark: nothing too wide, nothing broken, nothing that axe finds serious.
async function everywhere() {
  for (const [width, height] of [[1280, 800], [1024, 600], [375, 812]]) {
    for (const scheme of ["light", "dark"]) {
      const hash = scheme === "light" ? "#s2=0.5&s3=0.3&t=2.5&eta=fixed&theta=40&phi=30&steps=60" : "#s2=0.8&theta=20&phi=150&drift=2&steps=40&experts=6";
      const page = await browser.open({ width, height, scheme, hash }), where = `${width} ${scheme}`;
      await settle(page);
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), width, where);
      assert.ok(await page.$$eval(".wide", all => all.every(it => it.scrollWidth <= it.clientWidth)), "a table is too wide at " + where);
      assert.ok(await page.$$eval("td", all => all.every(cell => cell.clientHeight < 1.9 * parseFloat(getComputedStyle(cell).lineHeight))), "a number is broken at " + where);
      assert.ok(await page.$$eval("svg text", all => all.every(it => it.getBoundingClientRect().height >= 9)), "tiny text at " + where);
      assert.deepEqual(await page.$$eval("svg[role=img]", figures => figures.flatMap(figure => {
        const box = figure.getBoundingClientRect();
        return [...figure.querySelectorAll("text")].filter(it => {
          const { left, right, top, bottom } = it.getBoundingClientRect();
          return left < box.left - 2 || right > box.right + 2 || top < box.top - 2 || bottom > box.bottom + 2;
        }).map(it => it.textContent);
      })), [], "text outside of its figure at " + where);
      if (width === 1024) {
        const bottom = id => page.$eval(id, it => it.getBoundingClientRect().bottom);
        for (const id of ["#sphere", "#course", "#one", "#drift"]) assert.ok(await bottom(id) <= 600, `${id} is below the projector’s edge`);
      }
      await page.evaluate(browser.axe);
      const { violations, passes } = await page.evaluate(() => globalThis.axe.run());
      assert.ok(passes.some(({ id }) => id === "color-contrast"), "no contrast was looked at");
      const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
      assert.deepEqual(serious.map(({ id, nodes }) => `${id}: ${nodes.map(node => node.html).join(" ")}`), [], where);
      await page.close();
    }
  }
  const bare = await browser.open({ script: false });
  assert.match(await bare.$eval("body", body => body.innerText), /computes what it shows, with JavaScript and WebAssembly[^]*The words of this page/);
  await bare.close();
}

try {
  for (const test of [presets, links, extremes, controls, keyboard, touch, router, exports, everywhere]) {
    await test();
    console.log(test.name + ": ok");
  }
} finally {
  await browser.close();
}
