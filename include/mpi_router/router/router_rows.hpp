// The batched step over all experts: the rows that tokens are compared with (Eq. 4, 5, 7).
#pragma once

#include <mpi_router/backend/dense.hpp>
#include <mpi_router/router/batched_experts.hpp>
#include <mpi_router/router/step_tape.hpp>

MPIROUTER_BEGIN

/// Elements of scratch that router_rows of operators needs: N · (2D + 1).
[[nodiscard]] constexpr index_t router_rows_workspace(index_t num_experts, index_t hidden_dim) noexcept {
  return num_experts * (2 * hidden_dim + 1);
}
/// Elements of scratch that router_rows needs: as many, and partial images where large experts are split into
/// blocks of neurons so that few of them keep many threads busy; at most N · 18 (D + 1).
[[nodiscard]] constexpr index_t router_rows_workspace(const expert_shape& shape) noexcept {
  return router_rows_workspace(shape.num_experts, shape.hidden_dim) + apply_experts_workspace(shape);
}

namespace detail {

/// Shapes, options and memory of the batched step. Returns C.
template <Accumulator S, class Experts, class R, class O>
[[nodiscard]] S expect_router_rows(const char* what, const Experts& experts, const matrix_view<R>& router,
                                   const matrix_view<O>& rows, const router_options& options,
                                   const vector_view<S>& workspace, const router_by_products<S>& told) {
  const expert_shape& shape = experts.shape();
  const index_t scratch = router_rows_workspace(shape.num_experts, shape.hidden_dim) + experts.partial();
  const S radius = expect_options<S>(what, options, experts.total());
  expect_rows(what, "the router", shape, router);
  expect_rows(what, "the output", shape, rows);
  expect_workspace(what, workspace, scratch);
  const auto told_at = expect_by_products(what, told, shape, options);
  const auto apart = joined(told_at, named_range{"the workspace", first_elements(workspace, scratch)});
  const bool in_place = static_cast<const void*>(rows.data()) == static_cast<const void*>(router.data());
  const auto written = joined(apart, named_range{in_place ? "the router" : "the output", addresses(rows)});
  experts.expect_apart(what, written);
  expect_apart(what, {"the router", addresses(router)}, apart);
  expect_apart(what, written, {});
  return radius;
}

/// r′_i = C · r_i M_i / ‖r_i M_i‖ (Eq. 4, 5) for all i, options.steps times; C is radius_of(i).
template <Accumulator S, class Experts, class Router, class Rows, class Radius, class Run>
void step_rows(const Experts& experts, const Router& router, const Rows& rows, const router_options& options,
               const Radius& radius_of, const vector_view<S>& workspace, const router_by_products<S>& told,
               const Run& executor) {
  const expert_shape shape = experts.shape();
  const index_t n = shape.num_experts;
  workspace_pieces<S> pieces(workspace);
  matrix_view<S> from = pieces.matrix(n, shape.hidden_dim);
  matrix_view<S> spare = pieces.matrix(n, shape.hidden_dim);
  const vector_view<S> energies = pieces.vector(n);
  const vector_view<S> partial = pieces.vector(experts.partial());
  const step_tape<S> tape(told.tape, shape, options.steps);
  const bool saves = told.tape.size() != 0;

  executor(n, [&](index_t i) { copy_into<S>(router.row(i), from.row(i)); });
  for (index_t step = 0; step < options.steps; ++step) {
    const matrix_view<S> to = saves ? tape.rows(step) : spare;
    experts.multiply(from, to, energies, partial, executor);  // u = rM
    executor(n, [&](index_t i) {
      const auto r = from.row(i);
      const auto u = to.row(i);
      const row_image<S> image = experts.measure(i, r, u, energies[i]);
      if (saves) tape.save(step, i, image.image_norm);
      tell_step<S>(told, i, step == 0, image, r, u);
      retract_image(image, r, u, u, radius_of(i), options.degenerate);  // r′ = C u/‖u‖
    });
    spare = from;
    from = to;
  }
  executor(n, [&](index_t i) { copy_into<S>(from.row(i), rows.row(i)); });
}

template <Accumulator S, class Experts, class R, class O, class Run>
void take_steps(const char* what, const Experts& experts, const matrix_view<R>& router,
                const matrix_view<O>& rows, const router_options& options, const vector_view<S>& workspace,
                const router_by_products<S>& told, const Run& executor) {
  const S radius = expect_router_rows(what, experts, router, rows, options, workspace, told);
  const auto radius_of = [radius](index_t) { return radius; };
  step_rows<S>(experts, router, rows, options, radius_of, workspace, told, executor);
}

}  // namespace detail

