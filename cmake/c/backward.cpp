// mpi_router_rows_vjp, detached and factored, and mpi_router_add_factors.
#include "rows_call.hpp"

#include <mpi_router/router/router_rows_vjp.hpp>

#include <cmath>
#include <limits>

namespace mpi_router_c {
namespace {

struct backward_arguments {
  const char* what;
  const mpi_router_experts& experts;
  const mpi_router_matrix& router;
  const router_options options;
  const mpi_router_buffer& tape;
  const mpi_router_matrix& grad_rows;
  const mpi_router_matrix& grad_router;
  const gradient_mode mode;
  const callback_executor run;
};

backward_arguments arguments(const char* what, const mpi_router_experts* experts,
                             const mpi_router_matrix* router, const mpi_router_options* options,
                             const mpi_router_buffer* tape, const mpi_router_matrix* grad_rows,
                             const mpi_router_matrix* grad_router, std::int32_t mode,
                             const mpi_router_threads* threads) {
  return {what,
          given(what, "experts", experts),
          given(what, "router", router),
          options_of(what, options),
          given(what, "tape", tape),
          given(what, "grad_rows", grad_rows),
          given(what, "grad_router", grad_router),
          mode_of(what, mode),
          callback_executor(threads)};
}

/// Types, shapes and memory of all but the gradient to the experts. Returns the bytes of the tape.
std::int64_t check_all(const backward_arguments& a) {
  check(a.what, "experts", a.experts);
  check_rows(a.what, "router", a.router, a.experts);
  check_rows(a.what, "grad_rows", a.grad_rows, a.experts);
  check_rows(a.what, "grad_router", a.grad_router, a.experts);
  const std::int64_t tape = tape_bytes(a.what, a.experts, a.options);
  check_buffer(a.what, "tape", a.tape, tape);
  return tape;
}

/// What the call reads; it may write grad_router where grad_rows was.
memory_of_call memory_of(const backward_arguments& a, std::int64_t tape) {
  memory_of_call memory(a.what);
  memory.reads("experts", a.experts);
  memory.reads("router", range_of(a.router));
  memory.reads("tape", range_of(static_cast<const char*>(a.tape.data), tape));
  memory.writes("grad_router", a.grad_router);
  memory.reads("grad_rows", range_of(a.grad_rows));
  return memory;
}

/// body(call) with the matrices in the type of the sums.
template <Accumulator S, class Body>
void pull_back(const backward_arguments& a, std::int64_t tape, const Body& body) {
  if (a.experts.shape[0] == 0) {
    return;
  }
  using matrix = matrix_in_sums<S>;
  const matrix router(a.router, matrix::use::read);
  const matrix grad_rows(a.grad_rows, matrix::use::read);
  const matrix grad_router(a.grad_router,
                           core::accumulates(a.mode) ? matrix::use::update : matrix::use::write);
  const scratch<S> workspace(router_rows_vjp_workspace(shape_of(a.experts)));
  body(backward_call<S>{a.experts, router.view(), view_of<const S>(a.tape, tape), grad_rows.view(), a.options,
                        grad_router.view(), a.mode, workspace.view(), a.run});
  grad_router.store();
}

/// The gradient to the experts meets nothing else that the call uses.
void check_gradient_memory(const backward_arguments& a, std::int64_t tape,
                           const mpi_router_experts& grad_experts) {
  memory_of_call memory = memory_of(a, tape);
  memory.writes("grad_experts", grad_experts);
}

}  // namespace
}  // namespace mpi_router_c

using namespace mpi_router_c;

extern "C" {

mpi_router_code mpi_router_rows_vjp(const mpi_router_experts* experts, const mpi_router_matrix* router,
                                    const mpi_router_options* options, const mpi_router_buffer* tape,
                                    const mpi_router_matrix* grad_rows, const mpi_router_matrix* grad_router,
                                    const mpi_router_experts* grad_experts, std::int32_t mode,
                                    const mpi_router_threads* threads) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_rows_vjp";
    const auto a = arguments(what, experts, router, options, tape, grad_rows, grad_router, mode, threads);
    const mpi_router_experts& gradient = given(what, "grad_experts", grad_experts);
    const std::int64_t taped = check_all(a);
    core::expect(a.options.through != differentiate::none, what,
                 ": through is none; mpi_router_rows_vjp_detached takes no gradient to the experts");
    check_gradient(what, a.experts, gradient);
    check_gradient_memory(a, taped, gradient);
    with_rows_of(a.experts.dtype, [&]<class S>(const rows_functions<S>& functions) {
      pull_back<S>(a, taped, [&](const auto& call) { functions.written(call, gradient); });
    });
  });
}

