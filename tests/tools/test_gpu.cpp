// --gpu where there is no GPU; and the operator that it multiplies with, over a stand-in for one.
#include "host_gpu.hpp"
#include "program.hpp"

#include <doctest/doctest.h>
#include <gpu_operator.hpp>
#include <mpi_router/verify/expert_direction.hpp>

#include <cmath>
#include <limits>
#include <random>

namespace test_gpu {
using namespace tool_test;
using namespace mpi_router;

namespace {

constexpr index_t few_neurons = 520;  // too many for the rigorous bound
constexpr index_t few_hidden = 533;

std::vector<float> random_gate(std::uint64_t seed, double decay) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<float> out;
  for (index_t f = 0; f < few_neurons; ++f) {
    for (index_t d = 0; d < few_hidden; ++d) {
      out.push_back(static_cast<float>(std::pow(static_cast<double>(f + 1), -decay) * normal(random)));
    }
  }
  return out;
}

Eigen::VectorXd random_row(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  return detail::gaussian<double>(few_hidden, random).normalized();
}

/// Both searches in double: on the stand-in, and on the host.
struct both {
  expert_direction device;
  expert_direction host;
};
template <class T>
both find(const matrix_view<const T>& a, std::uint64_t seed) {
  const auto row = random_row(seed);
  const auto start = view(row);
  verify::gpu gpu(0);
  verify::gpu_operator op(gpu, a);
  auto on_host = gram_in_double(a);
  return {find_expert_direction(op, start), find_expert_direction(on_host, start)};
}

void check_alike(const both& found) {
  const auto& [device, host] = found;
  CHECK(device.found.at.state == host.found.at.state);
  CHECK(device.found.proof.label == host.found.proof.label);
  REQUIRE(device.v.size() == host.v.size());
  if (host.v.size() == 0) {
    return;
  }
  CHECK(device.sigma_1() == doctest::Approx(host.sigma_1()).epsilon(1e-12));
  CHECK(device.sigma_2() == doctest::Approx(host.sigma_2()).epsilon(1e-6));
  CHECK(device.forecast.converged() == host.forecast.converged());
  CHECK(device.forecast.steps == host.forecast.steps);
  CHECK(device.uncertainty <= 2 * host.uncertainty + 1e-12);
  CHECK(line_angle<double>(view(device.v), view(host.v)) <= 1e-8);
}

}  // namespace

TEST_CASE("--gpu says what is missing") {
  const auto result = run({data_file("tiny-mpi.safetensors"), "--gpu"});
  if (result.status == 0) {
    CHECK(contains(result.err, "--gpu: all experts are done on the host, for none has min(F, D) above 512"));
    return;  // there is one
  }
  const bool is_built = !contains(result.err, "built without CUDA");
  check_refused({data_file("tiny-mpi.safetensors"), "--gpu"},
                is_built
                    ? "--gpu: there is no CUDA device"
                    : "--gpu: this program was built without CUDA (CMake option MPIROUTER_CUDA, with nvcc)");
}

TEST_CASE("--gpu decomposes nothing, and belongs to the verification itself") {
  check_refused({data_file("tiny-mpi.safetensors"), "--gpu", "--svd"}, "--gpu excludes --svd");
  check_refused({"--gpu", "compare", data_file("tiny-mpi.safetensors"), data_file("tiny-mpi.safetensors")},
                "--gpu before compare is not heeded");
}

TEST_CASE("the search with vectors on a device finds what that on the host finds") {
  for (const double decay : {0.0, 0.25}) {
    const auto a = random_gate(3, decay);
    check_alike(find(gate_fd(a.data(), few_neurons, few_hidden), 5));
    check_alike(find(gate_df(a.data(), few_hidden, few_neurons), 6));
  }
  CHECK(host_gpu::spaces == 0);
}

