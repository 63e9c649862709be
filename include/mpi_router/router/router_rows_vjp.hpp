// The backward of the batched step: gradients to the router rows and to the gate matrices, materialised,
// accumulated, or factored.
#pragma once

#include <mpi_router/router/pullback.hpp>

MPIROUTER_BEGIN

/// Elements of scratch that the backward needs: N · (5D + 2F + 1), and partial images as in the forward.
[[nodiscard]] constexpr index_t router_rows_vjp_workspace(const expert_shape& shape) noexcept {
  return shape.num_experts * (5 * shape.hidden_dim + 2 * shape.ffn_dim + 1) + apply_experts_workspace(shape);
}

namespace detail {

template <Accumulator S, class T, class R, class GR, class RG, class Target, class Backend, class Run>
void run_router_rows_vjp(const char* what, const expert_batch_view<T>& experts, const matrix_view<R>& router,
                         const vector_view<const S>& tape, const matrix_view<GR>& grad_rows,
                         const router_options& options, const matrix_view<RG>& grad_router,
                         gradient_mode mode, const Target& target, const vector_view<S>& workspace,
                         const Backend& backend, const Run& executor) {
  using element = std::remove_const_t<T>;
  const index_t n = experts.num_experts();
  const index_t f = experts.ffn_dim();
  const index_t d = experts.hidden_dim();
  const S radius = expect_options<S>(what, options, experts.total_experts());
  const bool accumulate = accumulates(mode);
  expect_rows(what, "the router", experts, router);
  expect_rows(what, "the gradient of the rows", experts, grad_rows);
  expect_rows(what, "the gradient to the router", experts, grad_router);
  expect_workspace(what, workspace, router_rows_vjp_workspace(experts.shape()));
  expect(tape.size() >= router_tape_size(experts.shape(), options) && tape.is_contiguous(), what,
         ": the tape has ", tape.size(), " elements, not ", router_tape_size(experts.shape(), options));
  const named_range work{"the workspace",
                         first_elements(workspace, router_rows_vjp_workspace(experts.shape()))};
  const named_range to_router{"the gradient to the router", addresses(grad_router)};
  const named_range input{"the router", addresses(router)};
  const named_range of_rows{"the gradient of the rows", addresses(grad_rows)};
  const named_range tape_range{"the tape", first_elements(tape, router_tape_size(experts.shape(), options))};
  expect_experts_apart(what, experts, {to_router, work});
  expect_apart(what, to_router, {input, tape_range, work});  // it may be the gradient of the rows
  expect_apart(what, work, {input, of_rows, tape_range});
  target.for_each_range([&](const address_range& range) {
    const named_range to_experts{"the gradient to the experts", range};
    expect_experts_apart(what, experts, {to_experts});
    expect_apart(what, to_experts, {input, of_rows, tape_range, to_router, work});
  });

  workspace_pieces<S> pieces(workspace);
  const matrix_view<S> first_rows = pieces.matrix(n, d);
  matrix_view<S> incoming = pieces.matrix(n, d);
  matrix_view<S> outgoing = pieces.matrix(n, d);
  const matrix_view<S> dual_rows = pieces.matrix(n, d);
  const matrix_view<S> scaled_rows = pieces.matrix(n, d);
  const matrix_view<S> projections = pieces.matrix(n, f);
  const matrix_view<S> dual_projections = pieces.matrix(n, f);
  const vector_view<S> energies = pieces.vector(n);
  const vector_view<S> partial = pieces.vector(apply_experts_workspace(experts.shape()));

  const step_tape<const S> saved(tape, experts.shape(), options.steps);
  executor(n, [&](index_t i) {
    load_row<S>(router.row(i), first_rows.row(i));
    load_row<S>(grad_rows.row(i), incoming.row(i));
  });
  const index_t last = options.steps - 1;
  const index_t first_differentiated = options.steps - router_factors<S>::terms(options);
  for (index_t step = last; step >= 0; --step) {
    const matrix_view<const S> rows = step == 0 ? matrix_view<const S>(first_rows) : saved.rows(step - 1);
    const index_t term = step - first_differentiated;
    const bool through = term >= 0;
    const auto factors_of = [&](index_t i) -> rank2_factors<S> {
      const rank2_factors<S> scratch{projections.row(i), dual_rows.row(i), dual_projections.row(i),
                                     scaled_rows.row(i)};
      return through ? target.factors(term, i, scratch) : scratch;
    };
    const auto has_step = [&](index_t i) { return saved.norm(step, i).value != S{0}; };

    executor(n, [&](index_t i) {  // what the experts are multiplied with
      const auto factors = factors_of(i);
      if (has_step(i)) {
        static_cast<void>(prepare_pullback<S>(rows.row(i), saved.rows(step).row(i), saved.norm(step, i),
                                              incoming.row(i), radius, factors));
      } else {
        set_zero(factors);
        if (through) target.degenerate(i, step == last, factors);
      }
    });
    if (through) {
      pull_experts<S>(experts, outgoing, partial, executor,
                      [&](index_t i, index_t first, index_t count, const vector_view<S>& image) {
                        if (has_step(i) && count > 0) {
                          const matrix_view<const element> a = experts[i];
                          target.pull(backend, i, first, step == last, a.middle_rows(first, count),
                                      part_of(factors_of(i), first, count), image);
                        } else {
                          fill_zero(image);
                        }
                      });
    } else {
      apply_experts(backend, experts, dual_rows, outgoing, energies, partial, executor);
    }
    executor(n, [&](index_t i) {  // and what comes of it
      const auto out = outgoing.row(i);
      if (has_step(i)) {
        const pullback_scale<S> scale(saved.norm(step, i), radius);
        scale_into<S>(vector_view<const S>(out), out, scaled<S>{S{1}, scale.row});
      } else {
        degenerate_gradient<S>(incoming.row(i), out, options.degenerate);
      }
    });
    std::swap(incoming, outgoing);
  }
  executor(n, [&](index_t i) {
    const auto out = grad_router.row(i);
    for (index_t k = 0; k < d; ++k) {
      const S value = incoming(i, k);
      out[k] = narrow<RG>(accumulate ? widen<S>(out[k]) + value : value);
    }
  });
}

}  // namespace detail

