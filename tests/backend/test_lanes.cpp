// Lines of every storage format, of the instruction set that this file is compiled for: loads, stores and
// their order, bit by bit; and where panels and tails end.
#include <mpi_router/backend/simd/panels.hpp>
#include <mpi_router/core/scalar.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>
#include <support/small_floats.hpp>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

using namespace mpi_router;
namespace kernels = mpi_router::detail::kernels;

namespace {

template <storage_format Format, class S>
using lanes = kernels::lanes<Format, S, xsimd::default_arch>;
template <class T>
using lanes_of = lanes<storage_traits<T>::format, accumulator_t<T>>;
/// f16 by integers, also where the machine converts it.
using f16_by_integers = kernels::paired_lanes<xsimd::default_arch, kernels::codec<storage_format::f16>>;

/// What stores must get right: NaN whose payload lies in the bits that are cut, ties, the ends of the ranges.
std::vector<std::uint32_t> floats_to_store() {
  std::vector<std::uint32_t> all;
  for (const std::uint32_t sign : {0U, 0x80000000U}) {
    for (const std::uint32_t bits :
         {0x7f800001U, 0x7f80ffffU, 0x7f807fffU, 0x7f808000U, 0x7fffffffU, 0x7fff8000U, 0x7fc00000U,
          0x7f801fffU, 0x7f802000U, 0x7f800000U, 0x7f7fffffU, 0x7f7f7fffU, 0x7f7f8000U, 0U,
          1U,          0x8000U,     0x7fffU,     0x8001U,     0x18000U,    0x00800000U, 0x007fffffU}) {
      all.push_back(sign | bits);
    }
    // Every exponent of half precision and some around, with all that can happen to the bits that are cut.
    for (std::uint32_t exponent = 96; exponent <= 148; ++exponent) {
      for (const std::uint32_t kept : {0U, 0x2000U, 0x4000U, 0x7fe000U, 0x3fe000U, 0x400000U, 0x600000U}) {
        for (const std::uint32_t cut : {0U, 1U, 0xfffU, 0x1000U, 0x1001U, 0x1fffU}) {
          all.push_back(sign | (exponent << 23) | kept | cut);
        }
      }
    }
    for (std::uint32_t upper = 0x3f80U; upper < 0x3f90U; ++upper) {
      for (const std::uint32_t cut : {0U, 1U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU})
        all.push_back(sign | (upper << 16) | cut);
    }
  }
  test_support::random_source random(3);
  for (int k = 0; k < 20000; ++k) all.push_back(static_cast<std::uint32_t>(random.integer(0, 0xffffffffLL)));
  while (all.size() % 64 != 0) all.push_back(0x3f800000U);
  return all;
}

template <class T, class line = lanes_of<T>>
void stores_what_one_conversion_gives() {
  constexpr auto width = static_cast<std::size_t>(line::width);
  const auto all = floats_to_store();
  for (std::size_t first = 0; first < all.size(); first += width) {
    float in[width];
    T out[width];
    for (std::size_t i = 0; i < width; ++i) in[i] = std::bit_cast<float>(all[first + i]);
    line::store(out, line::load_sums(in));
    for (std::size_t i = 0; i < width; ++i) {
      CAPTURE(all[first + i]);
      const T want = narrow<T>(in[i]);
      if (std::isnan(in[i])) {
        CHECK(std::isnan(widen<float>(out[i])));
        CHECK(std::signbit(widen<float>(out[i])) == std::signbit(in[i]));
      } else {
        CHECK(out[i].bits == want.bits);
      }
    }
  }
}

/// Every pattern comes in as its value, in the order that sums are stored in.
template <class T, class line = lanes_of<T>>
void loads_every_value() {
  constexpr auto width = static_cast<std::size_t>(line::width);
  for (std::uint32_t first = 0; first < 1U << (8 * sizeof(T)); first += static_cast<std::uint32_t>(width)) {
    T in[width];
    float out[width];
    for (std::size_t i = 0; i < width; ++i) in[i].bits = static_cast<decltype(T::bits)>(first + i);
    line::store_sums(out, line::load(in));
    for (std::size_t i = 0; i < width; ++i) {
      const float want = widen<float>(in[i]);
      CAPTURE(in[i].bits);
      CHECK((std::isnan(want) ? std::isnan(out[i])
                              : std::bit_cast<std::uint32_t>(out[i]) == std::bit_cast<std::uint32_t>(want)));
    }
  }
}

template <class stored>
void keeps_order() {
  using S = accumulator_t<stored>;
  using line = lanes_of<stored>;
  constexpr auto width = static_cast<std::size_t>(line::width);
  S in[width], out[width];
  for (std::size_t i = 0; i < width; ++i) in[i] = static_cast<S>(i + 1);
  line::store_sums(out, line::load_sums(in));
  CHECK(std::memcmp(in, out, sizeof in) == 0);
  // A dot product of one line: elements meet their own weights.
  stored weights[width];
  for (std::size_t i = 0; i < width; ++i) weights[i] = narrow<stored>(i == width / 2 ? S{1} : S{0});
  const auto a = line::load(weights);
  const auto x = line::load_sums(in);
  S sum{0};
  for (std::size_t part = 0; part < line::line::count; ++part) {
    S products[line::batch::size];
    (a.part[part] * x.part[part]).store_unaligned(products);
    for (const S product : products) sum += product;
  }
  CHECK(sum == static_cast<S>(width / 2 + 1));
}

template <storage_format Format, class S>
void panels_and_tails_end_where_they_should() {
  using line = lanes<Format, S>;
  const index_t width = line::width;
  for (index_t cols = width; cols < 4 * kernels::panel_width<S>;
       cols = cols < 3 * width || cols % 1021 < 2 ? cols + 1 : cols + 13) {
    CAPTURE(cols);
    index_t first = 0;
    while (first < cols) {
      const index_t panel = kernels::width_of_panel<line, S>(cols - first);
      REQUIRE(panel >= width);  // never less than a line, or it would be read before its start
      REQUIRE(panel <= kernels::panel_width<S> + 32);
      first += panel;
      // Whole lines, but in the last panel: the mask is that of the last line of all.
      CHECK((first == cols || panel % width == 0));
    }
    CHECK(first == cols);
  }
  for (const index_t past : {index_t{1}, width - 1, width, width + 1}) {  // just past one panel, and two
    for (const index_t whole : {index_t{1}, index_t{2}}) {
      const index_t cols = whole * kernels::panel_width<S> + past;
      index_t first = 0, count = 0;
      for (; first < cols; ++count) first += kernels::width_of_panel<line, S>(cols - first);
      CHECK(first == cols);
      CHECK(count == whole + (past < width ? 0 : 1));
    }
  }
  for (index_t cols = width; cols <= 3 * width; ++cols) {
    const kernels::tail_mask<S, line::width> mask(cols);
    index_t fresh = 0;
    for (index_t i = 0; i < width; ++i) {
      CHECK((mask.value[i] == S{0} || mask.value[i] == S{1}));
      if (i > 0) CHECK(mask.value[i] >= mask.value[i - 1]);  // zeros first
      fresh += mask.value[i] == S{1} ? 1 : 0;
    }
    CHECK(fresh == (cols % width == 0 ? width : cols % width));
  }
}

}  // namespace

