// One router row and its expert in the browser: what the first part of the classroom page calls, compiled to
// WebAssembly. Two rules start from one row: the power step, and steepest ascent with a step size of one's
// own.
//
// D = 3, so that the sphere can be drawn, and σ₁ = 1. JavaScript writes the settings, calls course() and
// reads the arrays; it computes no number that it shows. Angles in the arrays are degrees.
#include <mpi_router/mpi_router.hpp>
#include <mpi_router/verify/certificate.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <numbers>

namespace {

using namespace mpi_router;
using vector = std::array<double, 3>;
using view = vector_view<const double>;

constexpr double degree = std::numbers::pi / 180;
constexpr int most_steps = 400;
constexpr int circle_points = 97;
constexpr int most_pixels = 256;

struct settings {
  double sigma_2 = 0.75;
  double sigma_3 = 0.4;
  double t = 1;      ///< of the ascent: η = t/ρ, or t/σ₁² where `fixed`
  double fixed = 0;  ///< 1: one η for all steps
  double theta = 83;
  double phi = 69;
  double drift = 0;   ///< by how much v₁ and v₂ turn in their plane before each step
  double turned = 0;  ///< 1: the singular directions do not lie along the axes of the numbers
};

/// Step k of the two rows; JavaScript knows the order of the fields. Vectors are in the coordinates of the
/// singular directions at the start.
struct moment {
  double state, theta, rho, residual, lambda;
  double bound;        ///< θ is at most this, from ρ, ‖g‖ and σ₂²
  double trace_bound;  ///< the same from ρ, ‖g‖ and tr M alone
  double expected;     ///< arctan(κ^{2k} tan θ₀)
  double ascent_state, ascent_theta, ascent_rho, ascent_residual;
  double apart;      ///< between the lines of the two rows
  double stateless;  ///< of one power step from the start
  vector row, ascent, principal, second;
};

struct outlook {
  double power_rate;   ///< by which tan θ shrinks a power step near v₁, κ²
  double ascent_rate;  ///< the same of the ascent, max |1 − t(1 − σᵢ²/σ₁²)|
  double floor;        ///< degrees by which a row that is written back stays behind v₁; NaN: it cannot follow
  double ending;       ///< 0: goes on, 1: a row has no step, 2: both rows stay, 3: the ascent has two ends
};

struct ellipse {
  std::array<std::array<double, 4>, circle_points> points;  ///< x along v₁ and v₂, and A x
  vector row, image;                                        ///< r̂ along v₁, v₂, v₃, and A r̂
};

settings chosen;
std::array<moment, most_steps + 1> moments;
outlook ahead;
ellipse shape;
std::array<vector, 3> camera;  ///< right, up, towards the eye
std::array<double, most_pixels * most_pixels> quotients;

double dot(const vector& x, const vector& y) { return x[0] * y[0] + x[1] * y[1] + x[2] * y[2]; }
vector combine(const vector& c, const std::array<vector, 3>& v) {
  vector sum{};
  for (std::size_t j = 0; j < 3; ++j) sum[j] = c[0] * v[0][j] + c[1] * v[1][j] + c[2] * v[2][j];
  return sum;
}

/// Cosine and sine, exact at right angles: 90° is orthogonal.
std::array<double, 2> circle(double degrees) {
  constexpr std::array<std::array<double, 2>, 4> right{{{1, 0}, {0, 1}, {-1, 0}, {0, -1}}};
  if (std::fmod(degrees, 90) == 0) return right[static_cast<std::size_t>(std::fmod(degrees / 90 + 400, 4))];
  return {std::cos(degrees * degree), std::sin(degrees * degree)};
}

/// v₁, v₂, v₃ at the start.
std::array<vector, 3> first_directions() {
  if (chosen.turned == 0) return {{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};
  const auto [a, b] = circle(25);
  const auto [c, d] = circle(40);
  return {{{a * c, b * c, d}, {-b, a, 0}, {-a * d, -b * d, c}}};
}

/// The expert at time k: A = diag(σ)Vᵀ, of which M = AᵀA is never formed.
struct expert {
  explicit expert(int k) : sigma{1, chosen.sigma_2, chosen.sigma_3}, v(first_directions()) {
    if (chosen.drift != 0) {
      const auto [c, s] = circle(chosen.drift * k);
      const auto v1 = combine({c, s, 0}, v);
      const auto v2 = combine({-s, c, 0}, v);
      v[0] = v1;
      v[1] = v2;
    }
    for (std::size_t f = 0; f < 3; ++f)
      for (std::size_t d = 0; d < 3; ++d) a[3 * f + d] = sigma[f] * v[f][d];
  }
  [[nodiscard]] auto gram() const { return mpi_router::gram(gate_fd(a.data(), 3, 3)); }
  [[nodiscard]] double angle(const vector& r) const { return line_angle<double>(view(r), v[0]) / degree; }
  [[nodiscard]] double trace() const { return dot(sigma, sigma); }

  vector sigma;
  std::array<vector, 3> v;
  std::array<double, 9> a{};
};

vector start() {
  const auto [c, s] = circle(chosen.theta);
  const auto [cos_phi, sin_phi] = circle(chosen.phi);
  return combine({c, s * cos_phi, s * sin_phi}, first_directions());
}

rayleigh_result<double> rayleigh_of(const expert& now, const vector& row) {
  vector scratch;
  return rayleigh(now.gram(), view(row), vector_view<double>(scratch));
}

status power(const expert& now, vector& row) {
  vector scratch;
  return stateful_power_step(now.gram(), vector_view<double>(row), vector_view<double>(scratch), 1.0).state;
}
status ascend(const expert& now, vector& row) {
  const double eta = chosen.fixed != 0 ? chosen.t : chosen.t / rayleigh_of(now, row).rayleigh;
  if (!is_finite(eta)) return status::zero_image;
  vector next;
  const auto state = steepest_ascent_step(now.gram(), row, next, 1.0, eta).state;
  row = next;
  return state;
}

/// What the two rows are at time k.
moment measure(const expert& now, const vector& row, const vector& ascent, int k) {
  const auto at = rayleigh_of(now, row);
  const auto other = rayleigh_of(now, ascent);
  // Twice what rounding can do to ρ and ‖g‖ in sums of three products.
  const double slack = 30 * std::numeric_limits<double>::epsilon() * now.trace();
  const double kappa_squared = now.sigma[1] * now.sigma[1];
  const second_eigenvalue_bound known{kappa_squared, certainty::rigorous, 0};
  vector once = start();
  power(now, once);
  const auto base = first_directions();
  const auto shown = [&base](const vector& x) {
    return vector{dot(x, base[0]), dot(x, base[1]), dot(x, base[2])};
  };
  return {static_cast<double>(at.state),
          now.angle(row),
          at.rayleigh,
          at.residual,
          alignment_spectral(at.rayleigh, 1.0),
          certify(at, known, slack).angle_bound / degree,
          certify(at, trace_bound(now.trace(), at.rayleigh), slack).angle_bound / degree,
          chosen.theta == 90
              ? 90
              : std::atan(std::pow(kappa_squared, k) * std::tan(chosen.theta * degree)) / degree,
          static_cast<double>(other.state),
          now.angle(ascent),
          other.rayleigh,
          other.residual,
          line_angle<double>(view(row), ascent) / degree,
          now.angle(once),
          shown(row),
          shown(ascent),
          shown(now.v[0]),
          shown(now.v[1])};
}

double away(const vector& x, const vector& y) { return line_angle<double>(view(x), y); }

/// Whether a row stays: bit by bit where it was, or on v₁ up to rounding. Near another direction it may
/// seem to stay, and leave.
bool stays(const vector& now, const vector& before, double theta) {
  return now == before || theta * degree < 1e-15;
}

/// The smaller root e of tan e = κ² tan(e + δ): a step takes a row that is e behind v₁ there again. For a
/// small δ about κ²δ/(1 − κ²); none, hence NaN, where tan δ > (1 − κ²)/(2κ).
double drift_floor(double kappa_squared) {
  const double fall = 1 - kappa_squared;
  const double turn = std::tan(chosen.drift * degree);
  const double root = fall * fall - 4 * kappa_squared * turn * turn;
  if (fall <= 0 || root < 0) return std::numeric_limits<double>::quiet_NaN();
  return std::atan(2 * kappa_squared * turn / (fall + std::sqrt(root))) / degree;
}

/// Why there is nothing more to see after step k, if so.
double ending(int k) {
  const moment& now = moments[static_cast<std::size_t>(k)];
  if (now.state != 0 || now.ascent_state != 0) return 1;
  if (chosen.drift != 0 || k < 2) return 0;
  const moment& before = moments[static_cast<std::size_t>(k - 1)];
  if (!stays(now.row, before.row, now.theta)) return 0;
  if (stays(now.ascent, before.ascent, now.ascent_theta)) return 2;
  const moment& earlier = moments[static_cast<std::size_t>(k - 2)];
  return away(now.ascent, earlier.ascent) < 1e-12 && away(now.ascent, before.ascent) > 1e-6 ? 3 : 0;
}

}  // namespace

extern "C" {

double* settings_data() { return &chosen.sigma_2; }
double* course_data() { return &moments[0].state; }
double* outlook_data() { return &ahead.power_rate; }
double* ellipse_data() { return shape.points[0].data(); }
double* camera_data() { return camera[0].data(); }
double* quotients_data() { return quotients.data(); }
int moment_size() { return sizeof(moment) / sizeof(double); }

/// Fills `moments` and `ahead` from the settings; returns how many steps were taken: fewer than `steps` where
/// a row has no step.
int course(int steps) {
  const expert first(0);
  const double kappa_squared = first.sigma[1] * first.sigma[1];
  ahead.power_rate = kappa_squared;
  ahead.ascent_rate = 0;
  for (std::size_t i = 1; i < 3; ++i) {
    const double fall = 1 - first.sigma[i] * first.sigma[i];
    ahead.ascent_rate = std::max(ahead.ascent_rate, std::abs(1 - chosen.t * fall));
  }
  ahead.floor = drift_floor(kappa_squared);

  vector row = start();
  vector ascent = row;
  moments[0] = measure(first, row, ascent, 0);
  int k = 0;
  while (k < std::min(steps, most_steps) && ending(k) != 1) {
    const expert now(++k);
    power(now, row);
    ascend(now, ascent);
    moments[static_cast<std::size_t>(k)] = measure(now, row, ascent, k);
  }
  ahead.ending = ending(k);
  return k;
}

/// Fills `shape`: the circle of v₁ and v₂ and the row after step k, and what A makes of them.
void map_circle(int k) {
  const expert now(k);
  auto op = now.gram();
  const auto image = [&op](const vector& x) {
    vector y;
    op.project(view(x), vector_view<double>(y));
    return y;
  };
  for (int i = 0; i < circle_points; ++i) {
    const auto [c, s] = circle(360.0 * i / (circle_points - 1));
    const auto y = image(combine({c, s, 0}, now.v));
    shape.points[static_cast<std::size_t>(i)] = {c, s, y[0], y[1]};
  }
  const auto row = combine(moments[static_cast<std::size_t>(k)].row, first_directions());
  shape.row = {dot(row, now.v[0]), dot(row, now.v[1]), dot(row, now.v[2])};
  shape.image = image(row);
}

/// Fills `quotients`, [pixels, pixels], with ρ of the half of the sphere that faces the eye, after step k;
/// NaN beside it.
void shade(int k, int pixels) {
  const expert now(k);
  const auto base = first_directions();
  const double half = (pixels - 1) / 2.0;
  for (int y = 0; y < pixels; ++y) {
    for (int x = 0; x < pixels; ++x) {
      const double a = (x - half) / half;
      const double b = (half - y) / half;
      double& rho = quotients[static_cast<std::size_t>(y * pixels + x)];
      const double rest = 1 - a * a - b * b;
      rho = std::numeric_limits<double>::quiet_NaN();
      if (rest >= 0) rho = rayleigh_of(now, combine(combine({a, b, std::sqrt(rest)}, camera), base)).rayleigh;
    }
  }
}
}
