// The batched step over all experts: the rows that tokens are compared with (Eq. 4, 5, 7).
#pragma once

#include <mpi_router/backend/apply_experts.hpp>
#include <mpi_router/backend/dense.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/router/apart.hpp>
#include <mpi_router/router/router_options.hpp>

#include <array>
#include <cstdio>
#include <initializer_list>
#include <utility>

MPIROUTER_BEGIN

/// Elements of scratch that router_rows needs: N · (2D + 1), and partial images where large experts are split
/// into blocks of neurons so that few of them keep many threads busy; at most N · 18 (D + 1).
[[nodiscard]] constexpr index_t router_rows_workspace(const expert_shape& shape) noexcept {
  return shape.num_experts * (2 * shape.hidden_dim + 1) + apply_experts_workspace(shape);
}

namespace detail {

/// The tape: of each step the rows after it, [N, D], and ‖rM‖ before the retraction as value and exponent.
template <class Element>
class step_tape {
 public:
  using S = std::remove_const_t<Element>;
  step_tape(const vector_view<Element>& storage, const expert_shape& extents, index_t steps)
      : base_(storage.data()), steps_(steps), shape_(extents) {}

  [[nodiscard]] matrix_view<Element> rows(index_t step) const {
    return row_major(base_ + step * shape_.num_experts * shape_.hidden_dim, shape_.num_experts,
                     shape_.hidden_dim);
  }
  [[nodiscard]] saved_norm<S> norm(index_t step, index_t expert) const {
    const auto* at = norm_at(step, expert);
    return {at[0], static_cast<int>(at[1])};
  }
  void save(index_t step, index_t expert, const saved_norm<S>& norm) const {
    Element* at = norm_at(step, expert);
    at[0] = norm.value;
    at[1] = static_cast<S>(norm.exponent);
  }

 private:
  [[nodiscard]] Element* norm_at(index_t step, index_t expert) const {
    return base_ + shape_.num_experts * (steps_ * shape_.hidden_dim + 2 * step) + 2 * expert;
  }

  Element* base_;
  index_t steps_;
  expert_shape shape_;
};

/// Hands out the workspace, piece by piece.
template <Accumulator S>
class workspace_pieces {
 public:
  explicit workspace_pieces(const vector_view<S>& workspace) : at_(workspace.data()) {}
  [[nodiscard]] vector_view<S> vector(index_t size) { return {std::exchange(at_, at_ + size), size}; }
  [[nodiscard]] matrix_view<S> matrix(index_t rows, index_t cols) {
    return row_major(std::exchange(at_, at_ + rows * cols), rows, cols);
  }

