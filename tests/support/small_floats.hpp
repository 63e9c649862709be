// Storage types that the library has not heard of: a struct of bits, and what it must say of itself.
#pragma once

#include <mpi_router/core/scalar.hpp>

#include <cstdint>
#include <string_view>

namespace test_support {

struct e4m3 {  // no infinities, one NaN
  std::uint8_t bits = 0;
};
struct e5m2 {
  std::uint8_t bits = 0;
};
struct e6m9 {
  std::uint16_t bits = 0;
};

}  // namespace test_support

MPIROUTER_BEGIN_TYPES

template <>
struct storage_traits<test_support::e4m3>
    : bits_storage<test_support::e4m3, make_storage_format(4, 3, false)> {
  static constexpr std::string_view name = "F8_E4M3";
};
template <>
struct storage_traits<test_support::e5m2> : bits_storage<test_support::e5m2, make_storage_format(5, 2)> {
  static constexpr std::string_view name = "F8_E5M2";
};
template <>
struct storage_traits<test_support::e6m9> : bits_storage<test_support::e6m9, make_storage_format(6, 9)> {
  static constexpr std::string_view name = "F16_E6M9";
};

MPIROUTER_END_TYPES
