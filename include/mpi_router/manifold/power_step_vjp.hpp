// The vector-Jacobian product of the step: gradients to the row and to the gate matrix.
//
// With z = rM, ẑ = z/‖z‖ and the incoming gradient ḡ of r′ = C ẑ:
//   z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)),   r̄ = z̄M,   Ā = (Ar) z̄ᵀ + (Az̄) rᵀ.
// So Ā has rank 2 at most, ⟨r̄, r⟩ = 0 and ⟨Ā, A⟩ = 0: r′ depends on neither length.
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/manifold/rank2.hpp>

#include <array>

MPIROUTER_BEGIN

namespace detail {

/// C/‖z‖ = factor · 2^(row + dual), its power of two shared between r and z̄ so that A times either stays in
/// range.
template <Accumulator S>
struct pullback_scale {
  S factor;
  int row;
  int dual;

  pullback_scale(const saved_norm<S>& image, S radius) noexcept {
    const scaled<S> quotient = (scaled<S>(radius).normalized() / image).normalized();
    factor = quotient.value;
    dual = quotient.exponent / 2;
    row = quotient.exponent - dual;
  }
  /// The same for this row: what is nearly across all that A sees may itself be too long for its half.
  pullback_scale(const saved_norm<S>& image, S radius, const vector_view<const S>& row_itself) noexcept
      : pullback_scale(image, radius) {
    if (row <= 0) return;
    const auto largest = std::bit_cast<S>(largest_magnitude_bits<S>(row_itself));
    const int most = std::numeric_limits<S>::max_exponent - 2 - (largest > S{0} ? std::ilogb(largest) : 0);
    if (row > most) {
      dual += row - most;
      row = most;
    }
  }
};

/// dual = z̄ / 2^scale.row = factor · 2^scale.dual · (ḡ − ẑ(ẑ·ḡ)), with ẑ = r′/C. dual may be grad.
template <Accumulator S>
void project_gradient(vector_view<const S> new_row, vector_view<const S> grad, const pullback_scale<S>& scale,
                      S radius, vector_view<S> dual) noexcept {
  const scaled_vector<S> z(new_row, scaled<S>(S{1}) / scaled<S>(radius).normalized());
  const S along = sum_terms<S>(grad.size(), [&](index_t i) { return z[i] * grad[i]; });
  for (index_t i = 0; i < grad.size(); ++i) {
    dual[i] = grad[i] - along * z[i];
  }
  scale_into(dual, dual, {scale.factor, scale.dual});
}

/// What A is multiplied with: factors.row = r · 2^e and factors.dual_row = z̄ / 2^e. Returns e: r̄ = 2^e ·
/// dual_row M.
template <Accumulator S>
[[nodiscard]] int prepare_pullback(vector_view<const S> row, vector_view<const S> new_row,
                                   const saved_norm<S>& saved, vector_view<const S> grad, S radius,
                                   const rank2_factors<S>& factors) noexcept {
  const pullback_scale<S> scale(saved, radius, row);
  scale_into(row, factors.row, {S{1}, scale.row});
  project_gradient<S>(new_row, grad, scale, radius, factors.dual_row);
  return scale.row;
}

template <Accumulator S>
void set_zero(const rank2_factors<S>& factors) noexcept {
  for (const auto& v : {factors.projection, factors.dual_row, factors.dual_projection, factors.row}) {
    fill_zero(v);
  }
}

/// y = A r, w = A z̄, image = wA: three passes over A.
template <FactoredGramOperator Op>
void pull_back(Op& op, const rank2_factors<scalar_of<Op>>& factors, const vector_view<scalar_of<Op>>& image) {
  op.project(factors.row, factors.projection);
  op.project(factors.dual_row, factors.dual_projection);
  op.lift(factors.dual_projection, image);
}

/// The gradient to a row that had no step: it went through unchanged, or became zero.
template <Accumulator S>
void degenerate_gradient(vector_view<const S> grad, vector_view<S> grad_row, degenerate_row policy) {
  const bool keep = keeps(policy);
  for (index_t i = 0; i < grad.size(); ++i) {
    grad_row[i] = keep ? grad[i] : S{0};
  }
}

template <Accumulator S>
void expect_factors_apart(const rank2_factors<S>& factors, const vector_view<const S>& row,
                          const vector_view<const S>& new_row, const vector_view<const S>& grad,
                          const vector_view<S>& grad_row) {
  const std::array all{named_range{"the projection", addresses(factors.projection)},
                       named_range{"the dual projection", addresses(factors.dual_projection)},
                       named_range{"the scaled row", addresses(factors.row)},
                       named_range{"the dual row", addresses(factors.dual_row)},
                       named_range{"the row", addresses(row)},
                       named_range{"the new row", addresses(new_row)},
                       named_range{"the gradient to the row", addresses(grad_row)},
                       named_range{"the gradient", addresses(grad)}};
  for (std::size_t i = 0; i < 4; ++i) {
    const std::size_t end = i == 3 ? all.size() - 1 : all.size();  // dual_row may be grad
    expect_apart("power_step_vjp", all[i], std::span(all).subspan(i + 1, end - i - 1));
  }
}

}  // namespace detail

