// What the batched step is asked to do, and what it tells besides the rows. Plain data.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/core/options.hpp>
#include <mpi_router/manifold/power_step_vjp.hpp>

#include <span>

MPIROUTER_BEGIN_TYPES

/// Through which steps the gradient reaches the gate matrices. The gradient to the router rows always goes
/// through all steps; where A is left out, M is a constant (detached) there.
enum class differentiate : unsigned char {
  all,   ///< A of every step: the exact gradient, as the authors' code has it
  last,  ///< A of the last step only
  none   ///< M detached everywhere: no gradient to A
};

/// How the batched step is taken.
struct router_options {
  router_radius radius{};
  index_t steps = 1;                                 ///< power steps from the rows given, each retracted
  degenerate_row degenerate = degenerate_row::keep;  ///< what a row without a step becomes
  differentiate through = differentiate::all;        ///< used by the backward
};

/// What router_rows tells besides the rows. Each may be left empty: not wanted.
template <Accumulator S>
struct router_by_products {
  std::span<status>
      statuses{};  ///< N: what became of each row; of the first step that failed, if there are several
  vector_view<S> rayleigh{};  ///< N: ρ of the row that the last step started from
  vector_view<S> cosine{};    ///< N: cos of the angle of the last step, in (0, 1]
  vector_view<S> tape{};      ///< router_tape_size(…) elements: what the backward needs
};

/// The type that the batched step computes in: double where the experts or the rows are stored in double.
template <Scalar T, Scalar R>
using router_scalar_t =
    std::conditional_t<std::same_as<accumulator_t<T>, double> || std::same_as<accumulator_t<R>, double>,
                       double, float>;

/// Elements of the tape: of each expert the rows after each step, and their norms before the retraction.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t router_tape_size(
    const expert_shape& shape, const router_options& options) noexcept {
  return shape.num_experts * options.steps * (shape.hidden_dim + 2);
}

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
