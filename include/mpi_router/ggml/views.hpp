// Tensors of ggml as views: experts [N, F, D] and rows [N, D], by their type, ne[] and nb[].
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/ggml/quantised.hpp>
#include <mpi_router/ggml/tensor.hpp>

#include <cstdint>
#include <type_traits>
#include <variant>

MPIROUTER_BEGIN
namespace ggml {

namespace detail {

/// The element type of ggml that T is.
template <Scalar T>
[[nodiscard]] constexpr ::ggml_type type_of() noexcept {
  if constexpr (std::same_as<T, float>) {
    return GGML_TYPE_F32;
  } else if constexpr (std::same_as<T, bf16>) {
    return GGML_TYPE_BF16;
  } else if constexpr (std::same_as<T, f16>) {
    return GGML_TYPE_F16;
  } else {
    static_assert(std::same_as<T, double>, "ggml has no such element type");
    return GGML_TYPE_F64;
  }
}

/// Throws usage_error where its elements are not T, or lie where T cannot be read.
template <Scalar T>
void expect_elements(const ::ggml_tensor& t) {
  expect(t.type == type_of<T>(), t, "elements of ", ggml_type_name(type_of<T>()), " are asked of it");
  for (int axis = 0; axis < 4; ++axis) {
    expect(t.ne[axis] <= 1 || t.nb[axis] % sizeof(T) == 0, t, "along axis ", axis, " its elements are ",
           t.nb[axis], " bytes apart, no multiple of their ", sizeof(T));
  }
  expect_host(t);
  expect(reinterpret_cast<std::uintptr_t>(t.data) % alignof(T) == 0, t, "its data is not aligned to ",
         alignof(T), " bytes");
}

/// From one element to the next along an axis, in elements.
template <Scalar T>
[[nodiscard]] index_t stride(const ::ggml_tensor& t, int axis) noexcept {
  return static_cast<index_t>(t.nb[axis] / sizeof(T));
}

template <Scalar T>
[[nodiscard]] expert_batch_view<T> view_of_experts(const ::ggml_tensor* t) {
  using element = std::remove_const_t<T>;
  const expert_shape shape = shape_of_experts(t);
  expect_elements<element>(*t);
  expect_data(*t);
  return experts_strided(
      static_cast<T*>(t->data), shape,
      {.expert = stride<element>(*t, 2), .ffn = stride<element>(*t, 1), .hidden = stride<element>(*t, 0)});
}

/// ne = [D, N]. Throws usage_error on a third axis.
inline void expect_matrix(const ::ggml_tensor* t) {
  expect_tensor(t, "rows");
  expect(t->ne[2] == 1 && t->ne[3] == 1, *t, "rows are of two axes, [D, N]");
}

template <Scalar T>
[[nodiscard]] matrix_view<T> view_of_rows(const ::ggml_tensor* t) {
  using element = std::remove_const_t<T>;
  expect_matrix(t);
  expect_elements<element>(*t);
  expect_data(*t);
  return {static_cast<T*>(t->data), t->ne[1], t->ne[0], stride<element>(*t, 1), stride<element>(*t, 0)};
}

}  // namespace detail

/// The gate matrices of a tensor of T: ne = [D, F, N], as mul_mat and mul_mat_id have weights, or [D, F] of
/// one expert. Any nb[]: a ggml_view_3d of the gate half of fused gate and up rows, a ggml_permute of
/// [N, D, F]. Nothing is copied; the tensor's memory must outlive the view. O(1).
///
/// Throws usage_error that names the tensor where it is of another type or of four axes, strides are no whole
/// elements, it has no data, or lies in a buffer that is no host memory.
template <Scalar T>
[[nodiscard]] expert_batch_view<const T> experts(const ::ggml_tensor* t) {
  return detail::view_of_experts<const T>(t);
}
/// The same, to write to.
template <Scalar T>
[[nodiscard]] expert_batch_view<T> experts(::ggml_tensor* t) {
  return detail::view_of_experts<T>(t);
}

/// Router rows of a tensor of T, ne = [D, N]: N × D. Any nb[]. Errors as of experts().
template <Scalar T>
[[nodiscard]] matrix_view<const T> rows(const ::ggml_tensor* t) {
  return detail::view_of_rows<const T>(t);
}
/// The same, to write to.
template <Scalar T>
[[nodiscard]] matrix_view<T> rows(::ggml_tensor* t) {
  return detail::view_of_rows<T>(t);
}

/// Experts of a type that is known when the program runs: for std::visit.
using any_experts = std::variant<expert_batch_view<const float>, expert_batch_view<const bf16>,
                                 expert_batch_view<const f16>, quantised_experts>;
/// Rows of such a type.
using any_rows = std::variant<matrix_view<const float>, matrix_view<const bf16>, matrix_view<const f16>>;

namespace detail {

/// f(T) for the element type of a tensor, float, bf16 or f16; `other()` for all others.
template <class F, class Other>
auto with_element(const ::ggml_tensor& t, const F& f, const Other& other) {
  switch (t.type) {
    case GGML_TYPE_F32: return f(float{});
    case GGML_TYPE_BF16: return f(bf16{});
    case GGML_TYPE_F16: return f(f16{});
    default: return other();
  }
}

/// What experts(t) would refuse, except data that are not there yet. Returns the shape.
inline expert_shape expect_experts(const ::ggml_tensor* t) {
  const expert_shape shape = shape_of_experts(t);
  with_element(*t, [&]<class T>(T) { expect_elements<T>(*t); }, [&] { expect_blocks(*t); });
  return shape;
}
/// What rows(t) would refuse, except for data.
inline void expect_rows(const ::ggml_tensor* t) {
  expect_matrix(t);
  with_element(
      *t, [&]<class T>(T) { expect_elements<T>(*t); }, [&] { refuse(*t, "rows are F32, BF16 or F16"); });
}

}  // namespace detail

/// The experts of a tensor of any type: dense, F32, BF16 or F16, or quantised. O(1). Throws usage_error as
/// experts<T>, and for types that ggml itself does not decode.
[[nodiscard]] inline any_experts experts(const ::ggml_tensor* t) {
  detail::expect_tensor(t, "experts");
  return detail::with_element(
      *t, [&]<class T>(T) { return any_experts(experts<T>(t)); },
      [&] { return any_experts(quantised_experts(t)); });
}
/// The rows of a tensor of F32, BF16 or F16. Throws usage_error as rows<T>, and for other types.
[[nodiscard]] inline any_rows rows(const ::ggml_tensor* t) {
  detail::expect_rows(t);
  return detail::with_element(
      *t, [&]<class T>(T) { return any_rows(rows<T>(t)); },
      [&]() -> any_rows { detail::refuse(*t, "rows are F32, BF16 or F16"); });
}

}  // namespace ggml
MPIROUTER_END
