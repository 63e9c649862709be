// The packed matrices that backends decode in registers, as views of core.
#pragma once

#include <mpi_router/core/packed_views.hpp>
#include <mpi_router/io/packed/any_matrix.hpp>

#include <algorithm>
#include <optional>
#include <variant>

MPIROUTER_BEGIN
namespace packed {

/// What has a view, and an operator of its own (backend/packed.hpp).
using any_view = core::of_packed_views<std::variant>;

namespace detail {

[[nodiscard]] inline std::optional<fp8_scale> fp8_scale_of(scale_type type) noexcept {
  switch (type) {
    case scale_type::f32: return fp8_scale::f32;
    case scale_type::bf16: return fp8_scale::bf16;
    case scale_type::f16: return fp8_scale::f16;
    case scale_type::e8m0: return fp8_scale::e8m0;
    case scale_type::e4m3:
    case scale_type::one: break;
  }
  return std::nullopt;
}

[[nodiscard]] inline std::optional<any_view> view_of_format(const fp8_matrix& m) noexcept {
  const auto scale = detail::fp8_scale_of(m.scales().type());
  if (m.type() != fp8_type::e4m3 || !scale) {
    return std::nullopt;
  }
  return fp8_view{.codes = m.codes(),
                  .rows = m.rows(),
                  .cols = m.cols(),
                  .row_bytes = m.cols(),
                  .scales = m.scales().bytes(),
                  .scale_type = *scale,
                  .scale_row_bytes = m.scales().cols() * size_of(m.scales().type()),
                  .block_rows = m.block_rows(),
                  .block_cols = m.block_cols()};
}
[[nodiscard]] inline std::optional<any_view> view_of_format(const fp4_matrix& m) noexcept {
  if (m.group() != 32 || m.cols() % 32 != 0 || m.scales().type() != scale_type::e8m0 || m.global() != 1) {
    return std::nullopt;
  }
  return mxfp4_view{.codes = m.codes(),
                    .rows = m.rows(),
                    .cols = m.cols(),
                    .row_bytes = m.cols() / 2,
                    .scales = m.scales().bytes(),
                    .scale_row_bytes = m.scales().cols()};
}
[[nodiscard]] inline std::optional<any_view> view_of_format(const ggml_matrix& m) noexcept {
  if (m.scale() != 1) {
    return std::nullopt;
  }
  if (m.type() == ggml_type::mxfp4) {
    return mxfp4_blocks_view{m.bytes(), m.rows(), m.cols(), m.row_bytes()};
  }
  if (m.type() == ggml_type::q8_0) {
    return q8_0_view{m.bytes(), m.rows(), m.cols(), m.row_bytes()};
  }
  if (m.type() == ggml_type::q4_k) {
    return q4_k_view{m.bytes(), m.rows(), m.cols(), m.row_bytes()};
  }
  return std::nullopt;
}
template <class M>
[[nodiscard]] std::optional<any_view> view_of_format(const M&) noexcept {
  return std::nullopt;
}

[[nodiscard]] inline const std::byte* further(const void* bytes, index_t by) noexcept {
  return static_cast<const std::byte*>(bytes) + by;
}

/// Rows first, first + step, … of a view, `count` of them; false where their scales cannot be told so.
[[nodiscard]] inline bool take_rows(fp8_view& v, index_t first, index_t count, index_t step) noexcept {
  const index_t within = first % v.block_rows;
  const bool is_one_block =
      first / v.block_rows == (first + std::max<index_t>(count - 1, 0) * step) / v.block_rows;
  if (is_one_block) {
    v.scales = further(v.scales, first / v.block_rows * v.scale_row_bytes);
    v.block_rows = std::max<index_t>(count, 1);
  } else if (v.block_rows == 1) {
    v.scales = further(v.scales, first * v.scale_row_bytes);
    v.scale_row_bytes *= step;
  } else if (within < step && v.block_rows % step == 0) {
    v.scales = further(v.scales, first / v.block_rows * v.scale_row_bytes);
    v.block_rows /= step;
  } else {
    return false;
  }
  v.codes = further(v.codes, first * v.row_bytes);
  v.rows = count;
  v.row_bytes *= step;
  return true;
}
[[nodiscard]] inline bool take_rows(mxfp4_view& v, index_t first, index_t count, index_t step) noexcept {
  v.codes = further(v.codes, first * v.row_bytes);
  v.scales = further(v.scales, first * v.scale_row_bytes);
  v.rows = count;
  v.row_bytes *= step;
  v.scale_row_bytes *= step;
  return true;
}
template <class Blocks>
[[nodiscard]] bool take_rows(Blocks& v, index_t first, index_t count, index_t step) noexcept {
  v.blocks = further(v.blocks, first * v.row_bytes);
  v.rows = count;
  v.row_bytes *= step;
  return true;
}

}  // namespace detail

/// The matrix as backends decode it in registers; empty where there is no such view, and it goes row by row.
/// The view points where the matrix does.
[[nodiscard]] inline std::optional<any_view> view_of(const any_matrix& m) {
  return std::visit([](const auto& format) { return detail::view_of_format(format); }, m.format());
}

/// Its rows first, first + step, …, `count` of them, in the same way: what a gate is of a weight that holds
/// up projections too. Empty where these rows have no view: FP8 whose blocks of scales they cut. Throws
/// usage_error where the matrix has no such rows.
[[nodiscard]] inline std::optional<any_view> view_of(const any_matrix& m, index_t first, index_t count,
                                                     index_t step = 1) {
  core::expect(first >= 0 && count >= 0 && step > 0 &&
                   first + std::max<index_t>(count - 1, 0) * step < std::max<index_t>(m.rows(), 1),
               "packed::view_of: rows ", first, ", ", first + step, ", …, ", count, " of them, of ",
               m.rows());
  auto view = view_of(m);
  const bool has_them =
      view && std::visit([&](auto& v) { return detail::take_rows(v, first, count, step); }, *view);
  return has_them ? view : std::nullopt;
}

}  // namespace packed
MPIROUTER_END
