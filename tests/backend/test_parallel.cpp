// The batched product: right, and bitwise the same for every executor and number of threads.
#include <mpi_router/backend/apply_experts.hpp>
#include <mpi_router/backend/executors.hpp>
#include <mpi_router/backend/reference.hpp>
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/backend/tbb.hpp>

#include <doctest/doctest.h>
#include <oneapi/tbb/global_control.h>
#include <support/executors.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace test_parallel {

namespace {

using namespace mpi_router;

template <class S>
struct outcome {
  std::vector<S> images;
  std::vector<S> energies;
  bool operator==(const outcome&) const = default;
};

template <class S, class T, class Backend>
outcome<S> apply_all(const Backend& backend, const expert_batch_view<T>& experts, const std::vector<S>& rows,
                     const test_support::any_executor& executor) {
  const auto [n, f, d] = experts.shape();
  outcome<S> out{std::vector<S>(rows.size(), S{7}), std::vector<S>(static_cast<std::size_t>(n), S{7})};
  std::vector<S> workspace(static_cast<std::size_t>(apply_experts_workspace(experts.shape())),
                           std::numeric_limits<S>::quiet_NaN());
  apply_experts(backend, experts, row_major(rows.data(), n, d), row_major(out.images.data(), n, d),
                vector_view<S>(out.energies), vector_view<S>(workspace), executor);
  return out;
}

#if defined(MPIROUTER_TEST_SANITIZED)
constexpr int thread_counts[] = {3};
#else
constexpr int thread_counts[] = {1, 2, 3, 7};
#endif
// One block, several blocks, and several blocks of each of many experts; then nothing at all.
const expert_shape some_shapes[] = {{70, 9, 31},    {2, 4500, 130},  {5, 3, 40},
                                    {1, 1, 300000},
#ifndef MPIROUTER_TEST_SANITIZED
                                    {3, 700, 517},  {1, 1030, 1030}, {detail::many_experts, 526, 1000},
#endif
                                    {0, 8, 8},      {4, 0, 8},       {2, 8, 0}};

template <class T, class Backend>
void is_right_and_the_same_for_everyone(const Backend& backend) {
  using S = accumulator_t<T>;
  test_support::random_source random(11);
  const tbb::global_control allow(tbb::global_control::max_allowed_parallelism, 7);
  for (const expert_shape& shape : some_shapes) {
    const auto [n, f, d] = shape;
    CAPTURE(n);
    CAPTURE(f);
    CAPTURE(d);
    const std::vector<T> weights = test_support::random_vector<T>(random, n * f * d);
    const std::vector<S> rows = test_support::random_vector<S>(random, n * d);
    for (const bool by_rows : {true, false}) {
      const auto experts = by_rows ? experts_nfd(weights.data(), shape) : experts_ndf(weights.data(), shape);
      const outcome<S> serial = apply_all<S>(backend, experts, rows, serial_executor{});
      CHECK(serial == apply_all<S>(backend, experts, rows, test_support::reverse_executor{}));
      for (const int threads : thread_counts) {
        CHECK(serial == apply_all<S>(backend, experts, rows, test_support::thread_executor{threads}));
        tbb::task_arena arena(threads);
        CHECK(serial == apply_all<S>(backend, experts, rows, tbb_executor{&arena}));
#if defined(_OPENMP)
        CHECK(serial == apply_all<S>(backend, experts, rows, openmp_executor{threads}));
#endif
      }
      // Against sums in double.
      for (index_t i = 0; i < n; i += 17) {
        const auto at = static_cast<std::size_t>(i * d);
        const std::vector<double> x(rows.begin() + i * d, rows.begin() + (i + 1) * d);
        std::vector<double> image(static_cast<std::size_t>(d));
        const double energy = reference{}.apply<T, double>(
            matrix_view<const T>(experts[i]), vector_view<const double>(x), vector_view<double>(image));
        double error = 0;
        double size = 0;
        for (std::size_t k = 0; k < image.size(); ++k) {
          error += std::pow(static_cast<double>(serial.images[at + k]) - image[k], 2);
          size += image[k] * image[k];
        }
        const double bound = 4 * test_support::tolerance<T>.arithmetic;
        CHECK(std::sqrt(error) <= bound * std::sqrt(size));
        CHECK(std::abs(static_cast<double>(serial.energies[static_cast<std::size_t>(i)]) - energy) <=
              2 * bound * energy);  // a square is off twice as much
      }
    }
  }
}

}  // namespace