/// The gradient to the row alone, M held constant (detached): r̄ = z̄M. One application of M.
///
/// new_row and `saved` are what power_step gave for the same operator, radius and policy; grad is ḡ, the
/// gradient of new_row. new_row, grad, grad_row and scratch have D elements; grad_row may be grad, scratch
/// overlaps nothing. A row that had no step passes ḡ on where the policy kept it, and zero where it became
/// zero. Gradients that S cannot hold, as of rows nearly across all that A sees, are not finite. Throws
/// usage_error on sizes, overlap, radius ≤ 0.
template <GramOperator Op>
void power_step_vjp(Op&& op, vector_view<const scalar_of<Op>> new_row, const saved_norm<scalar_of<Op>>& saved,
                    vector_view<const scalar_of<Op>> grad, scalar_of<Op> radius,
                    vector_view<scalar_of<Op>> grad_row, vector_view<scalar_of<Op>> scratch,
                    degenerate_row policy = degenerate_row::keep) {
  using S = scalar_of<Op>;
  detail::expect_radius("power_step_vjp", radius);
  detail::expect_same_size("power_step_vjp", new_row, grad, grad_row, scratch);
  detail::expect_apart("power_step_vjp", {"the scratch", detail::addresses(scratch)},
                       {{"the new row", detail::addresses(new_row)},
                        {"the gradient", detail::addresses(grad)},
                        {"the gradient to the row", detail::addresses(grad_row)}});
  if (saved.value == S{0}) {
    detail::degenerate_gradient<S>(grad, grad_row, policy);
    return;
  }
  const detail::pullback_scale<S> scale(saved, radius);
  detail::project_gradient<S>(new_row, grad, scale, radius, scratch);
  op.apply(scratch, grad_row);
  detail::scale_into(grad_row, grad_row, {S{1}, scale.row});
}

/// Both gradients, that to A in factored form: r̄ = z̄M and Ā = (Ar) z̄ᵀ + (Az̄) rᵀ. Two projections and one
/// lift: three passes over A here, one where a backend has a fused kernel (router/router_rows_vjp.hpp).
///
/// As above; `factors` are written (zeros where the row had no step) and overlap neither each other, nor
/// grad_row, nor an input, except that factors.dual_row may be grad.
template <FactoredGramOperator Op>
void power_step_vjp(Op&& op, vector_view<const scalar_of<Op>> row, vector_view<const scalar_of<Op>> new_row,
                    const saved_norm<scalar_of<Op>>& saved, vector_view<const scalar_of<Op>> grad,
                    scalar_of<Op> radius, vector_view<scalar_of<Op>> grad_row,
                    const rank2_factors<scalar_of<Op>>& factors,
                    degenerate_row policy = degenerate_row::keep) {
  using S = scalar_of<Op>;
  detail::expect_radius("power_step_vjp", radius);
  detail::expect_same_size("power_step_vjp", row, new_row, grad, grad_row, factors.row, factors.dual_row);
  detail::expect_same_size("power_step_vjp", factors.projection, factors.dual_projection);
  detail::expect_factors_apart(factors, row, new_row, grad, grad_row);
  if (saved.value == S{0}) {
    detail::degenerate_gradient<S>(grad, grad_row, policy);
    detail::set_zero(factors);
    return;
  }
  const int row_exponent = detail::prepare_pullback<S>(row, new_row, saved, grad, radius, factors);
  detail::pull_back(op, factors, grad_row);
  detail::scale_into(grad_row, grad_row, {S{1}, row_exponent});
}

MPIROUTER_END