mpi_router_code mpi_router_rows_vjp_detached(const mpi_router_experts* experts,
                                             const mpi_router_matrix* router,
                                             const mpi_router_options* options, const mpi_router_buffer* tape,
                                             const mpi_router_matrix* grad_rows,
                                             const mpi_router_matrix* grad_router, std::int32_t mode,
                                             const mpi_router_threads* threads) {
  return guarded([&] {
    const auto a = arguments("mpi_router_rows_vjp_detached", experts, router, options, tape, grad_rows,
                             grad_router, mode, threads);
    const std::int64_t taped = check_all(a);
    static_cast<void>(memory_of(a, taped));
    with_rows_of(a.experts.dtype, [&]<class S>(const rows_functions<S>& functions) {
      pull_back<S>(a, taped, [&](const auto& call) { functions.detached(call); });
    });
  });
}

mpi_router_code mpi_router_rows_vjp_factored(
    const mpi_router_experts* experts, const mpi_router_matrix* router, const mpi_router_options* options,
    const mpi_router_buffer* tape, const mpi_router_matrix* grad_rows, const mpi_router_matrix* grad_router,
    const mpi_router_buffer* factors, std::int32_t mode, const mpi_router_threads* threads) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_rows_vjp_factored";
    const auto a = arguments(what, experts, router, options, tape, grad_rows, grad_router, mode, threads);
    const mpi_router_buffer& into = given(what, "factors", factors);
    const std::int64_t taped = check_all(a);
    const std::int64_t size = factor_bytes(what, a.experts, a.options);
    check_buffer(what, "factors", into, size);
    memory_of_call memory = memory_of(a, taped);
    memory.writes("factors", range_of(static_cast<const char*>(into.data), size));
    with_rows_of(a.experts.dtype, [&]<class S>(const rows_functions<S>& functions) {
      pull_back<S>(a, taped, [&](const auto& call) {
        functions.factored(call, router_factors<S>(view_of<S>(into, size), shape_of(a.experts), a.options));
      });
    });
  });
}

mpi_router_code mpi_router_add_factors(const mpi_router_buffer* factors, mpi_router_dtype sums_of,
                                       const mpi_router_options* options, double factor,
                                       const mpi_router_experts* gradient, std::int32_t mode,
                                       const mpi_router_threads* threads) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_add_factors";
    const mpi_router_buffer& from = given(what, "factors", factors);
    const mpi_router_experts& to = given(what, "gradient", gradient);
    const router_options o = options_of(what, options);
    const gradient_mode how = mode_of(what, mode);
    check(what, "gradient", to);
    const mpi_router_dtype sums = mpi_router_sums_dtype(sums_of);
    core::expect(sums != 0, what, ": sums_of is ", sums_of, ", which is no dtype");
    expect_meets(what, "gradient", to.dtype, sums);
    mpi_router_experts experts = to;
    experts.dtype = sums_of;
    const std::int64_t size = factor_bytes(what, experts, o);
    check_buffer(what, "factors", from, size);
    core::expect(std::isfinite(factor) &&
                     (sums == MPIROUTER_F64 || std::abs(factor) <= std::numeric_limits<float>::max()),
                 what, ": factor is not a finite ", name_of(sums));
    memory_of_call memory(what);
    memory.reads("factors", range_of(static_cast<const char*>(from.data), size));
    memory.writes("gradient", to);
    const auto add = [&]<class S>(std::type_identity<S>) {
      const router_factors<S> of(view_of<S>(from, size), shape_of(to), o);
      with_type(to.dtype, [&]<class G>(std::type_identity<G>) {
        if constexpr (sizeof(G) <= sizeof(S)) {
          add_factors<S>(of, view_of<G>(to), how, static_cast<S>(factor), callback_executor(threads));
        }
      });
    };
    sums == MPIROUTER_F64 ? add(std::type_identity<double>{}) : add(std::type_identity<float>{});
  });
}

}  // extern "C"
