// The packed matrices that backends decode in registers, as views of core.
#pragma once

#include <mpi_router/core/packed_views.hpp>
#include <mpi_router/io/packed/any_matrix.hpp>

#include <optional>
#include <variant>

MPIROUTER_BEGIN
namespace packed {

/// What has a view, and an operator of its own (backend/packed.hpp).
using any_view = std::variant<fp8_view, mxfp4_view, q8_0_view, q4_k_view>;

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
  if (m.is_e5m2() || !scale) {
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

}  // namespace detail

/// The matrix as backends decode it in registers; empty where there is no such view, and it goes row by row.
/// The view points where the matrix does.
[[nodiscard]] inline std::optional<any_view> view_of(const any_matrix& m) {
  return std::visit([](const auto& format) { return detail::view_of_format(format); }, m.format());
}

}  // namespace packed
MPIROUTER_END