 private:
  S* at_;
};

template <Accumulator S, Scalar R>
void load_row(const vector_view<R>& in, const vector_view<S>& out) noexcept {
  for (index_t d = 0; d < in.size(); ++d) {
    out[d] = widen<S>(in[d]);
  }
}
template <Scalar O, Accumulator S>
void store_row(const vector_view<const S>& in, const vector_view<O>& out) noexcept {
  for (index_t d = 0; d < in.size(); ++d) {
    out[d] = narrow<O>(in[d]);
  }
}

template <class Experts, class R>
void expect_rows(const char* what, const char* name, const Experts& experts, const matrix_view<R>& rows) {
  const auto [n, f, d] = experts.shape();
  expect(rows.rows() == n && rows.cols() == d, what, ": the experts are [N = ", n, ", F = ", f, ", D = ", d,
         "], ", name, " is [", rows.rows(), ", ", rows.cols(), "]");
}

template <class S>
void expect_workspace(const char* what, const vector_view<S>& workspace, index_t size) {
  expect(workspace.size() >= size && workspace.is_contiguous(), what, ": the workspace has ",
         workspace.size(), " elements (stride ", workspace.stride(), "), not ", size, " contiguous ones");
}

/// No expert meets what is written, and every pointer of the batch is there. O(1) where the batch has one
/// base pointer, otherwise O(N).
template <class Experts>
void expect_experts_apart(const char* what, const Experts& experts,
                          std::initializer_list<named_range> written) {
  for_each_range(experts,
                 [&](const address_range& range) { expect_apart(what, {"a gate matrix", range}, written); });
}

/// The radius is checked as the type that steps are taken in, which may be too narrow for it.
template <Accumulator S>
[[nodiscard]] S expect_options(const char* what, const router_options& options, index_t num_experts) {
  expect(options.steps >= 1, what, ": steps is ", options.steps);
  static_cast<void>(keeps(options.degenerate));  // throws here, not in a task
  const double radius = options.radius.of(num_experts > 0 ? num_experts : 1);
  const S narrowed = static_cast<S>(radius);
  if (!is_finite(narrowed) || !(narrowed > S{0})) {
    std::array<char, 32> digits{};
    std::snprintf(digits.data(), digits.size(), "%.9g", radius);
    core::usage_failure(concatenate(what, ": the radius must be positive and finite as ",
                                    sizeof(S) == sizeof(float) ? "float" : "double", ", not ",
                                    digits.data()));
  }
  return narrowed;
}

/// By-products for n experts, or none.
template <Accumulator S>
void expect_by_products(const char* what, const router_by_products<S>& told, index_t n) {
  const auto fits = [n](auto size) { return size == 0 || static_cast<index_t>(size) == n; };
  expect(fits(told.statuses.size()) && fits(told.rayleigh.size()) && fits(told.cosine.size()), what,
         ": by-products for ", told.statuses.size(), ", ", told.rayleigh.size(), " and ", told.cosine.size(),
         " experts, not ", n);
}
/// Elements of the tape that are used: all that it needs, or none where it is empty.
template <class S>
[[nodiscard]] index_t expect_tape(const char* what, const vector_view<S>& tape, const expert_shape& shape,
                                  const router_options& options) {
  const index_t needed = router_tape_size(shape, options);
  expect(tape.size() == 0 || (tape.size() >= needed && tape.is_contiguous()), what, ": the tape has ",
         tape.size(), " elements, not ", needed);
  return tape.size() == 0 ? 0 : needed;
}
template <Accumulator S>
void tell(const router_by_products<S>& told, index_t i, bool is_first_step, const step_result<S>& result) {
  if (!told.statuses.empty()) {
    status& state = told.statuses[static_cast<std::size_t>(i)];
    state = is_first_step || state == status::ok ? result.state : state;
  }
  if (told.rayleigh.size() != 0) told.rayleigh[i] = result.rayleigh;
  if (told.cosine.size() != 0) told.cosine[i] = result.cosine;
}

template <Accumulator S, class T, class R, class O, class Backend, class Run>
void run_router_rows(const char* what, const expert_batch_view<T>& experts, const matrix_view<R>& router,
                     const matrix_view<O>& rows, const router_options& options,
                     const vector_view<S>& workspace, const router_by_products<S>& told,
                     const Backend& backend, const Run& executor) {
  const index_t n = experts.num_experts();
  const index_t d = experts.hidden_dim();
  const S radius = expect_options<S>(what, options, experts.total_experts());
  expect_rows(what, "the router", experts, router);
  expect_rows(what, "the output", experts, rows);
  expect_workspace(what, workspace, router_rows_workspace(experts.shape()));
  const index_t tape_size = expect_tape(what, told.tape, experts.shape(), options);
  const bool saves = tape_size != 0;
  expect_by_products(what, told, n);
  const bool in_place = static_cast<const void*>(rows.data()) == static_cast<const void*>(router.data());
  const named_range output{in_place ? "the router" : "the output", addresses(rows)};
  const named_range work{"the workspace", first_elements(workspace, router_rows_workspace(experts.shape()))};
  const named_range tape_range{"the tape", first_elements(told.tape, tape_size)};
  const named_range rayleigh{"rayleigh", addresses(told.rayleigh)};
  const named_range cosine{"cosine", addresses(told.cosine)};
  const named_range statuses{"the statuses", addresses_of(told.statuses)};
  expect_experts_apart(what, experts, {output, work, tape_range, rayleigh, cosine, statuses});
  expect_apart(what, {"the router", addresses(router)}, {work, tape_range, rayleigh, cosine, statuses});
  expect_apart(what, {output, work, tape_range, rayleigh, cosine, statuses}, {});

  using element = const std::remove_const_t<T>;
  workspace_pieces<S> pieces(workspace);
  matrix_view<S> from = pieces.matrix(n, d);
  matrix_view<S> spare = pieces.matrix(n, d);
  const vector_view<S> energies = pieces.vector(n);
  const vector_view<S> partial = pieces.vector(apply_experts_workspace(experts.shape()));
  const step_tape<S> tape(told.tape, experts.shape(), options.steps);

  executor(n, [&](index_t i) { load_row<S>(router.row(i), from.row(i)); });
  for (index_t step = 0; step < options.steps; ++step) {
    const matrix_view<S> to = saves ? tape.rows(step) : spare;
    apply_experts(backend, experts, from, to, energies, partial, executor);
    executor(n, [&](index_t i) {
      const auto u = to.row(i);
      const auto image = measure_image(from.row(i), u, energies[i], [&] {
        return reference{}.apply_scaled(matrix_view<element>(experts[i]), vector_view<const S>(from.row(i)),
                                        u);
      });
      if (saves) tape.save(step, i, image.image_norm);
      tell(told, i, step == 0, retract_image(image, from.row(i), u, u, radius, options.degenerate));
    });
    spare = from;
    from = to;
  }
  executor(n, [&](index_t i) { store_row<O, S>(vector_view<const S>(from.row(i)), rows.row(i)); });
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
  detail::run_router_rows<S>("router_rows", experts, router, rows, options, workspace, told, backend,
                             executor);
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
  detail::expect(told.tape.size() == 0, "stateful_router_rows: a tape is for the stateless form");
  detail::run_router_rows<S>("stateful_router_rows", experts, router, router, options, workspace, told,
                             backend, executor);
}

MPIROUTER_END
