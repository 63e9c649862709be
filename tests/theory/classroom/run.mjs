// The classroom page in a real browser.
//   node run.mjs FOLDER CHROMIUM [every] [TEST…]     where scripts/classroom has built the page; all tests unless some are
//                                                    named. every: axe looks at each width in light and in dark
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { start } from "../../../docs/classroom/library.js";
import { everywhere, keyboard, touch } from "./access.mjs";
import { launch } from "./browser.mjs";
import { exports, router } from "./figures.mjs";
import { controls, extremes, failure, links, presets } from "./state.mjs";

const [folder, chromium, ...rest] = process.argv.slice(2);
const every = rest[0] === "every",
  wanted = rest.slice(every ? 1 : 0);
const browser = await launch(folder, chromium);
const library = await start(await readFile(join(folder, "classroom.wasm")));
try {
  for (const test of [presets, links, extremes, failure, controls, keyboard, touch, router, exports, everywhere]) {
    if (wanted.length && !wanted.includes(test.name)) continue;
    await test(browser, library, folder, every);
    console.log(test.name + ": ok");
  }
} finally {
  await browser.close();
}
