// bf16 and f16 against Eigen's, bit by bit.
#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/core/scalar.hpp>

#include <doctest/doctest.h>
#include <Eigen/Core>
#include <support/random.hpp>
#include <support/small_floats.hpp>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace test_scalar {
using namespace mpi_router;

namespace {

template <class Ours, class Theirs>
void every_stored_value() {
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    Ours x;
    x.bits = static_cast<std::uint16_t>(bits);
    const auto theirs = static_cast<float>(std::bit_cast<Theirs>(static_cast<std::uint16_t>(bits)));
    const auto ours = static_cast<float>(x);
    if (std::isnan(theirs)) {
      CHECK(std::isnan(ours));
      CHECK(std::isnan(static_cast<float>(Ours(ours))));
    } else {
      CHECK(std::bit_cast<std::uint32_t>(ours) == std::bit_cast<std::uint32_t>(theirs));
      CHECK(Ours(ours).bits == x.bits);  // widening is exact, so narrowing gives the value back
    }
    CHECK(is_finite(x) == std::isfinite(theirs));
  }
}

template <class Ours, class Theirs>
void same_rounding(float x) {
  const auto theirs = std::bit_cast<std::uint16_t>(Theirs(x));
  if (std::isnan(x)) {
    CHECK(std::isnan(static_cast<float>(Ours(x))));
  } else {
    CAPTURE(x);
    CHECK(Ours(x).bits == theirs);
  }
}

/// Halfway between every two neighbours, and a hair to either side, of either sign.
template <class T>
void rounds_doubles_once(std::uint16_t largest) {
  const auto stored = [](int bits) {
    T x;
    x.bits = static_cast<std::uint16_t>(bits);
    return x;
  };
  const auto value = [&](int bits) { return static_cast<double>(static_cast<float>(stored(bits))); };
  for (int b = 0; b <= largest; ++b) {
    CAPTURE(b);
    const double half = b == largest ? (value(b) - value(b - 1)) / 2 : (value(b + 1) - value(b)) / 2;
    const double tie = value(b) + half;
    for (const double sign : {1.0, -1.0}) {
      const auto rounded = [&](double x) { return narrow<T>(sign * x).bits & 0x7fff; };
      CHECK(rounded(value(b)) == b);
      CHECK(rounded(tie) == b + b % 2);
      CHECK(rounded(std::nextafter(tie, 0.0)) == b);
      CHECK(rounded(std::nextafter(tie, 2 * tie)) == b + 1);
      CHECK(std::signbit(static_cast<float>(narrow<T>(sign * tie))) == (sign < 0));
    }
  }
}

/// What the standard of a format says of a pattern, by powers of two.
template <class T>
double by_definition(std::uint32_t pattern) {
  const core::bit_layout l(storage_traits<T>::format);
  const auto m = static_cast<int>(l.significand_bits), bias = static_cast<int>(l.bias());
  const auto exponent = static_cast<int>((pattern & (l.sign() - 1)) >> m);
  const auto significand = static_cast<double>(pattern & ((1U << m) - 1));
  const auto last = (1 << l.exponent_bits) - 1;
  const double sign = (pattern & l.sign()) != 0 ? -1 : 1;
  if (exponent == last && l.has_infinity && significand == 0)
    return sign * std::numeric_limits<double>::infinity();
  if (exponent == last && (l.has_infinity || significand == (1 << m) - 1)) return std::nan("");
  if (exponent == 0) return sign * std::ldexp(significand, 1 - bias - m);
  return sign * std::ldexp(significand + (1 << m), exponent - bias - m);
}

/// Every pattern has its value; every number between two of them goes to the nearer, a tie to the even one;
/// what is half a step beyond the largest is infinite, or NaN.
template <class T>
void follows_its_format() {
  const core::bit_layout l(storage_traits<T>::format);
  for (std::uint32_t pattern = 0; pattern < 2 * l.sign(); ++pattern) {
    CAPTURE(pattern);
    T x;
    x.bits = static_cast<decltype(T::bits)>(pattern);
    const double value = by_definition<T>(pattern);
    CHECK(is_finite(x) == std::isfinite(value));
    if (std::isnan(value)) {
      CHECK(std::isnan(widen<double>(x)));
      CHECK(std::isnan(widen<float>(narrow<T>(widen<float>(x)))));
      continue;
    }
    CHECK(widen<double>(x) == value);
    CHECK(std::signbit(widen<double>(x)) == std::signbit(value));
    CHECK(narrow<T>(value).bits == x.bits);
    const std::uint32_t magnitude = pattern & (l.sign() - 1);
    if (magnitude >= l.beyond()) continue;
    const double next = magnitude + 1 == l.beyond() ? 2 * value - by_definition<T>(pattern - 1)
                                                    : by_definition<T>(pattern + 1);
    const double tie = (value + next) / 2;
    CHECK(narrow<T>(tie).bits == pattern + magnitude % 2);
    CHECK(narrow<T>(static_cast<float>(tie)).bits == pattern + magnitude % 2);
    CHECK(narrow<T>(std::nextafter(tie, value)).bits == pattern);
    CHECK(narrow<T>(std::nextafter(tie, 2 * next)).bits == pattern + 1);
  }
  for (const float large : {1e30F, std::numeric_limits<float>::infinity()}) {
    CHECK(narrow<T>(-large).bits == (l.sign() | l.beyond()));
  }
  CHECK(narrow<T>(1e-30F).bits == 0);
  CHECK(narrow<T>(5e-324).bits == 0);
}

}  // namespace

