// The charts, drawn by Observable Plot from the library's numbers.
import { plot, line, dot, text, ruleX, ruleY, arrow, link } from "@observablehq/plot";
import { element, legend, powerOfTen, shapes, short, swatch, theme } from "./theme.js";

const smallest = 1e-13; // degrees; what is left below is rounding
// One picture with one description: the names that Plot gives its marks are no ARIA labels then.
function image(svg, label) {
  for (const mark of svg.querySelectorAll("[aria-label]")) {
    mark.dataset.mark = mark.getAttribute("aria-label");
    mark.removeAttribute("aria-label");
  }
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  return svg;
}
const style = colors => ({
  background: "none",
  color: colors.ink,
  fontSize: "13px",
  fontFamily: "system-ui, sans-serif",
  overflow: "visible",
});

// θ over the steps, on a logarithmic axis, beside what the theory says of it.
export function drawCourse(course, state, width) {
  const colors = theme(),
    last = course.moments.length - 1;
  const series = (name, from = course.moments) =>
    from
      .map((moment, k) => ({ k, angle: moment[name] }))
      .filter(({ angle }) => angle >= smallest && Number.isFinite(angle));
  const still = !state.drift,
    straight = still && state.theta !== 90 && state.s2 < 1;
  const entries = [
    { text: "power step (MPI): θ", draw: swatch(colors.power) },
    { text: "ascent: θ", draw: swatch(colors.ascent, "6 4") },
    { text: "certificate: θ of the power step is at most", draw: swatch(colors.soft, "2 3") },
  ];
  if (straight) entries.push({ text: "κ²ᵏ tan θ₀, as an angle", draw: swatch(colors.third, "10 3") });
  const floors = !still && Number.isFinite(course.floor) ? [course.floor] : [];
  if (floors.length)
    entries.push({ text: `floor: ${short(course.floor)}° behind v₁`, draw: swatch(colors.third, "10 3") });
  if (!still) entries.push({ text: "stateless: one step from the start", draw: swatch(colors.soft) });
  const least = Math.min(1, ...["theta", "ascentTheta"].flatMap(name => series(name).map(({ angle }) => angle)));
  const lowest = 10 ** Math.floor(Math.log10(least)),
    thick = { strokeWidth: 2.5 };
  const svg = plot({
    width,
    height: Math.max(210, Math.round(0.5 * width)),
    marginTop: 24,
    marginLeft: 52,
    marginBottom: 38,
    style: style(colors),
    x: { label: "step k", domain: [0, Math.max(10, last)], tickFormat: k => (Number.isInteger(k) ? String(k) : "") },
    y: {
      label: "θ (degrees)",
      type: "log",
      domain: [lowest, 100],
      grid: true,
      ticks: Array.from({ length: 8 }, (_, i) => 10 ** (2 - i * (least < 1e-3 ? 2 : 1))).filter(
        y => y >= 0.99 * lowest,
      ),
      tickFormat: y => (y >= 1 ? String(y) : powerOfTen(Math.round(Math.log10(y)))),
    },
    marks: [
      straight
        ? line(series("expected"), {
            x: "k",
            y: "angle",
            stroke: colors.third,
            strokeDasharray: "10 3",
            clip: true,
            ...thick,
          })
        : null,
      ruleY(floors, { stroke: colors.third, strokeDasharray: "10 3", ...thick }),
      still ? null : line(series("stateless"), { x: "k", y: "angle", stroke: colors.soft, strokeWidth: 1.5 }),
      line(series("bound"), { x: "k", y: "angle", stroke: colors.soft, strokeDasharray: "2 3", ...thick }),
      line(series("ascentTheta"), { x: "k", y: "angle", stroke: colors.ascent, strokeDasharray: "6 4", ...thick }),
      dot(series("ascentTheta"), { x: "k", y: "angle", fill: colors.ascent, symbol: "square", r: 2.5 }),
      line(series("theta"), { x: "k", y: "angle", stroke: colors.power, ...thick }),
      dot(series("theta"), { x: "k", y: "angle", fill: colors.power, r: 3 }),
    ],
  });
  legend(svg, entries, { color: colors.ink });
  const now = course.moments[last];
  return image(
    svg,
    `The angle to v₁ over ${last} steps, on a logarithmic axis. Power step: from ${short(course.moments[0].theta)} ` +
      `to ${short(now.theta)} degrees, certificate at most ${short(now.bound)}. Ascent: ${short(now.ascentTheta)}.`,
  );
}

