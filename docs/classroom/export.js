// What can be taken from the page: a figure as SVG or PNG, the numbers as CSV.
import { element, theme } from "./theme.js";

function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// The figure by itself: its size, its paper, a title, the parameters, and the link that shows it again.
export function standalone(svg, title, words) {
  const copy = svg.cloneNode(true),
    [x, y, width, height] = copy.getAttribute("viewBox").split(/[ ,]+/).map(Number);
  for (const [key, value] of Object.entries({
    xmlns: "http://www.w3.org/2000/svg",
    width,
    height,
    "aria-label": title,
  }))
    copy.setAttribute(key, value);
  copy.style.color = theme().ink;
  copy.style.fontFamily = "system-ui, sans-serif";
  copy.prepend(
    element("title", {}, title),
    element("desc", {}, words),
    element("rect", { x, y, width, height, fill: theme().paper }),
  );
  return { text: new XMLSerializer().serializeToString(copy), width, height };
}

export function saveSvg(name, svg, title, words) {
  save(name + ".svg", new Blob([standalone(svg, title, words).text], { type: "image/svg+xml" }));
}

export async function savePng(name, svg, title, words) {
  const { text, width, height } = standalone(svg, title, words),
    scale = 1600 / width;
  const picture = new Image();
  picture.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
  await picture.decode();
  const canvas = document.createElement("canvas");
  canvas.width = 1600;
  canvas.height = Math.round(height * scale);
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  const made = await new Promise(done => canvas.toBlob(done, "image/png"));
  if (!made) throw new Error("the browser made no picture of it");
  save(name + ".png", made);
}

// rows: arrays of numbers under their names.
export function saveCsv(name, header, rows) {
  save(name + ".csv", new Blob([[header, ...rows].map(row => row.join(",")).join("\n") + "\n"], { type: "text/csv" }));
}