TEST_CASE("a storage type is what its format says") {
  SUBCASE("bf16, from subnormal numbers on") { CHECK(by_definition<bf16>(1) == 0x1p-133); }
  SUBCASE("f16") { follows_its_format<f16>(); }
  SUBCASE("E4M3") {
    follows_its_format<test_support::e4m3>();
    CHECK(by_definition<test_support::e4m3>(0x7e) == 448);
    CHECK(std::isnan(by_definition<test_support::e4m3>(0x7f)));
  }
  SUBCASE("E5M2") {
    follows_its_format<test_support::e5m2>();
    CHECK(by_definition<test_support::e5m2>(0x7b) == 57344);
  }
  SUBCASE("E6M9") { follows_its_format<test_support::e6m9>(); }
}

TEST_CASE("doubles round to bf16 and f16 once, not by way of float") {
  static_assert(narrow<bf16>(1 + 0x1p-8 + 0x1p-40).bits == bf16(1.0078125F).bits);
  static_assert(narrow<f16>(1 + 0x1p-11 + 0x1p-50).bits == f16(1 + 0x1p-10F).bits);
  rounds_doubles_once<bf16>(0x7f7f);
  rounds_doubles_once<f16>(0x7bff);
  CHECK(narrow<Eigen::bfloat16>(1 + 0x1p-8 + 0x1p-40) == Eigen::bfloat16(1.0078125F));
  CHECK(narrow<Eigen::half>(1 + 0x1p-11 + 0x1p-50) == Eigen::half(1 + 0x1p-10F));
  constexpr double infinity = std::numeric_limits<double>::infinity();
  CHECK(narrow<bf16>(-infinity).bits == 0xff80);
  CHECK(narrow<f16>(1e300).bits == 0x7c00);
  CHECK(narrow<f16>(5e-324).bits == 0);
  CHECK(std::isnan(static_cast<float>(narrow<bf16>(std::numeric_limits<double>::quiet_NaN()))));
}

TEST_CASE("every bf16 and f16 value widens and narrows as in Eigen") {
  every_stored_value<bf16, Eigen::bfloat16>();
  every_stored_value<f16, Eigen::half>();
}

TEST_CASE("floats round to the nearest stored value, ties to even, as in Eigen") {
  test_support::random_source random(1);
  for (int i = 0; i < 200000; ++i) {
    // Any bit pattern: normal, subnormal, infinite, NaN; and ones that lie on or beside a tie.
    const auto bits = static_cast<std::uint32_t>(random.integer(0, 0xffffffffLL));
    for (const std::uint32_t tie :
         {bits, bits & 0xffffe000U, (bits & 0xffffe000U) | 0x1000U, (bits & 0xffff0000U) | 0x8000U,
          (bits & 0xffff0000U) | 0x7fffU, (bits & 0xffffe000U) | 0xfffU}) {
      same_rounding<bf16, Eigen::bfloat16>(std::bit_cast<float>(tie));
      same_rounding<f16, Eigen::half>(std::bit_cast<float>(tie));
    }
  }
  for (const float edge :
       {0.0F, -0.0F, 65504.0F, 65519.99F, 65520.0F, 0x1p-24F, 0x1p-25F, 0x1.000002p-25F, 0x1p-14F,
        std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity()}) {
    same_rounding<bf16, Eigen::bfloat16>(edge);
    same_rounding<f16, Eigen::half>(edge);
    same_rounding<f16, Eigen::half>(-edge);
  }
}

TEST_CASE("sums are taken in f64 for f64 and in f32 for the rest") {
  static_assert(std::is_same_v<accumulator_t<double>, double>);
  static_assert(std::is_same_v<accumulator_t<const float>, float>);
  static_assert(std::is_same_v<accumulator_t<bf16>, float> && std::is_same_v<accumulator_t<f16>, float>);
  static_assert(!Scalar<int> && !Scalar<long double> && !Scalar<bool>);
  static_assert(!Accumulator<bf16> && Accumulator<float>);
  CHECK(widen<double>(bf16(1.5F)) == 1.5);
  CHECK(static_cast<float>(narrow<bf16>(1.00390625F)) == 1.0F);  // a tie, to even
  CHECK(!is_finite(std::numeric_limits<double>::quiet_NaN()));
  CHECK(is_finite(std::numeric_limits<double>::denorm_min()));
}

}  // namespace test_scalar
