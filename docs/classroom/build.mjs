// Puts the page together: node build.mjs NODE_MODULES WASM OUT.html
import { readdir, readFile, writeFile } from "node:fs/promises";
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
  metafile: true,
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

// The page may be handed on, and with it what it was bundled from: their licences go along.
const packages = Object.keys(bundle.metafile.inputs).map(path => path.match(/.*node_modules\/(?:@[^/]+\/)?[^/]+/)?.[0]);
const notices = [];
for (const folder of [...new Set(packages.filter(Boolean))].sort()) {
  const licence = (await readdir(folder)).find(name => /^licen[sc]e/i.test(name));
  if (!licence) throw new Error(`${folder} has no licence`);
  const { name, version } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
  notices.push(`${name} ${version}\n${(await readFile(join(folder, licence), "utf8")).trim()}`);
}
await writeFile(out, `${page}<!--\nBundled into this page:\n\n${notices.join("\n\n").replaceAll("--", "- -")}\n-->\n`);
