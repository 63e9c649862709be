// The element types of ggml and their blocks: what a GGUF file may name, whether it can be decoded here or
// not.
#pragma once

#include <mpi_router/core/error.hpp>

#include <array>
#include <cstdint>

MPIROUTER_BEGIN
namespace packed {

/// ggml's own numbers.
enum class ggml_type : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q8_1 = 9,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
  nvfp4 = 40,
  q1_0 = 41,
  q2_0 = 42
};

/// A block: so many elements in so many bytes.
struct ggml_block {
  index_t elements;
  index_t bytes;
};

namespace detail {

/// Why a type is not decoded; empty for one that is.
enum class decoding : unsigned char { known, codebook, ternary, number, internal, new_type };

/// What ggml calls a type, its block, and whether it is decoded here.
struct ggml_entry {
  ggml_type type;
  std::string_view name;
  ggml_block block;
  decoding how;
};

// clang-format off
inline constexpr std::array<ggml_entry, 35> ggml_table{{
    {ggml_type::f32, "F32", {1, 4}, decoding::known},
    {ggml_type::f16, "F16", {1, 2}, decoding::known},
    {ggml_type::q4_0, "Q4_0", {32, 18}, decoding::known},
    {ggml_type::q4_1, "Q4_1", {32, 20}, decoding::known},
    {ggml_type::q5_0, "Q5_0", {32, 22}, decoding::known},
    {ggml_type::q5_1, "Q5_1", {32, 24}, decoding::known},
    {ggml_type::q8_0, "Q8_0", {32, 34}, decoding::known},
    {ggml_type::q8_1, "Q8_1", {32, 36}, decoding::internal},
    {ggml_type::q2_k, "Q2_K", {256, 84}, decoding::known},
    {ggml_type::q3_k, "Q3_K", {256, 110}, decoding::known},
    {ggml_type::q4_k, "Q4_K", {256, 144}, decoding::known},
    {ggml_type::q5_k, "Q5_K", {256, 176}, decoding::known},
    {ggml_type::q6_k, "Q6_K", {256, 210}, decoding::known},
    {ggml_type::q8_k, "Q8_K", {256, 292}, decoding::internal},
    {ggml_type::iq2_xxs, "IQ2_XXS", {256, 66}, decoding::codebook},
    {ggml_type::iq2_xs, "IQ2_XS", {256, 74}, decoding::codebook},
    {ggml_type::iq3_xxs, "IQ3_XXS", {256, 98}, decoding::codebook},
    {ggml_type::iq1_s, "IQ1_S", {256, 50}, decoding::codebook},
    {ggml_type::iq4_nl, "IQ4_NL", {32, 18}, decoding::known},
    {ggml_type::iq3_s, "IQ3_S", {256, 110}, decoding::codebook},
    {ggml_type::iq2_s, "IQ2_S", {256, 82}, decoding::codebook},
    {ggml_type::iq4_xs, "IQ4_XS", {256, 136}, decoding::known},
    {ggml_type::i8, "I8", {1, 1}, decoding::number},
    {ggml_type::i16, "I16", {1, 2}, decoding::number},
    {ggml_type::i32, "I32", {1, 4}, decoding::number},
    {ggml_type::i64, "I64", {1, 8}, decoding::number},
    {ggml_type::f64, "F64", {1, 8}, decoding::number},
    {ggml_type::iq1_m, "IQ1_M", {256, 56}, decoding::codebook},
    {ggml_type::bf16, "BF16", {1, 2}, decoding::known},
    {ggml_type::tq1_0, "TQ1_0", {256, 54}, decoding::ternary},
    {ggml_type::tq2_0, "TQ2_0", {256, 66}, decoding::ternary},
    {ggml_type::mxfp4, "MXFP4", {32, 17}, decoding::known},
    {ggml_type::nvfp4, "NVFP4", {64, 36}, decoding::known},
    {ggml_type::q1_0, "Q1_0", {128, 18}, decoding::new_type},
    {ggml_type::q2_0, "Q2_0", {64, 18}, decoding::new_type},
}};
// clang-format on

[[nodiscard]] constexpr const ggml_entry* find_entry(ggml_type type) noexcept {
  for (const ggml_entry& entry : ggml_table) {
    if (entry.type == type) {
      return &entry;
    }
  }
  return nullptr;
}
/// Throws usage_error for a number that names no type.
[[nodiscard]] constexpr const ggml_entry& entry_of(ggml_type type) {
  const ggml_entry* const entry = find_entry(type);
  if (entry == nullptr) {
    core::unknown_value("ggml_type", type);
  }
  return *entry;
}

}  // namespace detail

/// Whether ggml knows a type of that number.
[[nodiscard]] constexpr bool is_known(ggml_type type) noexcept { return detail::find_entry(type) != nullptr; }
/// "Q4_K". Throws usage_error for a number that names no type, as do the others.
[[nodiscard]] constexpr std::string_view name_of(ggml_type type) { return detail::entry_of(type).name; }
/// How many elements and bytes a block has.
[[nodiscard]] constexpr ggml_block ggml_block_of(ggml_type type) { return detail::entry_of(type).block; }
/// Whether ggml_matrix decodes it.
[[nodiscard]] constexpr bool is_decoded(ggml_type type) {
  return detail::entry_of(type).how == detail::decoding::known;
}
/// Why a type is not decoded, "IQ2_XXS: codebook types are not decoded"; empty for one that is.
[[nodiscard]] inline std::string refusal_of(ggml_type type) {
  const detail::ggml_entry& entry = detail::entry_of(type);
  const std::string name(entry.name);
  switch (entry.how) {
    case detail::decoding::known: return "";
    case detail::decoding::codebook: return name + ": codebook types are not decoded";
    case detail::decoding::ternary: return name + ": ternary types are not decoded";
    case detail::decoding::number: return name + ": not a type that weights are stored as";
    case detail::decoding::internal: return name + ": a type of intermediate results, not of weights";
    case detail::decoding::new_type: break;
  }
  return name + ": not decoded";
}

}  // namespace packed
MPIROUTER_END
