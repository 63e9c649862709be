// The state of the page is what its form holds, and the link holds all of it.
export const presets = {
  one: {
    name: "One expert",
    set: {},
    see: "One direction v₁ is the strongest. The row climbs to it; in the end θ falls as κ²ᵏ does, and never lies above that line.",
  },
  repeated: {
    name: "Repeated σ₁",
    set: { s2: 1, theta: 60, phi: 45, steps: 12 },
    see:
      "σ₂ = σ₁: every direction of a whole circle is as strong. The row stops on that circle, where it met it; " +
      "θ to one of them means nothing, and the certificate claims nothing.",
  },
  orthogonal: {
    name: "Orthogonal start",
    set: { theta: 90, steps: 12 },
    see: "The row has no part along v₁, and no step gives it one: it ends at v₂.",
  },
  freed: {
    name: "Orthogonal, freed by rounding",
    set: { s2: 0.5, s3: 0.3, theta: 90, phi: 40, frame: "turned", steps: 40 },
    see:
      "The same start in other coordinates, where rounding leaves about 10⁻¹⁷ of v₁ in the row. Each step " +
      "multiplies it by 1/κ² until it is all there is. Which step frees a row is an accident of its last bits: " +
      "the two rules, equal in exact arithmetic, part.",
  },
  long: {
    name: "Too long a step",
    set: { s2: 0.5, s3: 0.3, t: 2.5, eta: "fixed", theta: 40, phi: 30, steps: 60 },
    see:
      "One η for all steps, 2.5/σ₁². The ascent jumps over v₁ and ends in a two-cycle: for ever between the same two " +
      "lines. The power step has no step size to choose.",
  },
  drift: {
    name: "Drift",
    set: { s2: 0.8, theta: 20, phi: 150, drift: 2, steps: 40 },
    see:
      "The weights change: v₁ turns by δ before every step. A row that is written back follows at an angle, " +
      "the floor. Stateless, one step from the stored row, as the paper’s router takes it, falls behind where nothing trains the row.",
  },
};

const parts = ["row", "ellipse", "router", "words"]; // where the page may be open: the field `at`

const form = () => document.getElementById("state");
const fields = () => [...form().elements].filter(field => field.name);
const standard = field => {
  if (field.name === "at") return parts[0]; // to write a hidden field's value is to write its default
  return field.tagName === "SELECT"
    ? [...field.options].find(option => option.defaultSelected).value
    : field.defaultValue;
};

// Sets one field; what it cannot hold becomes what it was made with. A slider keeps to its range by itself.
function put(field, value) {
  if (field.type === "range" && (value === "" || !Number.isFinite(Number(value)))) value = standard(field);
  if (field.name === "at" && !parts.includes(value)) value = standard(field);
  field.value = value;
  if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = standard(field);
}

// Takes the state from a link, or a query; what it does not say is as at first, or as in the preset that it names.
export function restore(text) {
  const wanted = new URLSearchParams(text);
  for (const field of fields()) put(field, standard(field));
  if (Object.hasOwn(presets, wanted.get("preset"))) apply(wanted.get("preset"));
  set(Object.fromEntries(wanted));
}

// σ₂ ≥ σ₃: the one that was moved takes the other along.
export function order(moved = "s2") {
  const { s2, s3 } = form().elements;
  if (Number(s3.value) <= Number(s2.value)) return;
  if (moved === "s2") s3.value = s2.value;
  else s2.value = s3.value;
}

export function read() {
  const state = {};
  for (const field of fields()) state[field.name] = field.type === "range" ? Number(field.value) : field.value;
  return { ...state, fixed: state.eta === "fixed" ? 1 : 0, turned: state.frame === "turned" ? 1 : 0 };
}

export const link = () => "#" + new URLSearchParams(fields().map(field => [field.name, field.value]));

export function set(changes) {
  for (const field of fields()) if (field.name in changes) put(field, String(changes[field.name]));
  order();
}

// What a preset changes; it leaves the camera and the router as they are.
const ofRow = ["s2", "s3", "t", "eta", "theta", "phi", "drift", "frame"];
const rowOf = preset =>
  Object.fromEntries(ofRow.map(name => [name, String(preset.set[name] ?? standard(form().elements[name]))]));

export function apply(key) {
  set({ ...rowOf(presets[key]), steps: presets[key].set.steps ?? 0 });
}

// The preset that the row's settings are those of, or undefined.
export function current() {
  return Object.keys(presets).find(key =>
    Object.entries(rowOf(presets[key])).every(([name, value]) => form().elements[name].value === value),
  );
}
