// The kernels chosen at run time: the laws for every instruction set that this processor has, and the same
// bits as the kernels compiled in.
#ifndef MPIROUTER_TEST_SANITIZED
#define MPIROUTER_TEST_FEW_SHAPES  // test_simd_*.cpp try them all on the same kernels
#endif
#include "simd_laws.hpp"

#include <mpi_router/backend/runtime_dispatch.hpp>
#include <mpi_router/backend/simd.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>

using namespace mpi_router;

namespace {

constexpr instruction_set all_sets[] = {instruction_set::baseline, instruction_set::x86_64_v3,
                                        instruction_set::x86_64_v4};

/// The set that this file is compiled for, if it is one of them.
constexpr bool is_compiled_for(instruction_set s) {
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
  return s == instruction_set::x86_64_v4;
#elif defined(__AVX2__) && defined(__FMA__)
  return s == instruction_set::x86_64_v3;
#elif defined(__SSE3__)
  return false && s == instruction_set::baseline;
#else
  return s == instruction_set::baseline;
#endif
}

template <class T>
void obeys_the_laws() {
  for (const instruction_set s : all_sets) {
    if (core::tables_of(s) == nullptr) {
      MESSAGE("not on this processor: ", std::string(to_string(s)));
      continue;
    }
    CAPTURE(std::string(to_string(s)));
    simd_laws::all<T>(dispatch{dispatched_kernels{s}});
  }
}

template <class T>
void equals_what_is_compiled_in() {
  using S = accumulator_t<T>;
  test_support::random_source random(21);
  for (const instruction_set s : all_sets) {
    if (core::tables_of(s) == nullptr || !is_compiled_for(s)) continue;
    for (const auto& [f, d] : simd_laws::shapes) {
      for (const bool by_rows : {true, false}) {
        const std::vector<T> weights = test_support::random_vector<T>(random, f * d);
        const std::vector<S> x = test_support::random_vector<S>(random, d);
        const auto a = by_rows ? row_major(weights.data(), f, d) : column_major(weights.data(), f, d);
        std::vector<S> u(x.size());
        std::vector<S> v(x.size());
        const S e = dispatch{dispatched_kernels{s}}.template apply<T, S>(a, vector_view<const S>(x),
                                                                         vector_view<S>(u));
        CHECK(e == simd{}.template apply<T, S>(a, vector_view<const S>(x), vector_view<S>(v)));
        CHECK(u == v);
      }
    }
  }
}

}  // namespace

TEST_CASE("the best instruction set is there") {
  CHECK(core::tables_of(best_instruction_set()) != nullptr);
  CHECK(core::tables_of(instruction_set::baseline) != nullptr);
}

TEST_CASE("what the processor lacks is refused") {
  for (const instruction_set s : all_sets) {
    if (core::tables_of(s) == nullptr) {
      CHECK(test_support::refused([&] { dispatched_kernels{s}; }, "no " + std::string(to_string(s))));
    } else {
      CHECK_NOTHROW(dispatched_kernels{s});
    }
  }
}

TEST_CASE("dispatched kernels, f64") { obeys_the_laws<double>(); }
TEST_CASE("dispatched kernels, f32") { obeys_the_laws<float>(); }
TEST_CASE("dispatched kernels, bf16") { obeys_the_laws<bf16>(); }
TEST_CASE("dispatched kernels, f16") { obeys_the_laws<f16>(); }

TEST_CASE("the same bits as the kernels compiled in") {
  SUBCASE("f64") { equals_what_is_compiled_in<double>(); }
  SUBCASE("f32") { equals_what_is_compiled_in<float>(); }
  SUBCASE("bf16") { equals_what_is_compiled_in<bf16>(); }
  SUBCASE("f16") { equals_what_is_compiled_in<f16>(); }
}
