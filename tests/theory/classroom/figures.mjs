// The router view, and what the page saves.
import assert from "node:assert/strict";
import { mkdir, mkdtemp, readFile } from "node:fs/promises";
import { join } from "node:path";
import { cells, expected, short, slide } from "./page.mjs";

// The winners, from the logits of the library; the page shows them as colours, shapes and in words.
export async function router(browser, library) {
  const page = await browser.open(),
    shapesOf = {};
  for (const [experts, seed, msteps] of [
    [4, 3, 1],
    [2, 9, 1],
    [6, 12, 5],
  ]) {
    for (const [id, value] of Object.entries({ experts, seed, msteps })) await slide(page, id, value);
    const routed = library.route(experts, seed, msteps);
    for (const when of ["before", "after"]) {
      const { logits, load, angle } = routed[when],
        dots = await page.$$eval(`#${when} [data-mark=dot] path`, marks =>
          marks.map(mark => ({
            fill: mark.getAttribute("fill"),
            shape: mark.getAttribute("d")?.replace(/[\d.e-]+/g, "") ?? "",
            title: mark.textContent,
          })),
        );
      assert.equal(dots.length, routed.tokens.length);
      const colors = new Map();
      dots.forEach(({ fill, shape, title }, t) => {
        const own = logits.slice(t * experts, (t + 1) * experts),
          winner = own.indexOf(Math.max(...own));
        assert.equal(title, `token ${t}: expert ${winner + 1}`);
        if (!colors.has(winner)) colors.set(winner, fill);
        assert.equal(fill, colors.get(winner));
        (shapesOf[winner] ??= new Set()).add(shape);
      });
      assert.equal(new Set(colors.values()).size, colors.size, "two experts of one colour");
      const told = await page.$$eval(`#${when} [data-expert]`, all =>
        all.map(it => [it.dataset.expert - 1, it.getAttribute("fill"), it.getAttribute("d").replace(/[\d.e-]+/g, "")]),
      );
      assert.equal(told.length, experts, "the legend has not all experts");
      for (const [i, fill, shape] of told) {
        if (!colors.has(i)) continue; // an expert without tokens
        assert.equal(fill, colors.get(i));
        assert.ok(shapesOf[i].has(shape), `the legend shows expert ${i + 1} otherwise than its tokens`);
      }
      const lines = await page.$$eval(`#${when} [data-mark=text] text`, all => all.map(it => it.textContent));
      for (let i = 1; i <= experts; ++i)
        assert.ok(lines.includes(`±v₁ of ${i}`), `the line of expert ${i} has no name`);
      const column = when === "before" ? 1 : 2;
      (await cells(page, "loads")).forEach((line, i) => {
        assert.equal(line[column], String(load[i]));
        assert.equal(line[column + 2], short(angle[i]));
      });
      assert.equal((await page.$$(`#${when} [data-mark=arrow]`)).length, 2); // each with its border
    }
  }
  Object.values(shapesOf).forEach(shapes => assert.equal(shapes.size, 1));
  const kinds = new Set(Object.values(shapesOf).map(shapes => [...shapes][0]));
  assert.equal(kinds.size, Object.keys(shapesOf).length, "two experts of one shape");
  assert.equal(kinds.size, 6);
  await page.close();
}

export async function exports(browser, library, folder) {
  await mkdir(join(folder, "downloads"), { recursive: true });
  const page = await browser.open({ hash: "#steps=7&t=1.5" }),
    downloads = await mkdtemp(join(folder, "downloads", "x"));
  const client = await page.createCDPSession();
  await client.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: downloads, eventsEnabled: true });
  const save = async (kind, figure) => {
    const done = new Promise(resolve =>
      client.on("Browser.downloadProgress", ({ state: at }) => {
        if (at === "completed") resolve();
      }),
    );
    await page.click(`[data-save=${kind}][data-figure=${figure}]`);
    await done;
    return readFile(join(downloads, `mpi-${figure}.${kind}`));
  };
  for (const figure of ["sphere", "course", "ellipse", "before", "after"]) {
    const svg = String(await save("svg", figure)),
      png = await save("png", figure);
    const [root, title, desc, broken] = await page.evaluate(source => {
      const it = new DOMParser().parseFromString(source, "image/svg+xml");
      return [
        it.documentElement.namespaceURI,
        it.querySelector("title")?.textContent,
        it.querySelector("desc")?.textContent,
        !!it.querySelector("parsererror"),
      ];
    }, svg);
    assert.ok(!broken && root === "http://www.w3.org/2000/svg" && title.length > 10, figure);
    assert.ok(desc.includes("#") && desc.includes("steps=7"), "no link in " + figure);
    assert.equal(png.toString("latin1", 1, 4), "PNG");
    assert.equal(png.readUInt32BE(16), 1600);
    assert.ok(png.length > 10000, `${figure}.png is empty`);
  }
  const rows = String(await save("csv", "course"))
      .trim()
      .split("\n")
      .map(line => line.split(",")),
    { moments } = await expected(page, library);
  assert.equal(rows.length, 9);
  moments.forEach((m, k) => {
    const row = Object.fromEntries(rows[0].map((name, i) => [name, Number(rows[k + 1][i])]));
    assert.deepEqual(
      [
        row.step,
        row.theta_deg,
        row.theta_bound_deg,
        row.theta_bound_by_trace_deg,
        row.rho,
        row.residual,
        row.lambda,
        row.ascent_theta_deg,
        row.row_v3,
      ],
      [k, m.theta, m.bound, m.traceBound, m.rho, m.residual, m.lambda, m.ascentTheta, m.row[2]],
    );
  });
  const tokens = String(await save("csv", "router"))
      .trim()
      .split("\n")
      .map(line => line.split(",")),
    routed = library.route(4, 3, 1);
  routed.tokens.forEach((x, t) =>
    assert.deepEqual(tokens[t + 1].map(Number), [t, ...x, routed.before.winner[t] + 1, routed.after.winner[t] + 1]),
  );
  await page.waitForFunction(() => document.getElementById("spoken").textContent === "Saved mpi-router.csv");
  // What could not be saved is told, and nothing else is, until something is saved.
  await page.evaluate(() => {
    HTMLCanvasElement.prototype.toBlob = done => done(null);
  });
  await page.click("[data-save=png][data-figure=course]");
  await page.waitForSelector("#failure:not([hidden])");
  assert.match(await page.$eval("#failure", it => it.textContent), /^mpi-course.png could not be saved: the browser/);
  assert.equal(await page.$eval("#spoken", it => it.textContent), "Saved mpi-router.csv");
  await save("svg", "course");
  await page.waitForSelector("#failure[hidden]");
  await page.close();
}
