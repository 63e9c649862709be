// The page by keyboard and touch, for a screen reader, on a projector and on a telephone, light and dark.
import assert from "node:assert/strict";
import { agrees, settle, short, slide, state, text } from "./page.mjs";

export async function keyboard(browser, library) {
  const page = await browser.open();
  const wanted = await page.$$eval(
      "button, select, input[type=range], a[data-word], [tabindex='0']",
      all => all.length,
    ),
    met = new Set();
  for (let i = 0; i < wanted + 2; ++i) {
    await page.keyboard.press("Tab");
    met.add(
      await page.evaluate(() => {
        const it = document.activeElement,
          style = getComputedStyle(it);
        return it === document.body
          ? ""
          : (style.outlineStyle === "none" ? "no outline: " : "") + [...document.querySelectorAll("*")].indexOf(it);
      }),
    );
  }
  met.delete("");
  assert.equal(met.size, wanted, "not all controls are met by Tab");
  assert.ok(![...met].some(name => name.startsWith("no outline")), "a control shows no focus");
  // Each control has one label, its own, that says more than a value; what it stands at is read from the control.
  const labels = await page.$$eval("input[type=range], select", all =>
    all.map(it => [
      it.id,
      it.labels.length,
      it.labels[0]?.control === it,
      /[a-zσκθηt]/.test(it.labels[0]?.textContent),
    ]),
  );
  assert.equal(labels.length, 14);
  for (const [id, count, own, words] of labels) assert.ok(count === 1 && own && words, `#${id} has no label`);
  const { nodes } = await (await page.createCDPSession()).send("Accessibility.getFullAXTree");
  const names = nodes.filter(({ role }) => role?.value === "slider").map(({ name }) => name?.value ?? "");
  assert.equal(names.length, 12);
  assert.ok(names.includes("drift δ a step") && names.includes("power steps"), names.join(", "));
  assert.equal(new Set(names).size, 12, names.join(", "));
  await page.focus("#s2");
  await page.keyboard.press("ArrowRight");
  assert.equal((await state(page)).s2, "0.76");
  assert.equal(await page.$eval("#s2", input => input.getAttribute("aria-valuetext")), "0.76, gap 0.24");
  await page.focus("#theta");
  await page.keyboard.press("ArrowLeft");
  assert.equal(await page.$eval("#theta", input => input.getAttribute("aria-valuetext")), "82 degrees");
  await page.focus("#one");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Space");
  const now = await agrees(page, library);
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
  // And back, by Escape and by the button, to the link; through a definition’s own links too, and a text drawn anew.
  const at = () => page.evaluate(() => document.activeElement.dataset.word ?? document.activeElement.id);
  await page.focus("#part-row a[data-word=kappa]");
  for (const back of ["Escape", "button"]) {
    await page.keyboard.press("Enter");
    assert.equal(await at(), "word-kappa");
    await page.focus("#part-words a[data-word=gradient]");
    await page.keyboard.press("Enter");
    assert.equal(await at(), "word-gradient");
    if (back === "button") {
      await page.keyboard.press("Tab");
      assert.equal(await at(), "back");
    }
    await page.keyboard.press(back === "button" ? "Enter" : back);
    assert.equal(await at(), "kappa");
    assert.equal((await page.$$("#back")).length, 0);
  }
  assert.equal(await page.evaluate(() => location.hash), hash);
  await page.focus("#words a[data-word=certificate]");
  await page.keyboard.press("Enter");
  await slide(page, "steps", 3);
  await page.focus("#word-certificate");
  await page.keyboard.press("Escape");
  assert.equal(await at(), "certificate");
  // With Ctrl the browser opens it elsewhere: the page stays as it is.
  assert.ok(
    await page.$eval("a[data-word=kappa]", link => {
      let own = false;
      addEventListener(
        "click",
        e => {
          own = e.defaultPrevented;
          e.preventDefault();
        },
        { once: true },
      );
      link.dispatchEvent(new MouseEvent("click", { ctrlKey: true, bubbles: true, cancelable: true }));
      return !own;
    }),
  );
  await page.close();
}

export async function touch(browser, library) {
  const page = await browser.open({ width: 375, height: 812, touch: true });
  const box = await (await page.$("#sphere svg")).boundingBox(),
    x = box.x + box.width / 2,
    y = box.y + box.height / 2;
  await page.touchscreen.touchStart(x, y);
  for (let i = 1; i <= 5; ++i) await page.touchscreen.touchMove(x + 10 * i, y);
  await page.touchscreen.touchEnd();
  assert.equal((await state(page)).turn, "32");
  await new Promise((done) => setTimeout(done, 500)); // while a drag rolls out a tap only stops it
  await (await page.$("[data-preset=long]")).tap();
  for (let i = 0; i < 100 && (await state(page)).t !== "2.5"; ++i) await new Promise((done) => setTimeout(done, 20));
  assert.equal((await state(page)).t, "2.5");
  await page.close();
}

// Nothing that axe finds serious.
async function accessible(page, browser, where) {
  await page.evaluate(browser.axe);
  const { violations, passes } = await page.evaluate(() => globalThis.axe.run({ resultTypes: ["violations"] }));
  assert.ok(
    passes.some(({ id }) => id === "color-contrast"),
    "no contrast was looked at",
  );
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  assert.deepEqual(
    serious.map(({ id, nodes }) => `${id}: ${nodes.map(node => node.html).join(" ")}`),
    [],
    where,
  );
}

