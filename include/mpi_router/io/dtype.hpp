// The element types of the safetensors format: names, sizes, and the C++ types that hold them.
#pragma once

#include <mpi_router/core/scalar.hpp>

#include <array>
#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>

static_assert(std::endian::native == std::endian::little,
              "safetensors files are little-endian, and so must the host be");

MPIROUTER_BEGIN_TYPES

/// Every element type of the format. Those without a C++ type here are read and written as bytes.
enum class dtype : unsigned char {
  boolean,
  f4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64
};

namespace io {

/// What safetensors calls an element type, and its size.
struct dtype_entry {
  std::string_view name;
  unsigned bits;
};

// In the order of the enumeration.
inline constexpr std::array<dtype_entry, 22> dtype_table{
    {{"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
     {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
     {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
     {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}}};

}  // namespace io

/// The name that the format gives a type: "F32", "BF16", …
[[nodiscard]] constexpr std::string_view to_string(dtype type) noexcept {
  return io::dtype_table[static_cast<std::size_t>(type)].name;
}

/// Bits of one element; the four- and six-bit types are packed.
[[nodiscard]] constexpr unsigned bits_of(dtype type) noexcept {
  return io::dtype_table[static_cast<std::size_t>(type)].bits;
}

/// The type with that name, if there is one.
[[nodiscard]] constexpr std::optional<dtype> dtype_from_string(std::string_view name) noexcept {
  for (std::size_t i = 0; i < io::dtype_table.size(); ++i) {
    if (io::dtype_table[i].name == name) {
      return static_cast<dtype>(i);
    }
  }
  return std::nullopt;
}

/// Which dtype a C++ type is stored as: the four Scalars and the integers.
template <class T>
struct dtype_of;
// clang-format off
template <> struct dtype_of<double> { static constexpr dtype value = dtype::f64; };
template <> struct dtype_of<float> { static constexpr dtype value = dtype::f32; };
template <> struct dtype_of<bf16> { static constexpr dtype value = dtype::bf16; };
template <> struct dtype_of<f16> { static constexpr dtype value = dtype::f16; };
template <> struct dtype_of<std::int8_t> { static constexpr dtype value = dtype::i8; };
template <> struct dtype_of<std::int16_t> { static constexpr dtype value = dtype::i16; };
template <> struct dtype_of<std::int32_t> { static constexpr dtype value = dtype::i32; };
template <> struct dtype_of<std::int64_t> { static constexpr dtype value = dtype::i64; };
template <> struct dtype_of<std::uint8_t> { static constexpr dtype value = dtype::u8; };
template <> struct dtype_of<std::uint16_t> { static constexpr dtype value = dtype::u16; };
template <> struct dtype_of<std::uint32_t> { static constexpr dtype value = dtype::u32; };
template <> struct dtype_of<std::uint64_t> { static constexpr dtype value = dtype::u64; };
// clang-format on

/// A C++ type that tensors of one dtype are made of.
template <class T>
concept Storable = requires { dtype_of<T>::value; } && sizeof(T) * 8 == bits_of(dtype_of<T>::value);

MPIROUTER_END_TYPES
