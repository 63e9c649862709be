// A browser for the tests of the classroom page and of the site. What is not there skips the test, with a line that says so.
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));

export function skip(why) {
  console.log("skipped: " + why);
  process.exit(77);
}

// puppeteer-core and axe-core, as package-lock.json has them, in `folder`.
function install(folder) {
  mkdirSync(folder, { recursive: true });
  const lock = join(here, "package-lock.json"),
    copy = join(folder, "package-lock.json");
  if (existsSync(join(folder, "node_modules", "axe-core")) && readFileSync(lock, "utf8") === readFileSync(copy, "utf8"))
    return;
  for (const name of ["package.json", "package-lock.json"]) copyFileSync(join(here, name), join(folder, name));
  try {
    const quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
    // What npm has already, by the hashes of the lock file, it need not ask for.
    execFileSync("npm", ["ci", "--prefix", folder, "--prefer-offline", ...quiet], { stdio: "inherit", timeout: 300000 });
  } catch {
    skip("npm could not install puppeteer-core and axe-core");
  }
}

// Opens pages of `folder`, with `modules` from npm. Every page that open() gives counts its errors; close() fails where there
// were any.
export async function launch(folder, chromium, modules = join(folder, "npm-tests")) {
  if (!existsSync(join(folder, "index.html"))) skip("the page was not built");
  if (!chromium || !existsSync(chromium)) skip("there is no chromium");
  install(modules);
  const from = createRequire(pathToFileURL(resolve(modules, "x")));
  const { default: puppeteer } = await import(pathToFileURL(from.resolve("puppeteer-core")));
  const browser = await puppeteer.launch({ protocolTimeout: 600000, executablePath: chromium, args: ["--no-sandbox"] });
  const errors = [];
  return {
    axe: readFileSync(from.resolve("axe-core/axe.min.js"), "utf8"),
    async open({
      file = "index.html",
      waitFor = "#after svg",
      hash = "",
      width = 1280,
      height = 800,
      scheme = "light",
      script = true,
      touch = false,
    } = {}) {
      const page = await browser.newPage();
      page.setDefaultTimeout(180000); // a machine may be busy with other tests
      page.on("pageerror", error => errors.push(String(error)));
      page.on("console", message => {
        if (["error", "warning", "warn"].includes(message.type())) errors.push(message.text());
      });
      page.on("requestfailed", request => errors.push("not loaded: " + request.url()));
      await page.setJavaScriptEnabled(script);
      await page.setViewport({ width, height, hasTouch: touch });
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      await page.goto(pathToFileURL(resolve(folder, file)) + hash);
      if (script) await page.waitForSelector(waitFor);
      return page;
    },
    async close() {
      await browser.close();
      if (errors.length) throw new Error("on the console: " + errors.join("\n"));
    },
  };
}
