// What the page says of a state.
import { short } from "./theme.js";

const states = [
  "ok",
  "the row is zero",
  "the row is orthogonal to all that the expert sees: it has no image",
  "a number is not finite",
];

// Why there is nothing more to see, or nothing.
export function ending(course, steps) {
  if (course.ending === 1) {
    const { state, ascentState } = course.moments.at(-1);
    return "no step: " + states[state || ascentState];
  }
  if (course.ending === 2) return "only rounding is left";
  if (course.ending === 3) return "the ascent is in a two-cycle, and on the power step only rounding is left";
  return steps >= 200 ? "200 steps are enough" : "";
}

function powerWords(state, course) {
  if (state.s2 === 1) return "σ₂ = σ₁: there is no one direction to find.";
  // A drift turns v₁ within its plane with v₂: only a row along v₃ stays orthogonal.
  const stays = !state.drift || state.phi % 180 === 90;
  if (state.theta === 90 && !state.turned && stays)
    return "The row is orthogonal to v₁ and so is its image: no step leaves that plane.";
  if (state.drift)
    return Number.isFinite(course.floor)
      ? `Written back, the row follows v₁; once the start is forgotten it is ${short(course.floor)}° behind, the floor.`
      : "v₁ turns faster than a row can follow: tan δ > (1 − κ²)/(2κ).";
  if (state.theta === 0) return "The row is v₁, and stays.";
  return `Power step: in the end it multiplies tan θ by κ² = ${course.powerRate.toFixed(3)}, where the row has a part along v₂.`;
}

function ascentWords(state, course) {
  const { apart } = course.moments.at(-1);
  if (state.t === 1 && !state.fixed)
    return `Ascent with η = 1/ρ: the same step. The two rows are ${short(apart)}° apart.`;
  const kind = state.t < 0.2 ? "Ascent, nearly Oja’s rule: " : "Ascent: ";
  if (state.s2 === 1 || state.drift) return `${kind}its row is ${short(apart)}° from that of the power step.`;
  const rate = course.ascentRate.toFixed(3);
  if (course.ascentRate > 1 + 1e-12)
    return (
      `${kind}too long a step (|1 − t(1 − σᵢ²/σ₁²)| is ${rate} for one i): v₁ repels all rows but ` +
      "those without a part along such a vᵢ."
    );
  return `${kind}near v₁ it multiplies tan θ by at most ${rate}.`;
}

function certificateWords({ bound, traceBound }) {
  if (bound >= 90) return "Certificate: it claims nothing yet.";
  const without = traceBound < 90 ? `at most ${short(traceBound)}°` : "no claim";
  return `Certificate: θ of the power step is at most ${short(bound)}°; without knowing σ₂, from tr M, ${without}.`;
}

// The paragraphs beside the figures.
export function outlook(state, course, preset) {
  const over = ending(course, state.steps),
    now = course.moments.at(-1);
  return [
    preset ? preset.see : "",
    `${powerWords(state, course)} ${ascentWords(state, course)}`,
    certificateWords(now) + (over ? ` Ended: ${over}.` : ""),
  ].filter(Boolean);
}

// The same for a screen reader, shorter: where the rows are.
export function spoken(state, course) {
  const now = course.moments.at(-1),
    over = ending(course, state.steps);
  return (
    `Step ${course.moments.length - 1}. Power step ${short(now.theta)} degrees from v1, ` +
    (now.bound < 90 ? `proven ${short(now.bound)} at most. ` : "nothing proven. ") +
    `Ascent ${short(now.ascentTheta)} degrees.` +
    (over ? ` Ended: ${over}.` : "")
  );
}
