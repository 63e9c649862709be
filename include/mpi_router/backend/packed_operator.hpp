// A packed gate matrix as an operator: the view says where it is, the kernels decode it in registers. Where
// the kernels come from is a parameter.
#pragma once

#include <mpi_router/backend/packed/elements.hpp>
#include <mpi_router/backend/packed_table.hpp>
#include <mpi_router/core/operands.hpp>

#include <array>
#include <utility>

MPIROUTER_BEGIN

/// A view whose codes there are kernels for: those of core/packed_views.hpp.
template <class View>
concept PackedView = requires(const View& a) { detail::kernels::packed_format<View>::check(a); };

/// M = AᵀA of a packed gate matrix A [F, D], never unpacked. A model of GramOperator, FactoredGramOperator
/// and ScalableGramOperator. Build it with gram(). It holds the view, neither data nor scratch: any number of
/// threads may use one at once. `Kernels` gives a core::packed_kernel_table for each view: compiled in
/// (packed.hpp) or chosen at run time (packed_dispatch.hpp).
///
/// apply, project and lift: O(F·D), one read of the packed bytes, no allocation, at most 36 KiB of stack. Any
/// F and D that the format allows, any addresses; no read outside. Sums in float, in an order that depends on
/// shape, format and instruction set alone; codes and scales exact; a NaN or an infinity among them makes the
/// energy not finite; products are not guarded against overflow. Vectors with gaps go element by element,
/// tens of times slower. All throw usage_error on sizes, and where input and output overlap.
template <PackedView View, class Kernels>
class packed_operator {
 public:
  using scalar = float;

  /// Throws usage_error where the view cannot be: negative extents, columns that are no whole blocks, null
  /// data, rows that overlap.
  explicit packed_operator(const View& a, Kernels kernels = {}) : a_(a), kernels_(kernels) {
    detail::kernels::packed_format<View>::check(a);
  }

  [[nodiscard]] const View& view() const noexcept { return a_; }
  [[nodiscard]] index_t dimension() const noexcept { return a_.cols; }
  [[nodiscard]] index_t ffn_dim() const noexcept { return a_.rows; }

  /// u = xM = Σ_f ⟨a_f, x⟩ a_f, returns xMxᵀ.
  float apply(vector_view<const float> x, vector_view<float> u) const {
    detail::expect_operands("apply", *this, x, dimension(), u, dimension());
    return x.is_contiguous() && u.is_contiguous() ? table().apply(a_, x.data(), u.data())
                                                  : elements(a_).apply(x, u);
  }
  /// y = A x.
  void project(vector_view<const float> x, vector_view<float> y) const {
    detail::expect_operands("project", *this, x, dimension(), y, ffn_dim());
    x.is_contiguous() && y.is_contiguous() ? table().project(a_, x.data(), y.data())
                                           : elements(a_).project(x, y);
  }
  /// u = y A.
  void lift(vector_view<const float> y, vector_view<float> u) const {
    detail::expect_operands("lift", *this, y, ffn_dim(), u, dimension());
    y.is_contiguous() && u.is_contiguous() ? table().lift(a_, y.data(), u.data()) : elements(a_).lift(y, u);
  }
  /// Whether images_in_double is there.
  [[nodiscard]] bool sums_in_double() const noexcept { return table().images_in_double != nullptr; }
  /// u[k] = x[k] M and their energies, of one or two contiguous vectors: one read of the packed bytes, sums
  /// in double of codes and scales as they are. Needs sums_in_double(). O(F·D) each.
  template <std::size_t Images>
    requires(Images == 1 || Images == 2)
  std::array<double, Images> images_in_double(const std::array<vector_view<const double>, Images>& x,
                                              const std::array<vector_view<double>, Images>& u) const {
    std::array<const double*, Images> from{};
    std::array<double*, Images> to{};
    for (std::size_t k = 0; k < Images; ++k) {
      for (std::size_t i = 0; i < Images; ++i) {
        detail::expect_operands("images_in_double", *this, x[i], dimension(), u[k], dimension());
        detail::expect(i == k || !detail::overlap(u[i], u[k]), "images_in_double: the outputs overlap");
      }
      detail::expect(x[k].is_contiguous() && u[k].is_contiguous() && sums_in_double(),
                     "images_in_double: needs kernels with sums in double, and vectors without gaps");
      from[k] = x[k].data();
      to[k] = u[k].data();
    }
    std::array<double, Images> energy{};
    table().images_in_double(a_, static_cast<index_t>(Images), from.data(), to.data(), energy.data());
    return energy;
  }
  /// apply for elements whose squares leave the range of float: A and x are divided by powers of two near
  /// their largest magnitudes.
  scaled_energy<float> apply_scaled(vector_view<const float> x, vector_view<float> u) const {
    detail::expect_operands("apply_scaled", *this, x, dimension(), u, dimension());
    const int a_exponent = elements(a_).exponent();
    return detail::scaled_gram<float>(
        a_exponent, x, [&](int x_exponent) { return elements(a_, -a_exponent).apply(x, u, -x_exponent); });
  }

 private:
  using elements = detail::kernels::packed_elements<View>;

  [[nodiscard]] const core::packed_kernel_table<View>& table() const noexcept {
    return kernels_.template table<View>();
  }

  View a_;
  [[no_unique_address]] Kernels kernels_;
};

/// The operator of a view by the kernels of `Backend`: those of `simd` are declared in packed.hpp, those
/// of `dispatch` in packed_dispatch.hpp.
template <PackedView View, class Backend>
using operator_in_registers = decltype(gram(std::declval<const View&>(), std::declval<const Backend&>()));

MPIROUTER_END