/// The backward of router_rows: r̄ to grad_router and Ā to grad_experts, both written or both added to what is
/// there.
///
/// experts, router, options: as in the forward; tape: what it saved; grad_rows: the gradient of its output,
/// [N, D]; grad_router: [N, D]; grad_experts: like the experts, in any layout and storage type; workspace:
/// router_rows_vjp_workspace(shape) elements of scratch. What is written lies apart from all else, except
/// that grad_router may be grad_rows. The gradient of a gate matrix lies in its row space and that of the
/// row's image: two outer products a step, added in storage of the gradient (one rounding a step).
/// options.through says through which steps A is differentiated: `none` is router_rows_vjp_detached.
///
/// With a backend that has the fused read: one read of the experts and one update of the gradient a step;
/// others read three times. Nothing is allocated; tasks as in the forward; bitwise the same for every
/// executor. A row without a step passes its gradient on as options.degenerate says, and gives none to A.
/// Throws usage_error on shapes and overlap; each pair of experts and gradients is compared where both are
/// tables of pointers, whole batches where not.
template <Scalar T, Scalar R, Scalar GR, WritableScalar RG, WritableScalar G, class Backend = reference,
          class Run = serial_executor, Accumulator S = router_scalar_t<T, R>>
  requires DenseBackend<Backend, std::remove_const_t<T>, S>
void router_rows_vjp(const expert_batch_view<T>& experts, const matrix_view<R>& router,
                     std::type_identity_t<vector_view<const S>> tape, const matrix_view<GR>& grad_rows,
                     const router_options& options, const matrix_view<RG>& grad_router,
                     const expert_batch_view<G>& grad_experts, gradient_mode mode,
                     std::type_identity_t<vector_view<S>> workspace, const Backend& backend = {},
                     const Run& executor = {}) {
  constexpr const char* what = "router_rows_vjp";
  detail::expect(
      options.through != differentiate::none,
      "router_rows_vjp: nothing is differentiated; router_rows_vjp_detached takes no gradient to A");
  const auto [n, f, d] = experts.shape();
  const auto [gn, gf, gd] = grad_experts.shape();
  detail::expect(experts.shape() == grad_experts.shape(), what, ": the experts are [", n, ", ", f, ", ", d,
                 "], their gradient is [", gn, ", ", gf, ", ", gd, "]");
  detail::run_router_rows_vjp<S>(what, experts, router, tape, grad_rows, options, grad_router, mode,
                                 detail::into_matrices<S, G>{grad_experts, mode}, workspace, backend,
                                 executor);
}

