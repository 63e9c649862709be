// The classroom page in a real browser.
//   node run.mjs FOLDER CHROMIUM [TEST…]     where scripts/classroom has built the page; all tests unless some are named
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { start } from "../../../docs/classroom/library.js";
import { everywhere, keyboard, touch } from "./access.mjs";
import { launch } from "./browser.mjs";
import { exports, router } from "./figures.mjs";
import { controls, extremes, failure, links, presets } from "./state.mjs";

const [folder, chromium, ...wanted] = process.argv.slice(2);
const browser = await launch(folder, chromium);
const library = await start(await readFile(join(folder, "classroom.wasm")));
try {
  for (const test of [presets, links, extremes, failure, controls, keyboard, touch, router, exports, everywhere]) {
    if (wanted.length && !wanted.includes(test.name)) continue;
    await test(browser, library, folder);
    console.log(test.name + ": ok");
  }
} finally {
  await browser.close();
}