const named = colors => ({
  fill: colors.ink,
  stroke: colors.paper,
  strokeWidth: 4,
  fontWeight: 700,
  fontSize: 15,
});

// A plane with equal axes around the origin.
function plane(size, reach, colors, marks, labels = {}) {
  const axis = label => ({ domain: [-reach, reach], label, ticks: 5 });
  return plot({
    width: size,
    height: size,
    margin: 40,
    marginLeft: 46,
    marginRight: 34,
    marginTop: 24,
    style: style(colors),
    x: axis(labels.x ?? null),
    y: axis(labels.y ?? null),
    marks: [ruleX([0], { stroke: colors.line }), ruleY([0], { stroke: colors.line }), ...marks.filter(Boolean)],
  });
}

// Beside the head of an arrow: `turn` is 1 on its left, −1 on its right.
const beside = ([x, y], turn) => {
  const length = Math.hypot(x, y) || 1;
  return [x - (0.13 * turn * y) / length, y + (0.13 * turn * x) / length];
};

// A on the unit circle: the circle of v₁ and v₂, its image, and the row with its own.
export function drawEllipse({ points, row, image: mapped }, moment, state, width) {
  const colors = theme(),
    size = Math.min(width, 420);
  const [s1, s2] = [1, state.s2],
    outwards = row[0] * row[1] < 0 ? -1 : 1; // the row is farther from v₁ than its image is
  const svg = plane(size, 1.25, colors, [
    line(points, { x: p => p[0], y: p => p[1], stroke: colors.soft, strokeDasharray: "4 3", strokeWidth: 2 }),
    line(points, { x: p => p[2], y: p => p[3], stroke: colors.third, strokeWidth: 3 }),
    link(
      [
        [s1, 0],
        [0, s2],
      ],
      { x1: p => -p[0], y1: p => -p[1], x2: p => p[0], y2: p => p[1], stroke: colors.third, strokeWidth: 1 },
    ),
    arrow([row], { x1: 0, y1: 0, x2: p => p[0], y2: p => p[1], stroke: colors.power, strokeWidth: 2.5, headLength: 7 }),
    arrow([mapped], {
      x1: 0,
      y1: 0,
      x2: p => p[0],
      y2: p => p[1],
      stroke: colors.image,
      strokeWidth: 2.5,
      headLength: 7,
    }),
    text(
      [
        [1.14, 0, "v₁"],
        [0, 1.14, "v₂"],
        [...beside(row, outwards), "r̂"],
        [...beside(mapped, -outwards), "A r̂"],
      ],
      { x: p => p[0], y: p => p[1], text: p => p[2], ...named(colors) },
    ),
  ]);
  legend(
    svg,
    [
      { text: "unit circle of v₁ and v₂", draw: swatch(colors.soft, "4 3") },
      { text: "its image under A: half axes σ₁, σ₂", draw: swatch(colors.third) },
      { text: "the row r̂ of the power step", draw: swatch(colors.power) },
      { text: "its image A r̂", draw: swatch(colors.image) },
    ],
    { color: colors.ink },
  );
  return image(
    svg,
    `A maps the unit circle of v₁ and v₂ to an ellipse with half axes 1 and ${state.s2}. The row has ` +
      `${short(Math.abs(row[0]))} along v₁; the length of its image is ${short(moment.lambda)}.`,
  );
}

// Where on its line each expert’s ±v₁ is named: as far as can be from the other names.
function lineNames(experts, reach) {
  const taken = experts.map(({ row }) => row.map(x => 1.14 * x));
  return experts.map(e => {
    const farthest = Math.max(...e.v.map(Math.abs));
    const free = at => Math.min(...taken.map(other => Math.hypot(at[0] - other[0], 2 * (at[1] - other[1]))));
    const [at] = [0.86, -0.86, 0.72, -0.72, 0.58, -0.58]
      .map(part => e.v.map(x => (part * reach * x) / farthest))
      .sort((a, b) => free(b) - free(a));
    taken.push(at);
    return { e, at };
  });
}