TEST_CASE("the search on a device in every storage type and with any strides") {
  const auto check = [&]<class T>(T) {
    std::vector<T> a;
    for (const float x : random_gate(8, 0.25)) {
      a.push_back(narrow<T>(static_cast<accumulator_t<T>>(x)));
    }
    check_alike(find(gate_fd(std::as_const(a).data(), few_neurons, few_hidden), 9));
  };
  check(bf16{});
  check(f16{});
  check(double{});
  const auto a = random_gate(8, 0.25);
  const index_t last = few_neurons * few_hidden - 1;  // from the last to the first
  check_alike(find(matrix_view<const float>(a.data() + last, few_neurons, few_hidden, -few_hidden, -1), 9));
  check_alike(find(matrix_view<const float>(a.data(), few_neurons / 2, few_hidden, 2 * few_hidden, 1), 9));
}

TEST_CASE("experts without a direction, or with too many") {
  std::vector<float> a(few_neurons * few_hidden);
  SUBCASE("zero") {}
  SUBCASE("not finite") {
    a = random_gate(1, 0);
    a[777] = std::numeric_limits<float>::quiet_NaN();
  }
  SUBCASE("of rank one") {
    for (std::size_t i = 0; i < a.size(); ++i) {
      a[i] = static_cast<float>(i % few_hidden % 7) - 3;
    }
  }
  SUBCASE("of equal singular values") {
    for (index_t f = 0; f < few_neurons; ++f) {
      a[static_cast<std::size_t>(f * few_hidden + f)] = 1;
    }
  }
  const both found = find(gate_fd(std::as_const(a).data(), few_neurons, few_hidden), 2);
  CHECK(found.device.found.at.state == found.host.found.at.state);
  CHECK(found.device.found.proof.label == found.host.found.proof.label);
  CHECK(host_gpu::spaces == 0);
}

TEST_CASE("several steps are taken at once, and none twice") {
  const auto a = random_gate(3, 0.25);
  verify::gpu gpu(0);
  verify::gpu_operator op(gpu, gate_fd(a.data(), few_neurons, few_hidden));
  auto krylov = krylov_space(op, 30);
  auto on_host = gram_in_double(gate_fd(a.data(), few_neurons, few_hidden));
  auto other = krylov_space(on_host, 30);
  std::uint64_t seed = 2;
  const auto begin = [&seed](auto& space) {
    space.deflate(random_row(1));
    return space.start(random_row(seed));
  };
  for (const int steps : {10, 2, 2}) {  // begun anew, what was ahead does not count
    ++seed;
    REQUIRE(begin(krylov));
    REQUIRE(begin(other));
    host_gpu::launches = 0;
    for (int k = 0; k < steps; ++k) {
      krylov.step(op);
      other.step(on_host);
    }
    CHECK(host_gpu::launches == (steps + 3) / 4);
    CHECK((krylov.diagonal() - other.diagonal()).norm() <= 1e-12 * other.diagonal().norm());
    CHECK((krylov.off_diagonal() - other.off_diagonal()).norm() <= 1e-12 * other.off_diagonal().norm());
    const Eigen::VectorXd top = krylov.vector(krylov.top());
    const Eigen::VectorXd expected = other.vector(other.top());
    CHECK(line_angle<double>(view(top), view(expected)) <= 1e-9);
  }
}

TEST_CASE("elements whose squares are no doubles are multiplied on the host") {
  std::vector<double> a(few_neurons * few_hidden, 0.0);
  for (index_t f = 0; f < few_neurons; ++f) {
    a[static_cast<std::size_t>(f * few_hidden + f)] = 1e-200 / static_cast<double>(f + 1);
  }
  const auto gate = gate_fd(std::as_const(a).data(), few_neurons, few_hidden);
  verify::gpu gpu(0);
  verify::gpu_operator op(gpu, gate);
  const Eigen::VectorXd row = Eigen::VectorXd::Unit(few_hidden, 2);
  Eigen::VectorXd residual(few_hidden);
  const auto at = rayleigh(op, view(row), view(residual));
  auto on_host = gram_in_double(gate);
  Eigen::VectorXd expected(few_hidden);
  CHECK(at.state == rayleigh(on_host, view(row), view(expected)).state);
  CHECK(residual == expected);
}

}  // namespace test_gpu
