// The site in a real browser: on a telephone and on a screen, light and dark, nothing is too wide, broken or hard to read.
//   node run.mjs SITE CHROMIUM MODULES [every]     where scripts/site has built it, where npm may put what drives the browser,
//                                                  and whether axe looks at every page everywhere
import assert from "node:assert/strict";
import { launch } from "../theory/classroom/browser.mjs";

const [site, chromium, modules, every] = process.argv.slice(2);
const pages = [
  "index.html",
  "docs/guide-embed.html",
  "docs/guide-verify.html",
  "docs/theory.html",
  "docs/glossary.html",
  "docs/performance.html",
  "docs/families.html",
  "docs/architecture.html",
  "CHANGELOG.html",
  "reference/index.html",
  "reference/files.html",
  "reference/power__step_8hpp.html",
  "reference/structmpi__router_1_1router__options.html",
  "reference/mpi__router_8h.html",
  "classroom/index.html",
];
// axe takes most of the time. It looks at every page on the telephone, and everywhere at one of each kind.
const kinds = ["index.html", "docs/guide-embed.html", "reference/files.html", "reference/power__step_8hpp.html", "search.html"];
const browser = await launch(site, chromium, modules);
const faults = [];

// The page as it is, in the scheme and width that it is to be in.
async function look(page, where, width, scheme, axe) {
  await page.setViewport({ width, height: 800 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  const complain = fault => faults.push(`${where} at ${width}, ${scheme}: ${fault}`);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  if (wide > width) complain(`${wide} wide`);
  const paper = await page.evaluate(() => {
    const pen = document.createElement("canvas").getContext("2d");
    pen.fillStyle = getComputedStyle(document.body).backgroundColor;
    return parseInt(pen.fillStyle.slice(1, 3), 16);
  });
  if (scheme === "light" ? paper < 200 : paper > 60) complain(`the paper is ${paper}`);
  if (!axe) return;
  // A file may load no other; what passes is neither described nor sent here, which would take most of the time.
  const violations = await page.evaluate(
    async () => (await globalThis.axe.run({ preload: false, resultTypes: ["violations"] })).violations,
  );
  for (const { id, impact, nodes } of violations)
    if (["serious", "critical"].includes(impact))
      complain(`${id}: ${nodes.slice(0, 4).map(node => node.html)} (${nodes.length})`);
}

async function visit(options) {
  const page = await browser.open({ width: 375, ...options }),
    where = options.file;
  await page.evaluate(browser.axe);
  const all = every || kinds.includes(where);
  await look(page, where, 375, "light", true);
  await look(page, where, 375, "dark", all);
  await look(page, where, 1280, "light", all);
  return page;
}

try {
  for (const file of pages) await (await visit({ file, waitFor: "h1, .title" })).close();
  // The search finds a word of a guide, without a server.
  const page = await visit({ file: "search.html", hash: "?q=retract", waitFor: "#search-results li" });
  const found = await page.$$eval("#search-results li a", all => all.map(it => it.href));
  if (!found.some(it => it.includes("docs/theory.html"))) faults.push("the search does not find docs/theory.html");
} catch (error) {
  faults.push(String(error));
}
await browser.close().catch(error => faults.push(String(error)));
assert.deepEqual(faults, []);
