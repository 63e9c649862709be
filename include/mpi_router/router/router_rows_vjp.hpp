// The backward of the batched step: gradients to the router rows and to the gate matrices, materialised,
// accumulated, or factored.
#pragma once

#include <mpi_router/router/router_rows.hpp>

#include <utility>

MPIROUTER_BEGIN

/// A backend with the one read that the backward needs: y = A p, w = A q and u = wA.
template <class B, class T, class S>
concept PullbackBackend =
    DenseBackend<B, T, S> && requires(const B& backend, matrix_view<const T> a, vector_view<const S> in,
                                      vector_view<S> out) { backend.pull_back(a, in, in, out, out, out); };

/// A backend whose read also writes or adds y qᵀ + w pᵀ to a gradient of element type G as it goes.
template <class B, class T, class S, class G>
concept AccumulatingBackend =
    PullbackBackend<B, T, S> && requires(const B& backend, matrix_view<const T> a, vector_view<const S> in,
                                         vector_view<S> out, matrix_view<G> gradient, gradient_mode mode) {
      backend.pull_back(a, in, in, out, out, out, gradient, mode);
    };

namespace detail {

/// y = A p, w = A q, u = wA: one read of A where the backend has it, three where not.
template <Accumulator S, class T, class Backend>
void pull_back(const Backend& backend, const matrix_view<const T>& a, const rank2_factors<S>& factors,
               const vector_view<S>& image) {
  const vector_view<const S> p(factors.row);
  const vector_view<const S> q(factors.dual_row);
  if constexpr (PullbackBackend<Backend, T, S>) {
    backend.pull_back(a, p, q, factors.projection, factors.dual_projection, image);
  } else {
    backend.project(a, p, factors.projection);
    backend.project(a, q, factors.dual_projection);
    backend.lift(a, vector_view<const S>(factors.dual_projection), image);
  }
}

/// The gradient goes into matrices; the factors live in scratch.
template <Accumulator S, class G>
struct into_matrices {
  const expert_batch_view<G>& gradient;
  gradient_mode mode;

  [[nodiscard]] rank2_factors<S> factors(index_t, index_t, const rank2_factors<S>& scratch) const {
    return scratch;
  }

  template <class T, class Backend>
  void pull(const Backend& backend, index_t expert, bool first, const matrix_view<const T>& a,
            const rank2_factors<S>& f, const vector_view<S>& image) const {
    const gradient_mode at = first ? mode : gradient_mode::accumulate;
    if constexpr (AccumulatingBackend<Backend, T, S, G>) {
      backend.pull_back(a, vector_view<const S>(f.row), vector_view<const S>(f.dual_row), f.projection,
                        f.dual_projection, image, gradient[expert], at);
    } else {
      pull_back<S>(backend, a, f, image);
      add_rank2<S>(f, gradient[expert], at);
    }
  }
  void degenerate(index_t expert, bool first, const rank2_factors<S>& zeros) const {
    if (first && mode == gradient_mode::write) {
      add_rank2<S>(zeros, gradient[expert], mode);
    }
  }
};

/// The gradient stays in factors, which are the caller's.
template <Accumulator S>
struct into_factors {
  const router_factors<S>& all;

  [[nodiscard]] rank2_factors<S> factors(index_t term, index_t expert, const rank2_factors<S>&) const {
    return all.at(term, expert);
  }
  template <class T, class Backend>
  void pull(const Backend& backend, index_t, bool, const matrix_view<const T>& a, const rank2_factors<S>& f,
            const vector_view<S>& image) const {
    pull_back<S>(backend, a, f, image);
  }
  void degenerate(index_t, bool, const rank2_factors<S>&) const {}
};

template <Accumulator S>
void set_zero(const rank2_factors<S>& factors) noexcept {
  for (const auto& v : {factors.projection, factors.dual_row, factors.dual_projection, factors.row}) {
    fill_zero(v);
  }
}

/// Parts of the workspace of one expert.
template <Accumulator S>
struct pullback_scratch {
  vector_view<S> first_row;
  vector_view<S> incoming;
  vector_view<S> outgoing;
  rank2_factors<S> factors;

