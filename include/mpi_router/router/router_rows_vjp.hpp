// The backward of the batched step: gradients to the router rows and to the gate matrices, materialised,
// accumulated, or factored.
#pragma once

#include <mpi_router/router/backward_steps.hpp>
#include <mpi_router/router/router_rows.hpp>

#include <array>

MPIROUTER_BEGIN

/// Elements of scratch that the backward of operators needs: N · (5D + 2F + 1); F may be 0 where M is
/// detached.
[[nodiscard]] constexpr index_t router_rows_vjp_workspace(index_t num_experts, index_t ffn_dim,
                                                          index_t hidden_dim) noexcept {
  return num_experts * (5 * hidden_dim + 2 * ffn_dim + 1);
}
/// Elements of scratch that the backward needs: as many, and partial images as in the forward.
[[nodiscard]] constexpr index_t router_rows_vjp_workspace(const expert_shape& shape) noexcept {
  return router_rows_vjp_workspace(shape.num_experts, shape.ffn_dim, shape.hidden_dim) +
         apply_experts_workspace(shape);
}

namespace detail {

/// What a call of the backward is given, whatever becomes of the gradient to the experts.
template <Accumulator S, class R, class GR, class RG>
struct backward_call {
  const char* what;
  const matrix_view<R>& router;
  const vector_view<const S>& tape;
  const matrix_view<GR>& grad_rows;
  const router_options& options;
  const matrix_view<RG>& grad_router;
  gradient_mode mode;
  const vector_view<S>& workspace;
};

/// Shapes, options and memory of a backward. Returns C.
template <Accumulator S, class R, class GR, class RG, class Experts, class Target>
[[nodiscard]] S expect_backward(const backward_call<S, R, GR, RG>& call, const Experts& experts,
                                const Target& target) {
  const char* const what = call.what;
  const auto [n, f, d] = experts.shape();
  const index_t scratch = router_rows_vjp_workspace(n, f, d) + experts.partial();
  const index_t taped = router_tape_size(experts.shape(), call.options);
  const S radius = expect_options<S>(what, call.options, experts.total());
  static_cast<void>(accumulates(call.mode));  // what is wrong throws here, not in a task
  expect_rows(what, "the router", experts.shape(), call.router);
  expect_rows(what, "the gradient of the rows", experts.shape(), call.grad_rows);
  expect_rows(what, "the gradient to the router", experts.shape(), call.grad_router);
  expect_workspace(what, call.workspace, scratch);
  expect(call.tape.size() >= taped && call.tape.is_contiguous(), what, ": the tape has ", call.tape.size(),
         " elements, not ", taped);
  const named_range work{"the workspace", first_elements(call.workspace, scratch)};
  const named_range to_router{"the gradient to the router", addresses(call.grad_router)};
  const named_range input{"the router", addresses(call.router)};
  const named_range of_rows{"the gradient of the rows", addresses(call.grad_rows)};
  const named_range tape{"the tape", first_elements(call.tape, taped)};
  experts.expect_apart(what, std::array{to_router, work});
  expect_apart(what, to_router, {input, tape, work});  // it may be the gradient of the rows
  expect_apart(what, work, {input, of_rows, tape});
  target.for_each_range([&](const address_range& range) {
    const named_range to_experts{"the gradient to the experts", range};
    experts.expect_apart(what, std::array{to_experts});
    expect_apart(what, to_experts, {input, of_rows, tape, to_router, work});
  });
  return radius;
}

template <Accumulator S, class R, class GR, class RG, class Experts, class Target, class Run>
void pull_back_steps(const backward_call<S, R, GR, RG>& call, const Experts& experts, const Target& target,
                     const Run& executor) {
  const S radius = expect_backward(call, experts, target);
  const auto radius_of = [radius](index_t) { return radius; };
  backward_steps<S, Experts, Target, Run, decltype(radius_of)> steps(experts, target, executor, call.options,
                                                                     radius_of, call.tape, call.workspace);
  const matrix_view<S> gradient = steps.run(call.router, call.grad_rows);
  const bool accumulate = accumulates(call.mode);
  executor(gradient.rows(), [&](index_t i) {
    const auto out = call.grad_router.row(i);
    for (index_t k = 0; k < gradient.cols(); ++k) {
      const S value = gradient(i, k);
      out[k] = narrow<RG>(accumulate ? widen<S>(out[k]) + value : value);
    }
  });
}

template <Accumulator S>
void expect_factors(const char* what, const router_factors<S>& factors, const expert_shape& shape,
                    const router_options& options) {
  expect(factors.shape() == shape && factors.terms() == router_factors<S>::terms(options), what,
         ": the factors have ", factors.terms(), " terms for other experts or options");
}

}  // namespace detail

