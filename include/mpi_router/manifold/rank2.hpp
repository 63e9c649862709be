// The gradient to a gate matrix as two outer products, and what adds them up.
#pragma once

#include <mpi_router/core/options.hpp>
#include <mpi_router/core/views.hpp>

MPIROUTER_BEGIN_TYPES

/// The gradient to A in factored form, Ā = projection · dual_rowᵀ + dual_projection · rowᵀ: two outer
/// products in F + D numbers each. Up to a power of two moved between the factors of each product, so that
/// none leaves the range of S, they are Ar, z̄, Az̄ and r.
template <Accumulator S>
struct rank2_factors {
  vector_view<S> projection;       ///< F elements, Ar
  vector_view<S> dual_row;         ///< D elements, z̄
  vector_view<S> dual_projection;  ///< F elements, Az̄
  vector_view<S> row;              ///< D elements, r
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

namespace detail {

/// out ← or += factor · (a bᵀ + c dᵀ), row by row.
template <Accumulator S, Scalar G>
void add_outer(const matrix_view<G>& out, const vector_view<S>& a, const vector_view<S>& b,
               const vector_view<S>& c, const vector_view<S>& d, gradient_mode mode, S factor) {
  const auto run = [&](auto stride, auto stride_b, auto stride_d, auto write) {
    for (index_t i = 0; i < out.rows(); ++i) {
      const S left = factor * a[i];
      const S right = factor * c[i];
      G* const row = out.data() + i * out.row_stride();
      for (index_t j = 0; j < out.cols(); ++j) {
        const S value = left * b.data()[j * stride_b] + right * d.data()[j * stride_d];
        row[j * stride] = narrow<G>(write ? value : widen<S>(row[j * stride]) + value);
      }
    }
  };
  const auto with_strides = [&](auto write) {
    constexpr std::integral_constant<index_t, 1> one{};
    if (out.col_stride() == 1 && b.is_contiguous() && d.is_contiguous()) {
      run(one, one, one, write);
    } else {
      run(out.col_stride(), b.stride(), d.stride(), write);
    }
  };
  if (core::accumulates(mode)) {
    with_strides(std::false_type{});
  } else {
    with_strides(std::true_type{});
  }
}

}  // namespace detail

/// Ā ← or += projection · dual_rowᵀ + dual_projection · rowᵀ, in the storage of `gradient` ([F, D], any
/// strides), times `factor` (−lr takes a step of descent without Ā ever in memory). O(F·D). Throws
/// usage_error on sizes.
template <Accumulator S, WritableScalar G>
void add_rank2(const rank2_factors<S>& factors, const matrix_view<G>& gradient, gradient_mode mode,
               std::type_identity_t<S> factor = S{1}) {
  const index_t ffn_dim = factors.projection.size();
  const index_t dimension = factors.row.size();
  core::expect(gradient.rows() == ffn_dim && gradient.cols() == dimension, "add_rank2: the gradient is [",
               gradient.rows(), ", ", gradient.cols(), "], the factors have F = ", ffn_dim,
               ", D = ", dimension);
  const auto distance = [](index_t stride) { return stride < 0 ? -stride : stride; };
  if (distance(gradient.row_stride()) < distance(gradient.col_stride())) {  // stored [D, F]
    detail::add_outer<S>(gradient.transposed(), factors.dual_row, factors.projection, factors.row,
                         factors.dual_projection, mode, factor);
  } else {
    detail::add_outer<S>(gradient, factors.projection, factors.dual_row, factors.dual_projection, factors.row,
                         mode, factor);
  }
}

MPIROUTER_END
