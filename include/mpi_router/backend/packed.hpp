// Packed gate matrices as operators that decode in registers: FP8, MXFP4, Q8_0, Q4_K. Other formats go row by
// row (gram_of_rows, core/matrix_rows.hpp).
#pragma once

// g++ 12 believes that its own AVX-512 headers use what they leave undefined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <mpi_router/backend/packed/elements.hpp>
#include <mpi_router/backend/packed/fp8.hpp>
#include <mpi_router/backend/packed/mxfp4.hpp>
#include <mpi_router/backend/packed/q4_k.hpp>
#include <mpi_router/backend/packed/q8_0.hpp>
#include <mpi_router/backend/packed/sweep.hpp>
#include <mpi_router/core/operands.hpp>

MPIROUTER_BEGIN

/// A view whose codes there are kernels for: fp8_view, mxfp4_view, q8_0_view, q4_k_view.
template <class View>
concept PackedView = requires { detail::kernels::packed_codes<View, xsimd::default_arch>::chunk; };

/// M = AᵀA of a packed gate matrix A [F, D], never unpacked. A model of GramOperator, FactoredGramOperator
/// and ScalableGramOperator. Build it with gram(). It holds the view, neither data nor scratch: any number of
/// threads may use one at once.
///
/// apply, project and lift: O(F·D), one read of the packed bytes, no allocation, at most 36 KiB of stack. Any
/// F and D that the format allows, any addresses; no read outside. Sums in float, in an order that depends on
/// shape, format and instruction set alone; codes and scales exact; a NaN or an infinity among them makes the
/// energy not finite; products are not guarded against overflow. Vectors with gaps go element by element,
/// tens of times slower. All throw usage_error on sizes, and where input and output overlap.
template <PackedView View, class Arch = xsimd::default_arch>
class packed_operator {
 public:
  using scalar = float;

  /// Throws usage_error where the view cannot be: negative extents, columns that are no whole blocks, null
  /// data, rows that overlap.
  explicit packed_operator(const View& a) : a_(a) { detail::kernels::packed_codes<View, Arch>::check(a); }

  [[nodiscard]] const View& view() const noexcept { return a_; }
  [[nodiscard]] index_t dimension() const noexcept { return a_.cols; }
  [[nodiscard]] index_t ffn_dim() const noexcept { return a_.rows; }

  /// u = xM = Σ_f ⟨a_f, x⟩ a_f, returns xMxᵀ.
  float apply(vector_view<const float> x, vector_view<float> u) const {
    detail::expect_operands("apply", *this, x, dimension(), u, dimension());
    return x.is_contiguous() && u.is_contiguous() ? kernels::apply(a_, x.data(), u.data())
                                                  : elements(a_).apply(x, u);
  }
  /// y = A x.
  void project(vector_view<const float> x, vector_view<float> y) const {
    detail::expect_operands("project", *this, x, dimension(), y, ffn_dim());
    x.is_contiguous() && y.is_contiguous() ? kernels::project(a_, x.data(), y.data())
                                           : elements(a_).project(x, y);
  }
  /// u = y A.
  void lift(vector_view<const float> y, vector_view<float> u) const {
    detail::expect_operands("lift", *this, y, ffn_dim(), u, dimension());
    y.is_contiguous() && u.is_contiguous() ? kernels::lift(a_, y.data(), u.data()) : elements(a_).lift(y, u);
  }
  /// apply for elements whose squares leave the range of float: A and x are divided by powers of two near
  /// their largest magnitudes.
  scaled_energy<float> apply_scaled(vector_view<const float> x, vector_view<float> u) const {
    detail::expect_operands("apply_scaled", *this, x, dimension(), u, dimension());
    const int a_exponent = elements(a_).exponent();
    const int x_exponent = elements::exponent_of(x);
    const float energy = elements(a_, -a_exponent).apply(x, u, -x_exponent);
    return {energy, 2 * a_exponent + x_exponent, 2 * (a_exponent + x_exponent)};
  }

 private:
  using kernels = detail::kernels::packed_kernels<View, Arch>;
  using elements = detail::kernels::packed_elements<View, Arch>;

  View a_;
};

/// The operator of one packed gate matrix; throws usage_error where the view cannot be. For router_rows:
///
///   router_rows([&](index_t i) { return gram(mxfp4_view{…}); }, …);
template <PackedView View>
[[nodiscard]] packed_operator<View> gram(const View& a) {
  return packed_operator<View>(a);
}

MPIROUTER_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
