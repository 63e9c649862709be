// Compiled for the least instruction set: hands every plain type to the other object and back.
#include "exchange.hpp"

#include <array>
#include <cmath>
#include <cstdio>

namespace {

bool every_type_comes_back() {
  std::array<mpi_router::index_t, 3> total{1, 2, 3};
  std::array<float, 4> memory{};
  const auto weights = mpi_router::row_major(memory.data(), 2, 2);
  const mpi_router::router_factors<float> factors(memory, {1, 1, 1}, {});
  const mpi_router::certificate proof{mpi_router::certainty::rigorous, 1, 0, 2, 3, 0.5};
  return pass_on(mpi_router::load_tracker(total)).total().data() == total.data() &&
         pass_on(factors).elements().data() == memory.data() && pass_on(factors).terms() == 1 &&
         pass_on(mpi_router::momentum<float>::fixed(0.25F)).beta == 0.25F &&
         pass_on(mpi_router::router_radius::scale_free(3, 9)).of(4) == 1 &&
         pass_on(mpi_router::gate_output<float>{weights, {}}).weights.data() == memory.data() &&
         pass_on(proof).label == proof.label && pass_on(proof).angle_bound == proof.angle_bound;
}

/// A = diag(2, 1): from (1, 1), rM = (4, 1) and ρ = 5/2. C = 6 / √4.
bool a_step_is_the_same_there() {
  const std::array<float, 4> a{2, 0, 0, 1};
  const std::array<float, 2> row{1, 1};
  std::array<float, 2> out{};
  const auto step =
      step_elsewhere(mpi_router::gate_fd(a.data(), 2, 2), row, out, mpi_router::router_radius::scale_free(6));
  return step.state == mpi_router::status::ok && std::abs(step.rayleigh - 2.5F) < 1e-6F &&
         std::abs(std::hypot(out[0], out[1]) - 3) < 1e-6F;
}

/// A tracker is filled here and there: MaxVio 1/3 and 1.
bool a_tracker_goes_on_there() {
  std::array<mpi_router::index_t, 2> total{};
  mpi_router::load_tracker tracker(total);
  tracker.add(std::array<mpi_router::index_t, 2>{2, 1});
  track_elsewhere(tracker, std::array<mpi_router::index_t, 2>{4, 0});
  return tracker.total()[0] == 6 && tracker.batch_violation().count == 2 &&
         std::abs(tracker.batch_violation().mean - 2.0 / 3) < 1e-12;
}

}  // namespace

int main() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    std::puts("linked; this processor cannot run it");
    return 0;
  }
  const bool good = every_type_comes_back() && a_step_is_the_same_there() && a_tracker_goes_on_there();
  std::puts(good ? "good" : "WRONG");
  return good ? 0 : 1;
}
