// The parts of the page that show a state: figures, tables, words, and the values beside the sliders.
import { current, presets } from "./state.js";
import { drawCourse, drawEllipse, drawRouter } from "./charts.js";
import { outlook } from "./words.js";
import { short } from "./theme.js";

const $ = id => document.getElementById(id);
const shown = 12; // lines of the table
export const show = (id, svg) => $(id).replaceChildren(svg);
const widthOf = id => Math.max(260, Math.min($(id).clientWidth, 640));

function table(course) {
  const last = course.moments.length - 1,
    newest = course.moments.map((_, k) => k).reverse();
  const lines = last < shown ? newest : [...newest.slice(0, shown - 1), 0];
  $("log").replaceChildren();
  for (const k of lines) {
    const { theta, bound, rho, residual, lambda, ascentTheta } = course.moments[k],
      line = $("log").insertRow();
    if (k === 0 && last >= shown) line.className = "after-some";
    for (const text of [
      k,
      short(theta),
      short(bound),
      rho.toFixed(4),
      short(residual),
      lambda.toFixed(4),
      short(ascentTheta),
    ])
      line.insertCell().textContent = text;
  }
}

// A text in which the words that are defined below are links, each the first time.
const defined = {
  certificate: /certificate/i,
  cycle: /two-cycle/,
  exact: /exact arithmetic/,
  floor: /floor/,
  maxvio: /MaxVio/,
  rounding: /rounding/,
  stateless: /stateless/i,
  t: /Oja’s rule/,
  trace: /tr M/,
};
function linked(text, left = Object.entries(defined)) {
  const found = left
    .map(([word, pattern]) => ({ word, at: text.search(pattern), of: text.match(pattern)?.[0] }))
    .filter(({ at }) => at >= 0)
    .sort((a, b) => a.at - b.at)[0];
  if (!found) return [text];
  const link = document.createElement("a");
  Object.assign(link, { href: "#word-" + found.word, textContent: found.of });
  link.dataset.word = found.word;
  const rest = left.filter(([word]) => word !== found.word);
  return [text.slice(0, found.at), link, ...linked(text.slice(found.at + found.of.length), rest)];
}

export function drawRow(library, state) {
  const course = library.course(state, state.steps);
  const last = course.moments.length - 1,
    shape = library.mapCircle(last);
  show("course", drawCourse(course, state, widthOf("course")));
  show("ellipse", drawEllipse(shape, course.moments[last], state, widthOf("ellipse")));
  $("stretch").textContent = `The row now: ‖A r̂‖ = √ρ = ${short(course.moments[last].lambda)} σ₁.`;
  table(course);
  const paragraphs = outlook(state, course, presets[current()]);
  $("words").replaceChildren(
    ...paragraphs.map(text => {
      const p = document.createElement("p");
      p.append(...linked(text));
      return p;
    }),
  );
  return course;
}

export function drawRouting(library, state) {
  const routed = library.route(state.experts, state.seed, state.msteps);
  show("before", drawRouter(routed, routed.before, "before", widthOf("before")));
  show("after", drawRouter(routed, routed.after, "after", widthOf("after")));
  $("h-after").textContent = state.msteps === 1 ? "After one power step (MPI)" : `After ${state.msteps} power steps`;
  $("loads").replaceChildren();
  routed.before.load.forEach((load, i) => {
    const line = $("loads").insertRow();
    for (const text of [i + 1, load, routed.after.load[i], short(routed.before.angle[i]), short(routed.after.angle[i])])
      line.insertCell().textContent = text;
  });
  const percent = x => (100 * x).toFixed(0) + " %";
  const words =
    `MaxVio ${routed.before.maxViolation.toFixed(2)} before, ${routed.after.maxViolation.toFixed(2)} after. ` +
    `Tokens that go to the expert with the largest ‖A x‖ for them: ${percent(routed.before.agreement)} before, ` +
    `${percent(routed.after.agreement)} after. A row tells v₁ from −v₁, which ‖A x‖ does not.`;
  $("routed").replaceChildren(...linked(words));
  return routed;
}

export function label(state) {
  const gap = `, gap ${(1 - state.s2).toFixed(2)}`;
  for (const input of document.querySelectorAll("input[type=range]")) {
    const { unit = "", spoken: inWords = unit } = input.dataset,
      more = input.id === "s2" ? gap : "";
    document.querySelector(`[data-of=${input.id}]`).textContent = input.value + (unit === "°" ? unit : "") + more;
    input.setAttribute("aria-valuetext", input.value + inWords + more);
  }
  const chosen = current();
  for (const button of $("presets").children) button.setAttribute("aria-pressed", button.dataset.preset === chosen);
}
