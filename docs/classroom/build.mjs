// Puts the page together: node build.mjs NODE_MODULES WASM OUT.html
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const [modules, wasm, out] = process.argv.slice(2);
const here = dirname(fileURLToPath(import.meta.url));
const { build, transform } = createRequire(resolve(modules, "x"))("esbuild");
const part = name => readFile(join(here, name), "utf8");

const bundle = await build({
  entryPoints: [join(here, "main.js")],
  bundle: true,
  minify: true,
  write: false,
  charset: "utf8",
  legalComments: "inline",
  target: "es2022",
  nodePaths: [resolve(modules)],
  logLevel: "warning",
});
const script = bundle.outputFiles[0].text.replace("@WASM@", (await readFile(wasm)).toString("base64"));
const style = (await transform(await part("page.css"), { loader: "css", minify: true, charset: "utf8" })).code;
const pieces = { "@CSS@": style, "@WORDS@": await part("words.html"), "@SCRIPT@": script };
let page = await part("page.html");
for (const [name, text] of Object.entries(pieces)) {
  if (page.split(name).length !== 2) throw new Error(`page.html has ${name} not once`);
  page = page.replace(name, () => text);
}
await writeFile(out, page);