// The symbols of the experts with their numbers, three a line, for the legend.
function symbolEntries(experts) {
  const drawn = plot({ marks: [dot(shapes, { x: 0, y: 0, r: 4.5, symbol: shape => shape, sort: null })] });
  const outlines = [...drawn.querySelectorAll("[aria-label=dot] path")].map(path => path.getAttribute("d"));
  const entry = ({ i, color }, x, y) => [
    element("path", { d: outlines[i], fill: color, transform: `translate(${x},${y})`, "data-expert": i + 1 }),
    element("text", { x: x + 12, y, dy: "0.35em" }, `expert ${i + 1}`),
  ];
  const lines = experts.length > 3 ? [experts.slice(0, 3), experts.slice(3)] : [experts];
  return lines.map(some => ({ draw: (x, y) => element("g", {}, ...some.flatMap((e, j) => entry(e, x + 80 * j, y))) }));
}

// Tokens in the colour and shape of the expert that wins; rows as arrows, ±v₁ of each expert as a line.
export function drawRouter({ tokens, principal }, { rows, winner, load }, when, width) {
  const colors = theme(),
    size = Math.min(width, 460),
    reach = 3.6;
  const experts = rows.map((row, i) => ({ i, row, v: principal[i], color: colors.experts[i] }));
  const far = ({ v }) => (1.3 * reach) / Math.hypot(...v);
  const svg = plane(
    size,
    reach,
    colors,
    [
      link(experts, {
        x1: e => -far(e) * e.v[0],
        y1: e => -far(e) * e.v[1],
        x2: e => far(e) * e.v[0],
        y2: e => far(e) * e.v[1],
        stroke: e => e.color,
        strokeDasharray: "5 4",
        strokeWidth: 1.5,
        clip: true,
      }),
      dot(
        tokens.map((token, t) => ({ token, winner: winner[t], t })),
        {
          x: d => d.token[0],
          y: d => d.token[1],
          r: 3.5,
          fill: d => colors.experts[d.winner],
          symbol: d => shapes[d.winner],
          sort: null,
          title: d => `token ${d.t}: expert ${d.winner + 1}`,
          clip: true,
        },
      ),
      arrow(experts, {
        x1: 0,
        y1: 0,
        x2: e => e.row[0],
        y2: e => e.row[1],
        stroke: colors.paper,
        strokeWidth: 6,
        headLength: 6,
      }),
      arrow(experts, {
        x1: 0,
        y1: 0,
        x2: e => e.row[0],
        y2: e => e.row[1],
        stroke: e => e.color,
        strokeWidth: 3,
        headLength: 8,
      }),
      text(experts, {
        x: e => 1.14 * e.row[0],
        y: e => 1.14 * e.row[1],
        text: e => `r${when === "after" ? "′" : ""}${"₁₂₃₄₅₆"[e.i]}`,
        ...named(colors),
      }),
      text(lineNames(experts, reach), {
        x: d => d.at[0],
        y: d => d.at[1],
        text: d => `±v₁ of ${d.e.i + 1}`,
        ...named(colors),
        fill: d => d.e.color,
        fontSize: 13,
      }),
    ],
    { x: "first coordinate of the token", y: "second" },
  );
  svg.dataset.when = when;
  legend(
    svg,
    [
      { text: `row ${when === "after" ? "r′" : "r"} of expert 1, 2, …`, draw: swatch(experts[0].color) },
      { text: "±v₁ of expert 1, 2, …", draw: swatch(experts[0].color, "5 4") },
      { text: "tokens, in the colour and shape of the winner:" },
      ...symbolEntries(experts),
    ],
    { color: colors.ink },
  );
  const counts = load.map((count, i) => `expert ${i + 1} ${count}`).join(", ");
  return image(svg, `${winner.length} tokens by the expert that wins ${when} the step: ${counts}.`);
}
