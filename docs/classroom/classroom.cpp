// The library in the browser: what the classroom page calls, compiled to WebAssembly.
//
// Three hidden dimensions, singular directions along the axes, so that the sphere can be drawn. JavaScript
// reads and writes the arrays below; it does no step itself.
#include <mpi_router/mpi_router.hpp>

#include <array>
#include <cmath>

namespace {

using namespace mpi_router;

constexpr index_t dimension = 3;
std::array<double, dimension> sigma{1, 0.75, 0.4};
std::array<double, dimension> row{};
std::array<double, dimension> scratch{};
std::array<double, 4> report{};  ///< ρ, ‖g‖, angle to v₁ and λ of the row

/// M = diag(σ²), as anyone's own operator.
auto expert() {
  return gram_operator<double>(dimension, [](vector_view<const double> x, vector_view<double> u) {
    double energy = 0;
    for (index_t i = 0; i < dimension; ++i) {
      const double s = sigma[static_cast<std::size_t>(i)];
      u[i] = s * s * x[i];
      energy += x[i] * u[i];
    }
    return energy;
  });
}

}  // namespace

extern "C" {

double* sigma_data() { return sigma.data(); }
double* row_data() { return row.data(); }
double* report_data() { return report.data(); }

/// Fills `report` for the row; returns the status.
int measure() {
  const auto at = rayleigh(expert(), vector_view<const double>(row), vector_view<double>(scratch));
  const std::array<double, dimension> principal{1, 0, 0};
  report = {at.rayleigh, at.residual,
            line_angle<double>(vector_view<const double>(row), vector_view<const double>(principal)),
            alignment_spectral(at.rayleigh, sigma[0])};
  return static_cast<int>(at.state);
}

/// One step with η = t/ρ; t = 1 is MPI, taken as the power step itself. Returns the status.
int step(double t) {
  auto op = expert();
  const double rho = rayleigh(op, vector_view<const double>(row), vector_view<double>(scratch)).rayleigh;
  std::array<double, dimension> next{};
  const auto state =
      t == 1 ? power_step(op, row, next, 1.0).state : steepest_ascent_step(op, row, next, 1.0, t / rho).state;
  row = next;
  return static_cast<int>(state);
}
}
