// Kernels over packed weights that are chosen at run time: what is refused, and the same bits as the kernels
// compiled in, where this file is compiled for the set that is forced.
#include "packed_problems.hpp"

#include <mpi_router/backend/packed.hpp>
#include <mpi_router/backend/simd.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>

using namespace packed_problems;

namespace {

constexpr bool is_compiled_for(instruction_set s) {
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
  return s == instruction_set::x86_64_v4;
#elif defined(__AVX2__) && defined(__FMA__)
  return s == instruction_set::x86_64_v3;
#else
  return s == instruction_set::baseline;
#endif
}

template <class Op>
std::vector<float> image_by(const Op& op) {
  random_source random(5);
  const std::vector<float> x = random_vector<float>(random, op.dimension());
  std::vector<float> u(x.size() + 1);
  u.back() = op.apply(vector_view<const float>(x), vector_view<float>(u.data(), op.dimension()));
  return u;
}

}  // namespace

TEST_CASE("packed kernels are there for the sets that dense ones are there for, and refused for others") {
  for (const auto s : {instruction_set::baseline, instruction_set::x86_64_v3, instruction_set::x86_64_v4}) {
    CHECK((core::packed_tables_of(s) == nullptr) == (core::tables_of(s) == nullptr));
    if (core::packed_tables_of(s) == nullptr) {
      CHECK(test_support::refused([&] { static_cast<void>(dispatched_packed_kernels{s}); },
                                  "no " + std::string(to_string(s))));
    }
  }
  CHECK(dispatch{}.kernels().instructions() == best_instruction_set());
}

TEST_CASE("each instruction set has kernels of its own") {
  const auto* const least = core::packed_tables_of(instruction_set::baseline);
  for (const auto s : {instruction_set::x86_64_v3, instruction_set::x86_64_v4}) {
    if (const auto* const more = core::packed_tables_of(s); more != nullptr) {
      const bool differ = more->of<fp8_view>().apply != least->of<fp8_view>().apply &&
                          more->of<q4_k_view>().lift != least->of<q4_k_view>().lift;
      CHECK(differ);
    }
  }
}

TEST_CASE("packed: the same bits as the kernels compiled in") {
  if (!is_compiled_for(backend.kernels().instructions())) return;
  for_each_problem([](const problem& p) {
    CAPTURE(p.name);
    std::visit(
        [](const auto& v) {
          CHECK(image_by(gram(v)) == image_by(gram(v, backend)));
          CHECK(image_by(gram(v)) == image_by(gram(v, simd{})));
        },
        p.view());
  });
}
