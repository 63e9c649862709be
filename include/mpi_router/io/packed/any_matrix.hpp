// A packed matrix of whichever format a file holds.
#pragma once

#include <mpi_router/core/matrix_rows.hpp>
#include <mpi_router/io/packed/awq_gptq.hpp>
#include <mpi_router/io/packed/fp4.hpp>
#include <mpi_router/io/packed/fp8.hpp>
#include <mpi_router/io/packed/ggml.hpp>
#include <mpi_router/io/packed/integer.hpp>
#include <mpi_router/io/packed/mlx.hpp>
#include <mpi_router/io/packed/nf4.hpp>

#include <utility>
#include <variant>

MPIROUTER_BEGIN
namespace packed {

namespace detail {

// What each format is called in reports.
[[nodiscard]] inline std::string describe(const fp8_matrix& m) {
  const auto kind = core::concatenate(name_of(m.type()), ", ");
  if (m.block_rows() >= m.rows() && m.block_cols() >= m.cols()) {
    return kind + "one scale";
  }
  if (m.block_rows() == 1 && m.block_cols() >= m.cols()) {
    return kind + "a scale for each row";
  }
  if (m.block_cols() == 1 && m.block_rows() >= m.rows()) {
    return kind + "a scale for each column";
  }
  return core::concatenate(kind, m.block_rows(), "×", m.block_cols(), " blocks");
}
template <class M>
  requires std::same_as<M, fp4_matrix> || std::same_as<M, turned_fp4_matrix>
[[nodiscard]] std::string describe(const M& m) {
  const bool is_mx = m.group() == 32 && m.scales().type() == scale_type::e8m0;
  const bool is_nv = m.group() == 16 && m.scales().type() == scale_type::e4m3;
  return core::concatenate(is_mx ? "MXFP4" : is_nv ? "NVFP4" : "FP4 E2M1", ", groups of ", m.group());
}
/// ", groups of 32"; nothing where one group is a row.
template <class M>
[[nodiscard]] std::string groups_of(const M& m) {
  return m.group() < m.cols() ? core::concatenate(", groups of ", m.group()) : "";
}
[[nodiscard]] inline std::string describe(const int8_matrix& m) {
  const bool of_some_rows = m.block_rows() > 1 && m.block_rows() < m.rows();
  if (m.block_rows() > 1 && m.block_rows() >= m.rows() && m.group() == 1 && m.cols() > 1) {
    return "int8, a scale for each column";
  }
  return of_some_rows || (m.block_rows() > 1 && m.group() < m.cols())
             ? core::concatenate("int8, ", m.block_rows(), "×", m.group(), " blocks")
             : "int8" + groups_of(m);
}
[[nodiscard]] inline std::string describe(const pack_quantized_matrix& m) {
  return core::concatenate("int", m.bits(), groups_of(m));
}
[[nodiscard]] inline std::string describe(const mlx_matrix& m) {
  return core::concatenate("MLX affine, ", m.bits(), " bits", groups_of(m));
}
[[nodiscard]] inline std::string describe(const awq_matrix& m) {
  return core::concatenate("AWQ int", m.bits(), groups_of(m));
}
[[nodiscard]] inline std::string describe(const gptq_matrix& m) {
  return core::concatenate("GPTQ int", m.bits(), groups_of(m));
}
[[nodiscard]] inline std::string describe(const nf4_matrix& m) {
  return core::concatenate("bitsandbytes 4 bits, blocks of ", m.blocksize());
}
[[nodiscard]] inline std::string describe(const ggml_matrix& m) { return std::string(name_of(m.type())); }

}  // namespace detail

/// A packed matrix of any format: a model of MatrixRows, like each of them. All decode to float or double, S:
/// codes and scales are widened, which is exact, then multiplied and added in S. In double most products of
/// what the files hold are exact.
class any_matrix {
 public:
  using alternatives =
      std::variant<fp8_matrix, fp4_matrix, turned_fp4_matrix, int8_matrix, pack_quantized_matrix, mlx_matrix,
                   awq_matrix, gptq_matrix, nf4_matrix, ggml_matrix>;

  template <class M>
    requires std::constructible_from<alternatives, M> && (!std::same_as<std::remove_cvref_t<M>, any_matrix>)
  any_matrix(M&& matrix) : matrix_(std::forward<M>(matrix)) {}

  /// The format itself, for std::visit.
  [[nodiscard]] const alternatives& format() const noexcept { return matrix_; }
  [[nodiscard]] index_t rows() const {
    return std::visit([](const auto& m) { return m.rows(); }, matrix_);
  }
  [[nodiscard]] index_t cols() const {
    return std::visit([](const auto& m) { return m.cols(); }, matrix_);
  }
  template <Accumulator S>
  void load_row(index_t f, S* out) const {
    std::visit([&](const auto& m) { m.load_row(f, out); }, matrix_);
  }
  /// All of it, [rows, cols] row-major: the same bits as row after row, and faster for AWQ and GPTQ.
  template <Accumulator S>
  void load_all(S* out) const {
    std::visit(
        [out](const auto& m) {
          if constexpr (requires { m.load_all(out); }) {
            m.load_all(out);
          } else {
            for (index_t f = 0; f < m.rows(); ++f) {
              m.load_row(f, out + f * m.cols());
            }
          }
        },
        matrix_);
  }
  /// What it is, for people: "FP8 E4M3, 128×128 blocks", "MXFP4, groups of 32", "int4, groups of 32", "Q4_K".
  [[nodiscard]] std::string description() const {
    return std::visit([](const auto& m) { return detail::describe(m); }, matrix_);
  }

 private:
  alternatives matrix_;
};

}  // namespace packed
MPIROUTER_END
