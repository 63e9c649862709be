// Quantised tensors of ggml: the gate matrix of each expert as rows that are decoded one at a time, and as
// the views that backends decode in registers.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/core/matrix_rows.hpp>
#include <mpi_router/ggml/tensor.hpp>
#include <mpi_router/io/packed/views.hpp>

#include <optional>
#include <variant>

MPIROUTER_BEGIN
namespace ggml {

namespace detail {

/// ne = [D, F, N]. Throws usage_error on a fourth axis.
[[nodiscard]] inline expert_shape shape_of_experts(const ::ggml_tensor* t) {
  expect_tensor(t, "experts");
  expect(t->ne[3] == 1, *t, "experts are of three axes, [D, F, N]");
  return {.num_experts = t->ne[2], .ffn_dim = t->ne[1], .hidden_dim = t->ne[0]};
}

/// Whether packed::ggml_matrix decodes a type: the two enumerations have the same numbers.
[[nodiscard]] inline bool is_decoded_here(::ggml_type type) {
  const auto own = static_cast<packed::ggml_type>(type);
  return packed::is_known(own) && packed::is_decoded(own);
}

/// Throws usage_error where a quantised tensor cannot be decoded: a type that is not, rows that are cut
/// inside a block or are not contiguous, memory that is not the host's.
inline void expect_blocks(const ::ggml_tensor& t) {
  const ::ggml_type_traits& traits = *ggml_get_type_traits(t.type);
  expect(ggml_is_quantized(t.type) && (is_decoded_here(t.type) || traits.to_float != nullptr), t,
         "experts of this type are not decoded");
  const auto row_bytes = static_cast<std::size_t>(t.ne[0] / traits.blck_size) * traits.type_size;
  expect(t.ne[0] % traits.blck_size == 0, t, "its rows are no whole blocks of ", traits.blck_size);
  expect(t.nb[0] == traits.type_size, t, "its blocks must lie one after the other along D, not ", t.nb[0],
         " bytes apart");
  expect(t.ne[1] <= 1 || t.nb[1] >= row_bytes, t, "its rows of ", row_bytes, " bytes are ", t.nb[1],
         " bytes apart");
  if (!is_decoded_here(t.type)) {  // ggml reads its blocks as structs with halves in them
    constexpr std::size_t unit = sizeof(::ggml_fp16_t);
    expect(reinterpret_cast<std::uintptr_t>(t.data) % unit == 0 && (t.ne[1] <= 1 || t.nb[1] % unit == 0) &&
               (t.ne[2] <= 1 || t.nb[2] % unit == 0),
           t, "its blocks are not aligned to ", unit, " bytes, as ggml needs them");
  }
  expect_host(t);
}

/// A matrix whose rows ggml decodes. A model of MatrixRows.
struct matrix_of_traits {
  const std::byte* data;
  index_t ffn_dim;
  index_t hidden_dim;
  index_t row_bytes;
  ::ggml_to_float_t to_float;

  [[nodiscard]] index_t rows() const noexcept { return ffn_dim; }
  [[nodiscard]] index_t cols() const noexcept { return hidden_dim; }
  void load_row(index_t f, float* out) const { to_float(data + f * row_bytes, out, hidden_dim); }
};

}  // namespace detail

/// The gate matrix A, [F, D], of one expert of a quantised tensor, whose memory it must not outlive. A model
/// of MatrixRows: rows are decoded by packed::ggml_matrix where it knows the type, else by ggml's to_float,
/// and are the same floats, except for the scale 255 of MXFP4, which is NaN here and a number there.
class quantised_matrix {
 public:
  explicit quantised_matrix(const packed::ggml_matrix& matrix) : matrix_(matrix) {}
  explicit quantised_matrix(const detail::matrix_of_traits& matrix) : matrix_(matrix) {}

  [[nodiscard]] index_t rows() const {
    return std::visit([](const auto& m) { return m.rows(); }, matrix_);
  }
  [[nodiscard]] index_t cols() const {
    return std::visit([](const auto& m) { return m.cols(); }, matrix_);
  }
  void load_row(index_t f, float* out) const {
    std::visit([&](const auto& m) { m.load_row(f, out); }, matrix_);
  }
  /// As backends decode it in registers (Q8_0, Q4_K, MXFP4); empty for the other types.
  [[nodiscard]] std::optional<packed::any_view> view() const {
    const auto* const ours = std::get_if<packed::ggml_matrix>(&matrix_);
    return ours != nullptr ? packed::view_of(*ours) : std::nullopt;
  }

 private:
  std::variant<packed::ggml_matrix, detail::matrix_of_traits> matrix_;
};

/// The experts of a quantised tensor, ne = [D, F, N]; nb[1] and nb[2] as they are. It holds a pointer into
/// the tensor's memory, nothing else.
class quantised_experts {
 public:
  /// O(1). Throws usage_error that names the tensor: see experts().
  explicit quantised_experts(const ::ggml_tensor* t) : shape_(detail::shape_of_experts(t)), type_(t->type) {
    detail::expect_blocks(*t);
    detail::expect_data(*t);
    data_ = static_cast<const std::byte*>(t->data);
    row_bytes_ = static_cast<index_t>(t->nb[1]);
    expert_bytes_ = static_cast<index_t>(t->nb[2]);
  }

  [[nodiscard]] const expert_shape& shape() const noexcept { return shape_; }
  [[nodiscard]] index_t num_experts() const noexcept { return shape_.num_experts; }
  [[nodiscard]] ::ggml_type type() const noexcept { return type_; }

  /// Throws usage_error if i is out of range.
  [[nodiscard]] quantised_matrix operator[](index_t i) const {
    const auto [n, f, d] = shape_;
    core::expect(i >= 0 && i < n, "expert ", i, " out of ", n);
    const std::byte* const at = data_ + i * expert_bytes_;
    if (detail::is_decoded_here(type_)) {
      return quantised_matrix(
          packed::ggml_matrix(static_cast<packed::ggml_type>(type_), at, f, d, row_bytes_));
    }
    return quantised_matrix(
        detail::matrix_of_traits{at, f, d, row_bytes_, ggml_get_type_traits(type_)->to_float});
  }

 private:
  expert_shape shape_;
  ::ggml_type type_;
  const std::byte* data_ = nullptr;
  index_t row_bytes_ = 0;
  index_t expert_bytes_ = 0;
};

}  // namespace ggml
MPIROUTER_END