TEST_CASE("what is stored is what one conversion gives: NaN stays NaN, ties go to even") {
  SUBCASE("bf16") { stores_what_one_conversion_gives<bf16>(); }
  SUBCASE("f16") { stores_what_one_conversion_gives<f16>(); }
  SUBCASE("f16 by integers") { stores_what_one_conversion_gives<f16, f16_by_integers>(); }
  SUBCASE("E4M3") { stores_what_one_conversion_gives<test_support::e4m3>(); }
  SUBCASE("E5M2") { stores_what_one_conversion_gives<test_support::e5m2>(); }
  SUBCASE("E6M9") { stores_what_one_conversion_gives<test_support::e6m9>(); }
}

TEST_CASE("every value is loaded") {
  SUBCASE("bf16") { loads_every_value<bf16>(); }
  SUBCASE("f16") { loads_every_value<f16>(); }
  SUBCASE("f16 by integers") { loads_every_value<f16, f16_by_integers>(); }
  SUBCASE("E4M3") { loads_every_value<test_support::e4m3>(); }
  SUBCASE("E5M2") { loads_every_value<test_support::e5m2>(); }
  SUBCASE("E6M9") { loads_every_value<test_support::e6m9>(); }
}

TEST_CASE("lines keep their order") {
  keeps_order<double>();
  keeps_order<float>();
  keeps_order<bf16>();
  keeps_order<f16>();
  keeps_order<test_support::e4m3>();
  keeps_order<test_support::e6m9>();
}

TEST_CASE("panels cover all columns, in pieces of a line at least; tails are new once") {
  panels_and_tails_end_where_they_should<storage_format::f64, double>();
  panels_and_tails_end_where_they_should<storage_format::f32, float>();
  panels_and_tails_end_where_they_should<storage_format::bf16, float>();
  panels_and_tails_end_where_they_should<storage_format::f16, float>();
  panels_and_tails_end_where_they_should<storage_traits<test_support::e4m3>::format, float>();
}
