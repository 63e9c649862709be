// Values of the authors' formula, recorded under PyTorch: one step, twenty steps, and the SVD.
#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/io/safetensors.hpp>
#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/verify/singular.hpp>

#include <doctest/doctest.h>
#include <support/oracle.hpp>

#include <string>

namespace test_recorded {
using namespace mpi_router;
using namespace test_support;

namespace {

template <class T>
void agrees_with(const std::string& name) {
  const safetensors_file file(std::string(MPIROUTER_TEST_DATA "/") + name);
  const auto gate = file.at("w_gate").template load<T>();
  const auto router = file.at("router").template load<T>();
  const auto rows = file.at("rows").template load<T>();
  const auto trajectory = file.at("trajectory").template load<double>();
  const auto sigma = file.at("sigma").template load<double>();
  const auto directions = file.at("right_singular_1").template load<double>();
  const auto shape = file.at("w_gate").shape();
  const expert_shape extents{.num_experts = shape[0], .ffn_dim = shape[1], .hidden_dim = shape[2]};
  const index_t N = extents.num_experts;
  const index_t F = extents.ffn_dim;
  const index_t D = extents.hidden_dim;
  const auto radius = static_cast<T>(std::stod(file.metadata().at("C")));
  const auto experts = experts_nfd(gate.data(), extents);
  const double bound = tolerance<T>.recorded;
  const auto recorded_row = [D](const auto* data, index_t row) {
    return values(std::vector(data + row * D, data + (row + 1) * D));
  };

  for (index_t e = 0; e < N; ++e) {
    const vector_view<const T> stored(router.data() + e * D, D);
    for (const layout stored_as : all_layouts) {
      const stored_matrix<T> a(std::vector<T>(gate.data() + e * F * D, gate.data() + (e + 1) * F * D), F, D,
                               stored_as);
      std::vector<T> out(static_cast<std::size_t>(D));
      CHECK(power_step(gram(a.view()), stored, out, radius).state == status::ok);
      CHECK(relative_distance(values(out), recorded_row(rows.data(), e)) < bound);
    }

    // Twenty stateful steps in double, as they were recorded, whatever the storage.
    const auto op = gram<double>(experts[e]);
    std::vector<double> row(static_cast<std::size_t>(D)), scratch(row.size());
    for (index_t d = 0; d < D; ++d) row[static_cast<std::size_t>(d)] = static_cast<double>(stored[d]);
    for (index_t k = 0; k <= 20; ++k) {
      CHECK(relative_distance(values(row), recorded_row(trajectory.data(), k * N + e)) <
            tolerance<double>.recorded);
      stateful_power_step(op, row, scratch, std::stod(file.metadata().at("C")));
    }

    const singular_spectrum spectrum(experts[e]);
    const index_t count = file.at("sigma").shape()[1];
    for (index_t k = 0; k < count; ++k) {
      CHECK(std::abs(spectrum.sigma()[k] - sigma.data()[e * count + k]) < 1e-12 * spectrum.sigma_1());
    }
    const column recorded = recorded_row(directions.data(), e);
    CHECK(spectrum.angle(view(recorded)) < 1e-10);
  }
}

}  // namespace

TEST_CASE("one step, twenty steps and the SVD agree with the recorded values") {
  agrees_with<double>("official-small-f64.safetensors");
  agrees_with<double>("official-odd-f64.safetensors");
  agrees_with<float>("official-wide-f32.safetensors");
}

}  // namespace test_recorded