  pullback_scratch(const vector_view<S>& workspace, index_t expert, index_t f, index_t d) {
    S* at = workspace.data() + expert * (5 * d + 2 * f);
    const auto next = [&at](index_t size) { return vector_view<S>(std::exchange(at, at + size), size); };
    first_row = next(d);
    incoming = next(d);
    outgoing = next(d);
    factors.projection = next(f);
    factors.dual_row = next(d);
    factors.dual_projection = next(f);
    factors.row = next(d);
  }
};

template <Accumulator S, class T, class R, class GR, class RG, class Target, class Backend, class Run>
void run_router_rows_vjp(const char* what, const expert_batch_view<T>& experts, const matrix_view<R>& router,
                         const vector_view<const S>& tape, const matrix_view<GR>& grad_rows,
                         const router_options& options, const matrix_view<RG>& grad_router,
                         gradient_mode mode, const Target& target, const vector_view<S>& workspace,
                         const Backend& backend, const Run& executor) {
  const index_t n = experts.num_experts();
  const index_t f = experts.ffn_dim();
  const index_t d = experts.hidden_dim();
  expect_options(what, options, n);
  expect_rows(what, "the router", experts, router);
  expect_rows(what, "the gradient of the rows", experts, grad_rows);
  expect_rows(what, "the gradient to the router", experts, grad_router);
  expect_workspace(what, workspace, router_rows_vjp_workspace(experts.shape()));
  expect_apart(what, experts, grad_router);
  expect(!overlap(router, grad_router), what, ": the router and its gradient overlap");
  expect(tape.size() >= router_tape_size(experts.shape(), options) && tape.is_contiguous(), what,
         ": the tape has ", tape.size(), " elements, not ", router_tape_size(experts.shape(), options));

  const S radius = static_cast<S>(options.radius.of(n));
  executor(n, [&](index_t i) {
    const matrix_view<const std::remove_const_t<T>> a = experts[i];
    const expert_tape<const S> saved(tape, i, options.steps, d);
    pullback_scratch<S> scratch(workspace, i, f, d);
    load_row<S>(router.row(i), scratch.first_row);
    load_row<S>(grad_rows.row(i), scratch.incoming);
    const index_t last = options.steps - 1;
    for (index_t step = last; step >= 0; --step) {
      const vector_view<const S> row =
          step == 0 ? vector_view<const S>(scratch.first_row) : saved.row(step - 1);
      const vector_view<const S> grad(scratch.incoming);
      const bool through =
          options.through == differentiate::all || (options.through == differentiate::last && step == last);
      if (!through) {
        power_step_vjp(dense_operator<std::remove_const_t<T>, S, Backend>(a, backend), saved.row(step),
                       saved.norm(step), grad, radius, scratch.outgoing, scratch.factors.dual_row,
                       options.degenerate);
      } else {
        const auto factors =
            target.factors(options.through == differentiate::all ? step : index_t{0}, i, scratch.factors);
        if (saved.norm(step).value == S{0}) {
          degenerate_gradient<S>(grad, scratch.outgoing, options.degenerate);
          set_zero(factors);
          target.degenerate(i, step == last, factors);
        } else {
          const int exponent =
              prepare_pullback<S>(row, saved.row(step), saved.norm(step), grad, radius, factors);
          target.pull(backend, i, step == last, a, factors, scratch.outgoing);
          scale_into<S>(vector_view<const S>(scratch.outgoing), scratch.outgoing, scaled<S>{S{1}, exponent});
        }
      }
      std::swap(scratch.incoming, scratch.outgoing);
    }
    const auto out = grad_router.row(i);
    for (index_t k = 0; k < d; ++k) {
      const S value = scratch.incoming[k];
      out[k] = narrow<RG>(mode == gradient_mode::write ? value : widen<S>(out[k]) + value);
    }
  });
}

}  // namespace detail

/// The backward of router_rows: r̄ to grad_router and Ā to grad_experts, both written or both added to what is
/// there.
///
/// experts, router, options: as in the forward; tape: what it saved; grad_rows: the gradient of its output,
/// [N, D]; grad_router: [N, D]; grad_experts: like the experts, in any layout and storage type; workspace:
/// router_rows_vjp_workspace(shape) elements of scratch. The gradient of a gate matrix lies in its row space
/// and that of the row's image: two outer products a step, added in storage of the gradient (one rounding a
/// step). options.through says through which steps A is differentiated: `none` is router_rows_vjp_detached.
///
/// With a backend that has the fused read: one read of the experts and one update of the gradient a step;
/// others read three times. Nothing is allocated; one task an expert; bitwise the same for every executor. A
/// row without a step passes its gradient on as options.degenerate says, and gives none to A. Throws
/// usage_error on shapes and overlap.
template <Scalar T, Scalar R, Scalar GR, Scalar RG, Scalar G, class Backend = reference,
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
  for (index_t i = 0; i < n; ++i) {
    detail::expect(!detail::overlap(experts[i], grad_experts[i]), what, ": expert ", i,
                   " and its gradient overlap");
  }
  detail::run_router_rows_vjp<S>(what, experts, router, tape, grad_rows, options, grad_router, mode,
                                 detail::into_matrices<S, G>{grad_experts, mode}, workspace, backend,
                                 executor);
}

/// The same with Ā in factored form, for those who never want it in memory: N · 2(F + D) numbers a step in
/// place of N · F · D. `mode` is that of grad_router; the factors are written. add_factors turns them into
/// matrices.
template <Scalar T, Scalar R, Scalar GR, Scalar RG, class Backend = reference, class Run = serial_executor,
          Accumulator S = router_scalar_t<T, R>>
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
template <Scalar T, Scalar R, Scalar GR, Scalar RG, class Backend = reference, class Run = serial_executor,
          Accumulator S = router_scalar_t<T, R>>
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
template <Accumulator S, Scalar G, class Run = serial_executor>
void add_factors(const router_factors<S>& factors, const expert_batch_view<G>& gradient, gradient_mode mode,
                 std::type_identity_t<S> factor = S{1}, const Run& executor = {}) {
  const auto [n, f, d] = factors.shape();
  const auto [gn, gf, gd] = gradient.shape();
  detail::expect(factors.shape() == gradient.shape() && factors.terms() > 0, "add_factors: ", factors.terms(),
                 " factors for experts [", n, ", ", f, ", ", d, "] and a gradient of [", gn, ", ", gf, ", ",
                 gd, "]");
  for (index_t i = 0; i < n; ++i) {
    static_cast<void>(gradient[i]);  // a null pointer in a table throws here, not in a task
  }
  executor(n, [&](index_t i) {
    for (index_t term = factors.terms() - 1; term >= 0; --term) {
      const bool first = term == factors.terms() - 1;
      add_rank2<S>(factors.at(term, i), gradient[i], first ? mode : gradient_mode::accumulate, factor);
    }
  });
}

MPIROUTER_END
