// The steps of a forward pulled back, the last first: what router_rows_vjp.hpp is made of.
#pragma once

#include <mpi_router/router/batched_experts.hpp>
#include <mpi_router/router/step_tape.hpp>

#include <utility>

MPIROUTER_BEGIN
namespace detail {

/// Of each step z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)), r̄ = z̄M, Ā = (Ar) z̄ᵀ + (Az̄) rᵀ; C is radius_of(i).
template <Accumulator S, class Experts, class Target, class Run, class Radius>
class backward_steps {
 public:
  backward_steps(const Experts& experts, const Target& target, const Run& executor,
                 const router_options& options, const Radius& radius_of, const vector_view<const S>& tape,
                 const vector_view<S>& workspace)
      : experts_(experts),
        target_(target),
        executor_(executor),
        options_(options),
        radius_of_(radius_of),
        saved_(tape, experts.shape(), options.steps) {
    const auto [n, f, d] = experts.shape();
    workspace_pieces<S> pieces(workspace);
    first_rows_ = pieces.matrix(n, d);
    incoming_ = pieces.matrix(n, d);
    outgoing_ = pieces.matrix(n, d);
    dual_rows_ = pieces.matrix(n, d);
    scaled_rows_ = pieces.matrix(n, d);
    projections_ = pieces.matrix(n, f);
    dual_projections_ = pieces.matrix(n, f);
    energies_ = pieces.vector(n);
    partial_ = pieces.vector(experts.partial());
  }

  /// The gradient to the rows of `router` from that of the rows after the last step.
  template <class Router, class Gradient>
  [[nodiscard]] matrix_view<S> run(const Router& router, const Gradient& grad_rows) {
    executor_(router.rows(), [&](index_t i) {
      copy_into<S>(router.row(i), first_rows_.row(i));
      copy_into<S>(grad_rows.row(i), incoming_.row(i));
    });
    for (index_t step = options_.steps - 1; step >= 0; --step) {
      prepare(step);
      multiply(step);
      finish(step);
      std::swap(incoming_, outgoing_);
    }
    return incoming_;
  }

 private:
  [[nodiscard]] bool is_last(index_t step) const { return step == options_.steps - 1; }
  /// Which of the factors' terms a step is; negative where A is not differentiated through it.
  [[nodiscard]] index_t term(index_t step) const {
    return step - (options_.steps - router_factors<S>::terms(options_));
  }
  [[nodiscard]] bool has_step(index_t step, index_t i) const { return saved_.norm(step, i).value != S{0}; }
  [[nodiscard]] rank2_factors<S> factors(index_t step, index_t i) const {
    const rank2_factors<S> scratch{projections_.row(i), dual_rows_.row(i), dual_projections_.row(i),
                                   scaled_rows_.row(i)};
    return term(step) >= 0 ? target_.factors(term(step), i, scratch) : scratch;
  }

  [[nodiscard]] matrix_view<const S> rows_before(index_t step) const {
    return step == 0 ? matrix_view<const S>(first_rows_) : saved_.rows(step - 1);
  }

  /// What the experts are multiplied with: r and z̄.
  void prepare(index_t step) {
    const matrix_view<const S> rows = rows_before(step);
    executor_(rows.rows(), [&](index_t i) {
      const auto f = factors(step, i);
      if (has_step(step, i)) {
        static_cast<void>(prepare_pullback<S>(rows.row(i), saved_.rows(step).row(i), saved_.norm(step, i),
                                              incoming_.row(i), radius_of_(i), f));
      } else {
        set_zero(f);
        if (term(step) >= 0) target_.degenerate(i, is_last(step), f);
      }
    });
  }
  /// r̄ = z̄M, and Ā where A is differentiated.
  void multiply(index_t step) {
    if (term(step) >= 0) {
      experts_.pull_back(
          target_, is_last(step), [&](index_t i) { return has_step(step, i); },
          [&](index_t i) { return factors(step, i); }, outgoing_, partial_, executor_);
    } else {
      experts_.multiply(dual_rows_, outgoing_, energies_, partial_, executor_);
    }
  }
  /// The powers of two that were taken out; and the gradient to rows that had no step.
  void finish(index_t step) {
    const matrix_view<const S> rows = rows_before(step);
    executor_(outgoing_.rows(), [&](index_t i) {
      const auto out = outgoing_.row(i);
      if (has_step(step, i)) {
        const pullback_scale<S> scale(saved_.norm(step, i), radius_of_(i), rows.row(i));
        scale_into<S>(vector_view<const S>(out), out, scaled<S>{S{1}, scale.row});
      } else {
        degenerate_gradient<S>(incoming_.row(i), out, options_.degenerate);
      }
    });
  }

  const Experts& experts_;
  const Target& target_;
  const Run& executor_;
  const router_options& options_;
  const Radius& radius_of_;
  step_tape<const S> saved_;
  matrix_view<S> first_rows_, incoming_, outgoing_, dual_rows_, scaled_rows_, projections_, dual_projections_;
  vector_view<S> energies_, partial_;
};

}  // namespace detail
MPIROUTER_END