/// The backward of router_rows: r̄ to grad_router and Ā to grad_experts, both written or both added to what is
/// there.
///
/// experts, router, options: as in the forward; tape: what it saved; grad_rows: the gradient of its output,
/// [N, D]; grad_router: [N, D]; grad_experts: like the experts, in any layout and storage type; workspace:
/// router_rows_vjp_workspace(shape) elements of scratch. What is written lies apart from all else, except
/// that grad_router may be grad_rows. Ā is two outer products a step, each added in the gradient's storage
/// (one rounding a step). options.through: the steps that A is differentiated through; not `none`. A row
/// without a step passes its gradient on as options.degenerate says, and gives none to A.
///
/// One read of the experts and one update of the gradient a step where the backend has the fused read, else
/// three. Nothing is allocated; tasks as in the forward; bitwise the same for every executor. Throws
/// usage_error on shapes and overlap: of each expert and gradient where both are tables of pointers.
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
  detail::pull_back_steps<S, R, GR, RG>(
      {what, router, tape, grad_rows, options, grad_router, mode, workspace},
      detail::dense_experts<S, T, Backend>{experts, backend}, detail::into_matrices<S, G>{grad_experts, mode},
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
  detail::expect_factors(what, factors, experts.shape(), options);
  detail::pull_back_steps<S, R, GR, RG>(
      {what, router, tape, grad_rows, options, grad_router, mode, workspace},
      detail::dense_experts<S, T, Backend>{experts, backend}, detail::into_factors<S>{factors}, executor);
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
  detail::pull_back_steps<S, R, GR, RG>(
      {"router_rows_vjp_detached", router, tape, grad_rows, options, grad_router, mode, workspace},
      detail::dense_experts<S, T, Backend>{experts, backend}, detail::into_factors<S>{none}, executor);
}

/// The backward of router_rows over operators that show their factor A: r̄ to grad_router, Ā in factored form.
/// router_factors are built for {N, F, D} with the F of all operators; where an operator is composed, its
/// factor is too: of latent experts it is A P, of whose gradient Ā′ come Ā = Ā′Pᵀ and P̄ = AᵀĀ′.
///
/// operators as in the forward; workspace: router_rows_vjp_workspace(N, F, D) elements; the rest as
/// router_rows_vjp_factored of dense experts. Two projections and a lift of each operator a step.
template <FactoredGramOperators Operators, Scalar R, Scalar GR, WritableScalar RG,
          class Run = serial_executor, Accumulator S = scalar_of_operators<Operators>>
void router_rows_vjp_factored(const Operators& operators, const matrix_view<R>& router,
                              std::type_identity_t<vector_view<const S>> tape,
                              const matrix_view<GR>& grad_rows, const router_options& options,
                              const matrix_view<RG>& grad_router,
                              const std::type_identity_t<router_factors<S>>& factors, gradient_mode mode,
                              std::type_identity_t<vector_view<S>> workspace, const Run& executor = {}) {
  constexpr const char* what = "router_rows_vjp_factored";
  const expert_shape shape{router.rows(), factors.shape().ffn_dim, router.cols()};
  detail::expect_factors(what, factors, shape, options);
  const detail::operator_experts<Operators> experts(what, operators, shape);
  detail::pull_back_steps<S, R, GR, RG>(
      {what, router, tape, grad_rows, options, grad_router, mode, workspace}, experts,
      detail::into_factors<S>{factors}, executor);
}

/// The gradient to the router rows alone, of any operators: one application of each a step; workspace:
/// router_rows_vjp_workspace(N, 0, D) elements.
template <GramOperators Operators, Scalar R, Scalar GR, WritableScalar RG, class Run = serial_executor,
          Accumulator S = scalar_of_operators<Operators>>
void router_rows_vjp_detached(const Operators& operators, const matrix_view<R>& router,
                              std::type_identity_t<vector_view<const S>> tape,
                              const matrix_view<GR>& grad_rows, router_options options,
                              const matrix_view<RG>& grad_router, gradient_mode mode,
                              std::type_identity_t<vector_view<S>> workspace, const Run& executor = {}) {
  constexpr const char* what = "router_rows_vjp_detached";
  options.through = differentiate::none;
  const auto experts = detail::operators_of(what, operators, router);
  const router_factors<S> none({}, experts.shape(), options);
  detail::pull_back_steps<S, R, GR, RG>(
      {what, router, tape, grad_rows, options, grad_router, mode, workspace}, experts,
      detail::into_factors<S>{none}, executor);
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