/// The rows of the router: row i is C · r_i M_i / ‖r_i M_i‖, repeated options.steps times (Eq. 4, 5; C =
/// C′/√N by Eq. 7). Stateless, as the authors' router: `router` is the trained parameter and stays as it is.
///
/// experts: [N, F, D] in any layout; router and rows: [N, D] of any storage type and strides, apart from each
/// other; workspace: router_rows_workspace(shape) elements, apart from all else; told: see
/// router_by_products, `tape` is what router_rows_vjp needs. Sums in router_scalar_t<T, R>. One read of the
/// experts a step. Nothing is allocated; tasks are experts, or blocks of neurons of theirs where they are few
/// and large, and the result is bitwise the same for every executor. Degenerate rows are named by their
/// status and become what options.degenerate says. Throws usage_error on shapes, overlap, radius, steps.
template <Scalar T, Scalar R, WritableScalar O, class Backend = reference, class Run = serial_executor,
          Accumulator S = router_scalar_t<T, R>>
  requires DenseBackend<Backend, std::remove_const_t<T>, S>
void router_rows(const expert_batch_view<T>& experts, const matrix_view<R>& router,
                 const matrix_view<O>& rows, const router_options& options,
                 std::type_identity_t<vector_view<S>> workspace,
                 const std::type_identity_t<router_by_products<S>>& told = {}, const Backend& backend = {},
                 const Run& executor = {}) {
  detail::expect(!detail::overlap(router, rows), "router_rows: the router and the output overlap");
  detail::take_steps<S>("router_rows", detail::dense_experts<S, T, Backend>{experts, backend}, router, rows,
                        options, workspace, told, executor);
}

/// The same, written back: router ← the rows after options.steps steps. Stateful: it tracks the principal
/// directions of gate matrices that change, with an angle floor of about κ²δ/(1 − κ²) for a drift δ. Use one
/// of the two forms for a router, never both. No tape: what is written back is state, not a function of a
/// parameter.
template <Scalar T, WritableScalar R, class Backend = reference, class Run = serial_executor,
          Accumulator S = router_scalar_t<T, R>>
  requires DenseBackend<Backend, std::remove_const_t<T>, S>
void stateful_router_rows(const expert_batch_view<T>& experts, const matrix_view<R>& router,
                          const router_options& options, std::type_identity_t<vector_view<S>> workspace,
                          const std::type_identity_t<router_by_products<S>>& told = {},
                          const Backend& backend = {}, const Run& executor = {}) {
  constexpr const char* what = "stateful_router_rows";
  detail::expect(told.tape.size() == 0, what, ": a tape is for the stateless form");
  detail::take_steps<S>(what, detail::dense_experts<S, T, Backend>{experts, backend}, router, router, options,
                        workspace, told, executor);
}

/// The same over operators, for experts that are packed, sparse, composed or spread over shards: row i is a
/// step with operators(i), a GramOperator. Statuses, by-products, tape and steps are those of dense experts;
/// so are the bits where an operator is gram() of a gate matrix that is one task (of fewer than 2¹⁹ weights).
///
/// operators: called for each of the router.rows() experts, see GramOperators; a scale-free radius takes N
/// from the router; workspace: router_rows_workspace(N, D) elements. One application of each operator a step,
/// one more where squares left the range of S and it is a ScalableGramOperator. Tasks are experts and must
/// not throw; an operator that talks to other ranks (reduced_operator) needs the serial executor, so that all
/// go the same way. Throws usage_error as above, and on an operator of another dimension than D.
template <GramOperators Operators, Scalar R, WritableScalar O, class Run = serial_executor,
          Accumulator S = scalar_of_operators<Operators>>
void router_rows(const Operators& operators, const matrix_view<R>& router, const matrix_view<O>& rows,
                 const router_options& options, std::type_identity_t<vector_view<S>> workspace,
                 const std::type_identity_t<router_by_products<S>>& told = {}, const Run& executor = {}) {
  constexpr const char* what = "router_rows";
  detail::expect(!detail::overlap(router, rows), what, ": the router and the output overlap");
  detail::take_steps<S>(what, detail::operators_of(what, operators, router), router, rows, options, workspace,
                        told, executor);
}

/// The stateful form over operators: router ← the rows after options.steps steps.
template <GramOperators Operators, WritableScalar R, class Run = serial_executor,
          Accumulator S = scalar_of_operators<Operators>>
void stateful_router_rows(const Operators& operators, const matrix_view<R>& router,
                          const router_options& options, std::type_identity_t<vector_view<S>> workspace,
                          const std::type_identity_t<router_by_products<S>>& told = {},
                          const Run& executor = {}) {
  constexpr const char* what = "stateful_router_rows";
  detail::expect(told.tape.size() == 0, what, ": a tape is for the stateless form");
  detail::take_steps<S>(what, detail::operators_of(what, operators, router), router, router, options,
                        workspace, told, executor);
}

MPIROUTER_END
