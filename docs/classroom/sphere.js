// The sphere of directions, seen from a side: ρ as shades, the paths of the two rules, lines for what has no sign.
import { element, legend, light, short, swatch, theme } from "./theme.js";

const size = 400,
  centre = 200,
  radius = 160,
  pixels = 240,
  plate = "#f4f2ea";

// Right, up and towards the eye, in the coordinates of v₁ (up), v₂, v₃.
export function cameraOf({ turn, tilt }) {
  const [a, b] = [turn, tilt].map(degrees => (degrees * Math.PI) / 180);
  const [c, s, C, S] = [Math.cos(a), Math.sin(a), Math.cos(b), Math.sin(b)];
  return { right: [0, -s, c], up: [C, -S * c, -S * s], eye: [S, C * c, C * s] };
}

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const place = (p, camera) => ({
  x: centre + radius * dot(p, camera.right),
  y: centre - radius * dot(p, camera.up),
  front: dot(p, camera.eye) >= 0,
});
const minus = p => p.map(x => -x);

// The shades, as a picture in the figure; made anew only where it would differ.
let shaded = { key: "", url: "" };
function shades(library, k, camera, key) {
  if (shaded.key === key) return shaded.url;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = pixels;
  const pen = canvas.getContext("2d"),
    image = pen.createImageData(pixels, pixels);
  library.shade(k, camera, pixels).forEach((rho, i) => {
    if (Number.isNaN(rho)) return;
    const band = Math.floor(rho * 12) / 12;
    image.data.set([251 - 80 * band, 248 - 55 * band, 238 - 18 * band, 255], 4 * i);
  });
  pen.putImageData(image, 0, 0);
  shaded = { key, url: canvas.toDataURL() };
  return shaded.url;
}

// The great circle from one row to the next, in pieces before and behind.
function arcs(from, to, camera) {
  const pieces = [];
  for (let i = 0; i <= 24; ++i) {
    const m = from.map((v, j) => v + ((to[j] - v) * i) / 24),
      length = Math.hypot(...m) || 1;
    const { x, y, front } = place(
      m.map(v => v / length),
      camera,
    );
    const last = pieces.at(-1),
      point = `${x.toFixed(1)},${y.toFixed(1)}`;
    if (last?.front === front) last.points.push(point);
    else pieces.push({ front, points: last ? [last.points.at(-1), point] : [point] });
  }
  return pieces;
}

// What lies behind the sphere's middle is thin and dotted, its marks are hollow: paler colours would be hard to see.
const behind = { "stroke-dasharray": "2 4", "stroke-width": 1.5 };

