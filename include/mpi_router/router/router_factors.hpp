// The gradient to the gate matrices in factored form, over one buffer.
#pragma once

#include <mpi_router/manifold/rank2.hpp>
#include <mpi_router/router/router_options.hpp>

MPIROUTER_BEGIN_TYPES

/// The gradient to the gate matrices as sums of outer products, two for each expert and step that is
/// differentiated: Ā_i = Σ_j projection_j dual_row_jᵀ + dual_projection_j row_jᵀ with j = s · N + i over the
/// steps s. Built over one buffer of size(…) elements.
template <Accumulator S>
class router_factors {
 public:
  /// Steps through which A is differentiated, the last so many.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr index_t terms(const router_options& options) {
    switch (options.through) {
      case differentiate::all: return options.steps;
      case differentiate::last: return 1;
      case differentiate::none: return 0;
    }
    core::unknown_value("differentiate", options.through);
  }
  /// Elements that the factors take: 2 (F + D) for each expert and term.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr index_t size(const expert_shape& shape,
                                                                      const router_options& options) {
    return terms(options) * shape.num_experts * 2 * (shape.ffn_dim + shape.hidden_dim);
  }

  /// Throws usage_error where the buffer is smaller than size(shape, options) or not contiguous.
  MPIROUTER_ALWAYS_INLINE router_factors(vector_view<S> buffer, const expert_shape& shape,
                                         const router_options& options)
      : data_(buffer.data()), shape_(shape), terms_(terms(options)) {
    core::expect(buffer.is_contiguous() && buffer.size() >= size(shape, options),
                 "router_factors: the buffer has ", buffer.size(), " elements, not ", size(shape, options));
  }

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE const expert_shape& shape() const noexcept { return shape_; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE index_t terms() const noexcept { return terms_; }
  /// All that the factors take of the buffer.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE vector_view<S> elements() const {
    return {data_, terms_ * shape_.num_experts * 2 * (shape_.ffn_dim + shape_.hidden_dim)};
  }
  /// The factors of one expert and term.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE rank2_factors<S> at(index_t term, index_t expert) const {
    core::expect(term >= 0 && term < terms_ && expert >= 0 && expert < shape_.num_experts,
                 "router_factors: term ", term, " of ", terms_, ", expert ", expert, " of ",
                 shape_.num_experts);
    const index_t f = shape_.ffn_dim;
    const index_t d = shape_.hidden_dim;
    S* const base = data_ + (term * shape_.num_experts + expert) * 2 * (f + d);
    return {{base, f}, {base + f, d}, {base + f + d, f}, {base + 2 * f + d, d}};
  }

 private:
  S* data_;
  expert_shape shape_;
  index_t terms_;
};

MPIROUTER_END_TYPES