/// The same with Ā in factored form, for those who never want it in memory: N · 2(F + D) numbers a step in
/// place of N · F · D. `mode` is that of grad_router; the factors are written. add_factors turns them into
/// matrices.
template <Scalar T, Scalar R, Scalar GR, WritableScalar RG, class Backend = reference,
          class Run = serial_executor, Accumulator S = router_scalar_t<T, R>>
  requires DenseBackend<Backend, std::remove_const_t<T>, S>
void router_rows_vjp_factored(const expert_batch_view<T>& experts, const matrix_view<R>& router,
                              std::type_identity_t<vector_view<const S>> tape,
                              const matrix_view<GR>& grad_rows, const router_options& options,
                              const matrix_view<RG>& grad_router,
                              const std::type_identity_t<router_factors<S>>& factors, gradient_mode mode,
                              std::type_identity_t<vector_view<S>> workspace, const Backend& backend = {},
                              const Run& executor = {}) {
  constexpr const char* what = "router_rows_vjp_factored";
  detail::expect(factors.shape() == experts.shape() && factors.terms() == router_factors<S>::terms(options),
                 what, ": the factors have ", factors.terms(), " terms for other experts or options");
  detail::run_router_rows_vjp<S>(what, experts, router, tape, grad_rows, options, grad_router, mode,
                                 detail::into_factors<S>{factors}, workspace, backend, executor);
}

/// The gradient to the router rows alone, M constant in every step, whatever options.through says.
template <Scalar T, Scalar R, Scalar GR, WritableScalar RG, class Backend = reference,
          class Run = serial_executor, Accumulator S = router_scalar_t<T, R>>
  requires DenseBackend<Backend, std::remove_const_t<T>, S>
void router_rows_vjp_detached(const expert_batch_view<T>& experts, const matrix_view<R>& router,
                              std::type_identity_t<vector_view<const S>> tape,
                              const matrix_view<GR>& grad_rows, router_options options,
                              const matrix_view<RG>& grad_router, gradient_mode mode,
                              std::type_identity_t<vector_view<S>> workspace, const Backend& backend = {},
                              const Run& executor = {}) {
  options.through = differentiate::none;
  const router_factors<S> none({}, experts.shape(), options);
  detail::run_router_rows_vjp<S>("router_rows_vjp_detached", experts, router, tape, grad_rows, options,
                                 grad_router, mode, detail::into_factors<S>{none}, workspace, backend,
                                 executor);
}

/// gradient ← or += factor · Ā from its factors; factor = −lr takes a step of descent on the weights
/// themselves. O(terms · N · F · D), one task an expert. Throws usage_error on shapes.
template <Accumulator S, WritableScalar G, class Run = serial_executor>
void add_factors(const router_factors<S>& factors, const expert_batch_view<G>& gradient, gradient_mode mode,
                 std::type_identity_t<S> factor = S{1}, const Run& executor = {}) {
  const auto [n, f, d] = factors.shape();
  const auto [gn, gf, gd] = gradient.shape();
  detail::expect(factors.shape() == gradient.shape() && factors.terms() > 0, "add_factors: ", factors.terms(),
                 " factors for experts [", n, ", ", f, ", ", d, "] and a gradient of [", gn, ", ", gf, ", ",
                 gd, "]");
  static_cast<void>(core::accumulates(mode));  // what is wrong throws here, not in a task
  for (index_t i = 0; i < n; ++i) {
    static_cast<void>(gradient[i]);  // so does a null pointer in a table
  }
  executor(n, [&](index_t i) {
    for (index_t term = factors.terms() - 1; term >= 0; --term) {
      const bool first = term == factors.terms() - 1;
      add_rank2<S>(factors.at(term, i), gradient[i], first ? mode : gradient_mode::accumulate, factor);
    }
  });
}

MPIROUTER_END