// On a screen, a projector and a telephone, light and dark: nothing too wide, nothing broken; axe looks at the screen in light and
// the telephone in dark, or with `every` at all.
export async function everywhere(browser, library, folder, every) {
  for (const [width, height] of [
    [1280, 800],
    [1024, 600],
    [375, 812],
  ]) {
    for (const scheme of ["light", "dark"]) {
      const hash =
        scheme === "light"
          ? "#s2=0.5&s3=0.3&t=2.5&eta=fixed&theta=40&phi=30&steps=60&turn=200"
          : "#s2=0.8&theta=20&phi=150&drift=2&steps=40&experts=6&turn=200";
      const page = await browser.open({ width, height, scheme, hash }),
        where = `${width} ${scheme}`;
      await settle(page);
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), width, where);
      assert.ok(
        await page.$$eval(".wide", all => all.every(it => it.scrollWidth <= it.clientWidth)),
        "a table is too wide at " + where,
      );
      assert.ok(
        await page.$$eval("td", all =>
          all.every(cell => cell.clientHeight < 1.9 * parseFloat(getComputedStyle(cell).lineHeight)),
        ),
        "a number is broken at " + where,
      );
      assert.ok(
        await page.$$eval("svg text", all => all.every(it => it.getBoundingClientRect().height >= 9)),
        "tiny text at " + where,
      );
      assert.deepEqual(
        await page.$$eval("svg[role=img]", figures =>
          figures.flatMap(figure => {
            const box = figure.getBoundingClientRect();
            return [...figure.querySelectorAll("text")]
              .filter(it => {
                const { left, right, top, bottom } = it.getBoundingClientRect();
                return left < box.left - 2 || right > box.right + 2 || top < box.top - 2 || bottom > box.bottom + 2;
              })
              .map(it => it.textContent);
          }),
        ),
        [],
        "text outside of its figure at " + where,
      );
      if (width === 1024) {
        const bottom = id => page.$eval(id, it => it.getBoundingClientRect().bottom);
        for (const id of ["#sphere", "#course", "#one", "#drift"])
          assert.ok((await bottom(id)) <= 600, `${id} is below the projector’s edge`);
      }
      // The sphere: the legend in the colours of the paths, and each line and word readable on each shade and the paper.
      const [legend, paths, faint] = await page.$eval("#sphere svg", async svg => {
        const of = (selector, name) => [...svg.querySelectorAll(selector)].map(it => it.getAttribute(name));
        const picture = new Image();
        picture.src = svg.querySelector("image").getAttribute("href");
        await picture.decode();
        const canvas = document.createElement("canvas"),
          pen = canvas.getContext("2d");
        canvas.width = picture.width;
        canvas.height = picture.height;
        pen.drawImage(picture, 0, 0);
        const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data,
          shades = new Set();
        for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] === 255) shades.add(pixels.slice(i, i + 3).join());
        const light = rgb => {
          const [r, g, b] = rgb.map(v => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
        };
        const hex = color => [1, 3, 5].map(i => parseInt(color.slice(i, i + 2), 16));
        const paper = svg.querySelector("rect[rx]")?.getAttribute("fill"),
          under = [...shades].map(shade => shade.split(",").map(Number));
        under.push(paper ? hex(paper) : [255, 255, 255]);
        // As it is seen: each colour at its opacity, and that of the groups around it, over each shade.
        const opacity = it => (it === svg ? 1 : Number(getComputedStyle(it).opacity) * opacity(it.parentNode));
        const seen = new Set();
        for (const it of svg.querySelectorAll("line, polyline, circle, text, rect:not([rx])")) {
          const { fill, stroke } = getComputedStyle(it); // text has a halo as light as its paper
          for (const color of it.localName === "text" ? [fill] : [fill, stroke])
            if (color !== "none") seen.add(`${color.match(/[\d.]+/g)} ${opacity(it)}`);
        }
        const faint = [...seen].flatMap(ink => {
          const [color, alpha] = ink.split(" "),
            over = shade => color.split(",").map((v, i) => v * alpha + shade[i] * (1 - alpha));
          return under.filter(shade => light(shade) / light(over(shade)) < 3).map(shade => `${ink} on ${shade}`);
        });
        return [of(".legend line", "stroke"), of("g[fill][stroke]", "stroke"), faint];
      });
      assert.deepEqual(faint, [], "not to be seen on the sphere at " + where);
      // Both states have a path that passes behind; it is told from what is before it by dots, not by a paler colour.
      assert.ok(await page.$("#sphere polyline[stroke-dasharray='2 4']"), "nothing is behind the sphere at " + where);
      assert.equal(legend.length, 2);
      for (const color of legend) assert.ok(paths.includes(color), `the legend’s ${color} is on no path at ${where}`);
      if (every || ["1280 light", "375 dark"].includes(where)) await accessible(page, browser, where);
      await page.close();
    }
  }
  const bare = await browser.open({ script: false });
  assert.match(
    await bare.$eval("body", body => body.innerText),
    /computes what it shows, with JavaScript and WebAssembly[^]*The words of this page/,
  );
  await bare.close();
}
