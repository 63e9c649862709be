// Colours of the figures, for light and dark, and of the experts; shapes say the same without colour.
const dark = matchMedia("(prefers-color-scheme: dark)");
export const onTheme = listener => dark.addEventListener("change", listener);

const themes = {
  light: {
    paper: "#ffffff",
    ink: "#1b1f24",
    soft: "#57606a",
    line: "#d0d7de",
    power: "#b3282f",
    ascent: "#5b2a86",
    third: "#0b6e4f",
    image: "#0b57b8",
    experts: ["#0072b2", "#c2500a", "#00795a", "#9b3a78", "#6e6200", "#4b4f55"],
  },
  dark: {
    paper: "#14171c",
    ink: "#e6e9ee",
    soft: "#a7b0bb",
    line: "#3a424d",
    power: "#ff8a80",
    ascent: "#d0a6ff",
    third: "#5fd3a6",
    image: "#7db4ff",
    experts: ["#56b4e9", "#ff9e5e", "#3ddba8", "#f0a3d0", "#f0e442", "#c8ccd2"],
  },
};
export const theme = () => themes[dark.matches ? "dark" : "light"];
export const light = themes.light;
export const shapes = ["circle", "square", "triangle", "diamond", "star", "wye"];

const letters = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
export const powerOfTen = exponent => "10" + [...String(exponent)].map(c => letters[c]).join("");

// An angle or another number that may be very small: three digits.
export function short(x) {
  if (!Number.isFinite(x)) return "–";
  return x !== 0 && Math.abs(x) < 1e-3 ? x.toExponential(1) : x.toPrecision(3);
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A legend in the figure itself, so that it is in what is saved: above it, or below. entries:
// [{ text, draw(x, y) → element }], either of which may be left out.
export function legend(svg, entries, { color, below = false, size = 13 }) {
  const [x, y, width, height] = svg.getAttribute("viewBox").split(/[ ,]+/).map(Number);
  const gap = 1.4 * size,
    more = gap * entries.length + 8,
    first = (below ? y + height : y - more) + gap / 2 + 4;
  const group = element("g", { class: "legend", "font-size": size, fill: color, "text-anchor": "start" });
  entries.forEach(({ text, draw }, i) => {
    const at = first + i * gap;
    if (draw) group.append(draw(x + 14, at));
    if (text) group.append(element("text", { x: x + (draw ? 30 : 4), y: at, dy: "0.35em" }, text));
  });
  svg.append(group);
  svg.setAttribute("viewBox", `${x} ${below ? y : y - more} ${width} ${height + more}`);
  if (svg.hasAttribute("height")) svg.setAttribute("height", height + more);
}
export const swatch =
  (color, dash = "") =>
  (x, y) =>
    element("line", {
      x1: x - 10,
      x2: x + 10,
      y1: y,
      y2: y,
      stroke: color,
      "stroke-width": 3,
      ...(dash && { "stroke-dasharray": dash }),
    });
