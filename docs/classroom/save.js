// The buttons that save: what each file is called, and says of itself.
import { link, read } from "./state.js";
import { saveCsv, savePng, saveSvg } from "./export.js";

function parameters(state, course) {
  return (
    `σ = 1, ${state.s2}, ${state.s3}; start ${state.theta}° from v₁, ${state.phi}° around it; ascent with η = ${state.t}/` +
    `${state.fixed ? "σ₁²" : "ρ"}; drift ${state.drift}° a step; ${course.moments.length - 1} steps. ${link()}`
  );
}
const titles = {
  sphere: "Two rules on the sphere of directions",
  course: "The angle to v₁ over the steps",
  ellipse: "What A does to the unit circle",
  before: "Tokens by expert, before the power step",
  after: "Tokens by expert, after the power step",
};
function saveNumbers(figure, name, course, routed) {
  if (figure === "router") {
    return saveCsv(
      name,
      ["token", "x1", "x2", "expert_before", "expert_after"],
      routed.tokens.map((token, t) => [t, ...token, routed.before.winner[t] + 1, routed.after.winner[t] + 1]),
    );
  }
  saveCsv(
    name,
    [
      "step",
      "theta_deg",
      "theta_bound_deg",
      "theta_bound_by_trace_deg",
      "kappa_line_deg",
      "rho",
      "residual",
      "lambda",
      "ascent_theta_deg",
      "ascent_rho",
      "apart_deg",
      "stateless_theta_deg",
      "row_v1",
      "row_v2",
      "row_v3",
      "ascent_v1",
      "ascent_v2",
      "ascent_v3",
    ],
    course.moments.map((m, k) => [
      k,
      m.theta,
      m.bound,
      m.traceBound,
      m.expected,
      m.rho,
      m.residual,
      m.lambda,
      m.ascentTheta,
      m.ascentRho,
      m.apart,
      m.stateless,
      ...m.row,
      ...m.ascent,
    ]),
  );
}
// Hands a figure or its numbers to the browser to save; resolves to the name of the file.
export async function save({ save: kind, figure }, course, routed) {
  const name = "mpi-" + figure;
  const state = read();
  if (kind === "csv") {
    saveNumbers(figure, name, course, routed);
  } else {
    const of =
      figure === "before" || figure === "after"
        ? `${state.experts} experts, seed ${state.seed}, ${state.msteps} power steps. ${link()}`
        : parameters(state, course);
    const write = kind === "svg" ? saveSvg : savePng;
    await write(name, document.querySelector(`#${figure} svg`), titles[figure], of);
  }
  return `${name}.${kind}`;
}
