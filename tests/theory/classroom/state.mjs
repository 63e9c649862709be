// The page shows the library's numbers, and its link holds its state.
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { agrees, cells, settle, short, slide, state, text } from "./page.mjs";

export async function presets(browser, library) {
  const page = await browser.open();
  assert.equal((await cells(page, "log")).length, 1);
  const asked = new Set(); // the words that are links in one state or another
  const press = async key => {
    await page.click(`[data-preset=${key}]`);
    assert.equal(await page.$eval("[aria-pressed=true]", button => button.dataset.preset), key);
    for (const word of await page.$$eval("a[data-word]", links => links.map(link => link.dataset.word)))
      asked.add(word);
    return { now: await agrees(page, library), words: await text(page, "words") };
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
  assert.ok(Math.abs(drift.now.theta - 3.574) < 0.01, `${drift.now.theta}, not 3.574`);
  assert.match(drift.words, /3\.57° behind, the floor/);
  assert.ok(
    drift.words.includes(
      `at most ${short(drift.now.bound)}°; without knowing σ₂, from tr M, at most ${short(drift.now.traceBound)}°`,
    ),
  );
  assert.ok(drift.now.stateless > 60);
  assert.match(await text(page, "course"), /floor: 3\.57°/);
  await press("one");
  assert.match(await text(page, "course"), /κ²ᵏ tan θ₀/);

  const words = await page.$$eval("dfn", all => all.map(({ id }) => id.slice("word-".length)));
  assert.deepEqual([...asked].sort(), words.sort(), "a word without a definition, or a definition without a link");

  // Back and forward go through them; the link of each, opened anew, is the same page.
  await page.goBack();
  assert.equal(await page.$eval("[aria-pressed=true]", button => button.dataset.preset), "drift");
  await page.goBack();
  assert.equal(await page.$eval("[aria-pressed=true]", button => button.dataset.preset), "long");
  await page.goForward();
  assert.equal(await page.$eval("[aria-pressed=true]", button => button.dataset.preset), "drift");
  await page.close();
}

export async function links(browser, library) {
  const page = await browser.open();
  for (const [id, value] of [
    ["s2", 0.6],
    ["s3", 0.2],
    ["t", 1.7],
    ["theta", 47],
    ["phi", 111],
    ["drift", 1.5],
    ["steps", 9],
    ["turn", 200],
    ["tilt", -30],
    ["experts", 5],
    ["seed", 17],
    ["msteps", 4],
    ["eta", "fixed"],
    ["frame", "turned"],
  ])
    await slide(page, id, value);
  await page.click("[data-go=router]");
  const hash = await page.evaluate(() => location.hash),
    figures = ["sphere", "course", "ellipse", "before", "after", "log", "loads", "words", "routed"];
  const drawn = async p =>
    Promise.all(figures.map(id => p.$eval("#" + id, element => element.innerHTML.replace(/plot-clip-\d+/g, "clip"))));
  const other = await browser.open({ hash });
  assert.deepEqual(await state(other), await state(page));
  assert.equal((await state(other)).at, "router");
  const [there, here] = [await drawn(other), await drawn(page)];
  figures.forEach((id, i) => assert.ok(there[i] === here[i], `the link shows another ${id}`));
  assert.ok(
    await other.$eval("#part-router", part => Math.abs(part.getBoundingClientRect().top) < 100),
    "opened at the router",
  );
  // Back leads to the part that was open, with its focus; a part that there is not is the first.
  const part = () => other.evaluate(() => document.activeElement.id);
  assert.equal(await part(), "part-router");
  await other.click("[data-go=words]");
  await other.click("[data-go=ellipse]");
  for (const at of ["words", "router"]) {
    await other.goBack();
    await other.waitForFunction(id => document.activeElement.id === id, {}, "part-" + at);
    assert.equal((await state(other)).at, at);
  }
  for (const hash of ["#at=ellipse", "#steps=3", "#at=words", "#at=rubbish"]) {
    const at = /ellipse|words/.exec(hash)?.[0] ?? "row";
    await other.evaluate(to => {
      location.hash = to;
    }, hash);
    await other.waitForFunction(id => document.activeElement.id === id, {}, "part-" + at);
    assert.equal((await state(other)).at, at);
  }
  await page.close();
  await other.close();

  // A link that says nonsense, and one that says little.
  const odd = await browser.open({ hash: "#s2=abc&s3=9&eta=best&steps=1e9&theta=-5&seed=&frame=%00" }),
    at = await state(odd);
  assert.deepEqual(
    [at.s2, at.s3, at.eta, at.steps, at.theta, at.seed, at.frame],
    ["0.75", "0.75", "relative", "200", "0", "3", "axes"],
  );
  await agrees(odd, library);
  await odd.close();
  const named = await browser.open({ hash: "#preset=drift&steps=7" });
  assert.deepEqual([(await state(named)).drift, (await state(named)).steps], ["2", "7"]);
  await named.close();
  const query = await browser.open({ hash: "?steps=8" });
  assert.equal((await state(query)).steps, "8");
  await query.close();
}

// Where a number has no value the page says so, and draws the rest.
export async function extremes(browser, library) {
  const page = await browser.open();
  for (const [hash, says] of [
    "s2=1&drift=2&steps=9",
    "s2=1&s3=1&steps=9",
    "s2=0&s3=0&theta=30&steps=3",
    "s2=0&s3=0&theta=90",
    "theta=0&steps=5",
    "theta=0&drift=10&steps=200",
    "theta=90&steps=200&t=3",
    "t=0.05&steps=200&frame=turned",
    "s2=0.99&s3=0.99&theta=89&steps=200&t=3&eta=fixed",
    ["s2=0.9&drift=10&theta=20&phi=0&steps=30", /faster than a row can follow/],
    ["s2=0.9&drift=5.5&theta=20&phi=0&steps=31", /30\.\d° behind/],
    ["s2=0.5&drift=2&theta=90&phi=0&steps=29", /is 0\.667° behind/],
    ["s2=0.5&drift=2&theta=90&phi=90&steps=28", /no step leaves that plane/],
    ["s2=0.5&s3=0.3&theta=40&phi=0&t=2.5&steps=27", /too long a step .* but those without a part along such a vᵢ/],
    ["theta=0&steps=26", /The row is v₁, and stays/],
  ].map(entry => [entry].flat())) {
    await page.evaluate(to => {
      location.hash = to;
    }, hash);
    await page.waitForFunction(
      steps => document.getElementById("steps").value === steps,
      {},
      new URLSearchParams(hash).get("steps") ?? "0",
    );
    await settle(page);
    await agrees(page, library);
    assert.doesNotMatch(await page.$eval("main", main => main.innerHTML), /NaN|Infinity|undefined/, hash);
    const words = await text(page, "words");
    for (const [told, angle] of words.matchAll(/([\d.e-]+)°/g)) assert.ok(Number(angle) <= 90, `${told} at ${hash}`);
    if (says) assert.match(words, says, hash);
  }
  await page.close();
}

export async function controls(browser, library) {
  const page = await browser.open({ hash: "#steps=5" });
  await slide(page, "s3", 0.9); // σ₂ ≥ σ₃: the one that was moved takes the other along
  assert.equal((await state(page)).s2, "0.9");
  await slide(page, "s2", 0.3);
  assert.equal((await state(page)).s3, "0.3");
  await slide(page, "t", 0.1);
  assert.match(await text(page, "words"), /nearly Oja’s rule/);
  await page.click("#mpi");
  assert.match(await text(page, "words"), /the same step/);
  await agrees(page, library);
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
  await page.waitForFunction(() =>
    /Step 200.*Ended: 200 steps are enough/.test(document.getElementById("spoken").textContent),
  );
  await slide(page, "phi", 90);
  await slide(page, "theta", 90);
  await slide(page, "s3", 0);
  await slide(page, "s2", 0.5);
  assert.match(await text(page, "words"), /no image/);
  assert.equal((await cells(page, "log")).length, 1);
  await page.close();
}

// A page whose module is broken says so; a whole one carries the licences of what is in it.
export async function failure(browser, library, folder) {
  const whole = await readFile(join(folder, "index.html"), "utf8");
  assert.match(whole, /@observablehq\/plot [\d.]+\nCopyright/);
  const broken = whole.replace(/"AGFzbQ[^"]*"/, '"AGFzbQ"');
  assert.notEqual(broken, whole);
  await writeFile(join(folder, "broken.html"), broken);
  const page = await browser.open({ file: "broken.html", waitFor: "#failure:not([hidden])" });
  assert.match(await text(page, "failure"), /The library could not be started: CompileError/);
  await page.close();
}