function path(rows, camera, { color, dash, mark }) {
  const group = element("g", { stroke: color, fill: color, "stroke-width": 2.5, "stroke-linejoin": "round" });
  rows.slice(1).forEach((row, i) => {
    for (const { front, points } of arcs(rows[i], row, camera))
      group.append(
        element("polyline", {
          points: points.join(" "),
          fill: "none",
          ...(front ? dash && { "stroke-dasharray": dash } : behind),
        }),
      );
  });
  rows.forEach((row, i) => {
    const { x, y, front } = place(row, camera);
    const at = mark(x, y, i === rows.length - 1 ? 6.5 : 3.5);
    for (const [name, value] of Object.entries(front ? { stroke: "none" } : { fill: "none", "stroke-width": 1.5 }))
      at.setAttribute(name, value);
    group.append(at);
  });
  return group;
}
const disc = (x, y, r) => element("circle", { cx: x, cy: y, r });
const square = (x, y, r) => element("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r });

// A direction without a sign: the line through the centre, solid before the sphere's middle, dashed behind.
function line(p, camera, { color, width, reach }) {
  const ends = [p, minus(p)].map(q => ({
    ...place(
      q.map(v => v * reach),
      camera,
    ),
    front: dot(q, camera.eye) >= 0,
  }));
  return element(
    "g",
    { stroke: color, "stroke-width": width },
    ...ends.map(({ x, y, front }) =>
      element("line", {
        x1: centre,
        y1: centre,
        x2: x,
        y2: y,
        ...(!front && { "stroke-dasharray": "4 4" }),
      }),
    ),
  );
}

function names(moment, camera) {
  const third = [
    moment.principal[1] * moment.second[2] - moment.principal[2] * moment.second[1],
    moment.principal[2] * moment.second[0] - moment.principal[0] * moment.second[2],
    moment.principal[0] * moment.second[1] - moment.principal[1] * moment.second[0],
  ];
  return [
    ["v₁", moment.principal],
    ["v₂", moment.second],
    ["v₃", third],
  ]
    .flatMap(([name, p]) =>
      [
        [name, p],
        ["−" + name, minus(p)],
      ].map(([text, q]) => {
        const { x, y } = place(
          q.map(v => v * 1.16),
          camera,
        );
        const inside = Math.hypot(x - centre, y - centre) < radius;
        return inside && dot(q, camera.eye) < 0
          ? null
          : element(
              "text",
              {
                x,
                y,
                dy: "0.35em",
                "text-anchor": "middle",
                "font-size": 18,
                "font-weight": 600,
                // A halo, for a name may lie across the edge of the sphere, on dark paper too.
                fill: light.ink,
                stroke: plate,
                "stroke-width": 4,
                "stroke-linejoin": "round",
                "paint-order": "stroke",
              },
              text,
            );
      }),
    )
    .filter(Boolean);
}

export function drawSphere(library, state, course) {
  const camera = cameraOf(state),
    colors = theme(),
    k = course.moments.length - 1,
    now = course.moments[k];
  const key = JSON.stringify([
    state.s2,
    state.s3,
    state.turn,
    state.tilt,
    state.frame,
    state.drift,
    state.drift ? k : 0,
  ]);
  const svg = element("svg", {
    viewBox: `0 0 ${size} ${size}`,
    role: "img",
    "font-family": "system-ui, sans-serif",
    "aria-label":
      `The sphere of directions after ${k} steps, shaded by the Rayleigh quotient. Power step: ` +
      `${short(now.theta)} degrees from v₁. Ascent: ${short(now.ascentTheta)} degrees.`,
  });
  svg.append(
    element("image", {
      x: centre - radius,
      y: centre - radius,
      width: 2 * radius,
      height: 2 * radius,
      href: shades(library, k, camera, key),
    }),
    element("circle", { cx: centre, cy: centre, r: radius, fill: "none", stroke: light.soft, "stroke-width": 2 }),
    line(now.second, camera, { color: light.soft, width: 1, reach: 1.08 }),
    line(now.principal, camera, { color: light.ink, width: 2.5, reach: 1.1 }),
    line(now.ascent, camera, { color: light.ascent, width: 1, reach: 1 }),
    line(now.row, camera, { color: light.power, width: 1, reach: 1 }),
    path(
      course.moments.map(moment => moment.ascent),
      camera,
      { color: light.ascent, dash: "6 4", mark: square },
    ),
    path(
      course.moments.map(moment => moment.row),
      camera,
      { color: light.power, mark: disc },
    ),
    ...names(now, camera),
  );
  legend(
    svg,
    [
      { text: "power step (MPI)", draw: swatch(light.power) },
      { text: `ascent, η = ${state.t}/${state.fixed ? "σ₁²" : "ρ"}`, draw: swatch(light.ascent, "6 4") },
    ],
    { color: light.ink, below: true, size: 16 },
  );
  if (colors !== light) {
    // The shades are light, and so are what lies under the lines that leave the sphere, and the legend.
    const [x, y, width, height] = svg.getAttribute("viewBox").split(" ");
    svg.prepend(element("rect", { x, y, width, height, rx: 8, fill: plate }));
  }
  return svg;
}
