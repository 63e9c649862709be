// The element types of the safetensors format: names, sizes, and the C++ types that hold them.
#pragma once

#include <mpi_router/core/error.hpp>
#include <mpi_router/core/storage_traits.hpp>

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
  dtype type;
  std::string_view name;
  unsigned bits;
};

/// In the order of the enumeration.
inline constexpr std::array dtype_table{dtype_entry{dtype::boolean, "BOOL", 8},
                                        dtype_entry{dtype::f4, "F4", 4},
                                        dtype_entry{dtype::f6_e2m3, "F6_E2M3", 6},
                                        dtype_entry{dtype::f6_e3m2, "F6_E3M2", 6},
                                        dtype_entry{dtype::u8, "U8", 8},
                                        dtype_entry{dtype::i8, "I8", 8},
                                        dtype_entry{dtype::f8_e5m2, "F8_E5M2", 8},
                                        dtype_entry{dtype::f8_e4m3, "F8_E4M3", 8},
                                        dtype_entry{dtype::f8_e8m0, "F8_E8M0", 8},
                                        dtype_entry{dtype::f8_e4m3fnuz, "F8_E4M3FNUZ", 8},
                                        dtype_entry{dtype::f8_e5m2fnuz, "F8_E5M2FNUZ", 8},
                                        dtype_entry{dtype::i16, "I16", 16},
                                        dtype_entry{dtype::u16, "U16", 16},
                                        dtype_entry{dtype::f16, storage_traits<f16>::name, 16},
                                        dtype_entry{dtype::bf16, storage_traits<bf16>::name, 16},
                                        dtype_entry{dtype::i32, "I32", 32},
                                        dtype_entry{dtype::u32, "U32", 32},
                                        dtype_entry{dtype::f32, storage_traits<float>::name, 32},
                                        dtype_entry{dtype::c64, "C64", 64},
                                        dtype_entry{dtype::f64, storage_traits<double>::name, 64},
                                        dtype_entry{dtype::i64, "I64", 64},
                                        dtype_entry{dtype::u64, "U64", 64}};
static_assert([] {
  for (std::size_t i = 0; i < dtype_table.size(); ++i) {
    if (dtype_table[i].type != static_cast<dtype>(i)) return false;
  }
  return true;
}());

/// Throws usage_error for what is none of the types.
[[nodiscard]] constexpr const dtype_entry& entry_of(dtype type) {
  if (static_cast<std::size_t>(type) >= dtype_table.size()) {
    core::unknown_value("dtype", type);
  }
  return dtype_table[static_cast<std::size_t>(type)];
}

}  // namespace io

/// The name that the format gives a type: "F32", "BF16", …
[[nodiscard]] constexpr std::string_view to_string(dtype type) { return io::entry_of(type).name; }

/// Bits of one element; the four- and six-bit types are packed.
[[nodiscard]] constexpr unsigned bits_of(dtype type) { return io::entry_of(type).bits; }

/// The type with that name, if there is one.
[[nodiscard]] constexpr std::optional<dtype> dtype_from_string(std::string_view name) noexcept {
  for (const io::dtype_entry& entry : io::dtype_table) {
    if (entry.name == name) {
      return entry.type;
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

/// Whether the elements are one of the four Scalars.
[[nodiscard]] constexpr bool is_floating(dtype type) noexcept {
  return type == dtype::f64 || type == dtype::f32 || type == dtype::bf16 || type == dtype::f16;
}

/// A C++ type that tensors of one dtype are made of.
template <class T>
concept Storable = requires { dtype_of<T>::value; } && sizeof(T) * 8 == bits_of(dtype_of<T>::value);

MPIROUTER_END_TYPES
