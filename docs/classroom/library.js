// The library in the page: the arrays and functions of row.cpp and router.cpp, by name.
const circlePoints = 97;
const mostSteps = 400;
const mostExperts = 6;

// The fields of `moment` in row.cpp, in their order; the vectors have three numbers.
const scalars = [
  "state",
  "theta",
  "rho",
  "residual",
  "lambda",
  "bound",
  "traceBound",
  "expected",
  "ascentState",
  "ascentTheta",
  "ascentRho",
  "ascentResidual",
  "apart",
  "stateless",
];
const vectors = ["row", "ascent", "principal", "second"];

function momentFrom(numbers) {
  const moment = {};
  scalars.forEach((name, i) => {
    moment[name] = numbers[i];
  });
  vectors.forEach((name, i) => {
    moment[name] = [...numbers.subarray(scalars.length + 3 * i, scalars.length + 3 * i + 3)];
  });
  return moment;
}

const pairs = numbers => Array.from({ length: numbers.length / 2 }, (_, i) => [numbers[2 * i], numbers[2 * i + 1]]);

// `routing` of router.cpp.
function routingFrom(numbers, experts, tokens) {
  let at = 0;
  const take = (count, used = count) => {
    const part = numbers.subarray(at, at + used);
    at += count;
    return part;
  };
  return {
    rows: pairs(take(2 * mostExperts, 2 * experts)),
    logits: [...take(tokens * mostExperts, tokens * experts)],
    winner: [...take(tokens)],
    load: [...take(mostExperts, experts)],
    angle: [...take(mostExperts, experts)],
    maxViolation: take(1)[0],
    agreement: take(1)[0],
  };
}

// Starts the module of these bytes.
export async function start(bytes) {
  const module = await WebAssembly.compile(bytes);
  const imports = {}; // only for printing a usage error, which then stops the program
  for (const { module: from, name } of WebAssembly.Module.imports(module)) (imports[from] ??= {})[name] = () => 0;
  const { exports } = await WebAssembly.instantiate(module, imports);
  exports._initialize();
  const array = (pointer, count) => new Float64Array(exports.memory.buffer, pointer, count);
  const size = exports.moment_size();
  if (size !== scalars.length + 3 * vectors.length) throw new Error(`a moment of ${size} numbers`);

  return {
    // The steps of both rules from the start, and what is ahead of them.
    course({ s2, s3, t, fixed, theta, phi, drift, turned }, steps) {
      array(exports.settings_data(), 8).set([s2, s3, t, fixed, theta, phi, drift, turned]);
      const taken = exports.course(steps);
      const numbers = array(exports.course_data(), size * (mostSteps + 1));
      const moments = Array.from({ length: taken + 1 }, (_, k) =>
        momentFrom(numbers.subarray(k * size, (k + 1) * size)),
      );
      const [powerRate, ascentRate, floor, ending] = array(exports.outlook_data(), 4);
      return { moments, powerRate, ascentRate, floor, ending };
    },
    // What A makes of the circle of v₁ and v₂, and of the row, after step k of the last course.
    mapCircle(k) {
      exports.map_circle(k);
      const numbers = array(exports.ellipse_data(), 4 * circlePoints + 6);
      const points = Array.from({ length: circlePoints }, (_, i) => [...numbers.subarray(4 * i, 4 * i + 4)]);
      return {
        points,
        row: [...numbers.subarray(4 * circlePoints, 4 * circlePoints + 3)],
        image: [...numbers.subarray(4 * circlePoints + 3)],
      };
    },
    // ρ over the half of the sphere that the camera sees, [pixels, pixels], NaN beside it.
    shade(k, camera, pixels) {
      array(exports.camera_data(), 9).set([...camera.right, ...camera.up, ...camera.eye]);
      exports.shade(k, pixels);
      return array(exports.quotients_data(), pixels * pixels);
    },
    // The router of this seed, before and after.
    route(experts, seed, steps) {
      exports.route_tokens(experts, seed, steps);
      const tokens = exports.token_count();
      const routingSize = exports.routing_size();
      const part = i => array(exports.routing_data() + 8 * i * routingSize, routingSize);
      return {
        gates: [...array(exports.gates_data(), 6 * experts)],
        tokens: pairs(array(exports.tokens_data(), 2 * tokens)),
        principal: pairs(array(exports.principal_data(), 2 * experts)),
        before: routingFrom(part(0), experts, tokens),
        after: routingFrom(part(1), experts, tokens),
      };
    },
  };
}