TEST_CASE("the batched product is bitwise the same for every executor") {
  SUBCASE("one-read kernels, bf16") { is_right_and_the_same_for_everyone<bf16>(simd{}); }
  SUBCASE("reference, f32") { is_right_and_the_same_for_everyone<float>(reference{}); }
#if !defined(MPIROUTER_TEST_SANITIZED)  // the kernels have a sanitized test of their own
  SUBCASE("one-read kernels, f32") { is_right_and_the_same_for_everyone<float>(simd{}); }
  SUBCASE("one-read kernels, f64") { is_right_and_the_same_for_everyone<double>(simd{}); }
  SUBCASE("one-read kernels, f16") { is_right_and_the_same_for_everyone<f16>(simd{}); }
#endif
}

#ifndef MPIROUTER_TEST_SHORT  // large experts, and no access that those above have not
TEST_CASE("an expert's image does not depend on the batch that it is in") {
  const auto check = [](const expert_shape& all, const auto& experts_of) {
    test_support::random_source random(12);
    const auto [n, f, d] = all;
    REQUIRE(n > detail::many_experts);
    const std::vector<float> weights = test_support::random_vector<float>(random, n * f * d);
    const std::vector<float> rows = test_support::random_vector<float>(random, n * d);
    const auto experts = experts_of(weights.data(), all);
    REQUIRE(detail::blocks_of(all, detail::block_unit(experts.strides())) > 1);
    const auto together = apply_all<float>(simd{}, experts, rows, serial_executor{});
    const auto alone = apply_all<float>(simd{}, experts_of(weights.data() + (n - 1) * f * d, {1, f, d}),
                                        std::vector<float>(rows.end() - d, rows.end()), serial_executor{});
    CHECK(std::equal(alone.images.begin(), alone.images.end(), together.images.end() - d));
    CHECK(alone.energies[0] == together.energies.back());
  };
  check({65, 4500, 130}, [](const float* a, const expert_shape& s) { return experts_ndf(a, s); });
#ifndef MPIROUTER_TEST_SANITIZED
  check({65, 1100, 520}, [](const float* a, const expert_shape& s) { return experts_nfd(a, s); });
#endif
}
#endif

TEST_CASE("blocks of neurons cover an expert once, in order, and none is empty") {
  for (const index_t stride : {index_t{1}, index_t{1000}}) {
    const index_t unit = detail::block_unit({.expert = 0, .ffn = stride, .hidden = 1});
    for (const index_t f : {1, 7, 8, 9, 255, 256, 257, 1000, 2047, 2048, 2049, 4096, 100000}) {
      for (const index_t d : {1, 64, 7168, 1000000}) {
        const expert_shape shape{1, f, d};
        const index_t blocks = detail::blocks_of(shape, unit);
        CHECK(blocks <= detail::blocks_of(shape, 8));  // for which there is a workspace
        CHECK(detail::block_start(shape, unit, 0) == 0);
        CHECK(detail::block_start(shape, unit, blocks) == f);
        for (index_t b = 0; b < blocks; ++b) {
          CHECK(detail::block_start(shape, unit, b) < detail::block_start(shape, unit, b + 1));
        }
      }
    }
    CHECK(detail::blocks_of({1, 0, 64}, unit) == 1);
  }
}

}  // namespace test_parallel
