// mpi_router_cuda_rows_vjp, detached and factored.
#include "rows.hpp"

namespace mpi_router_c {
namespace {

struct backward_arguments {
  const char* what;
  const mpi_router_cuda* cuda;
  const cuda::context ctx;
  const mpi_router_experts& experts;
  const mpi_router_matrix& router;
  router_options options;
  const mpi_router_buffer& tape;
  const mpi_router_matrix& grad_rows;
  const mpi_router_matrix* grad_router;  // null: not wanted
};

backward_arguments arguments(const char* what, const mpi_router_cuda* cuda, const mpi_router_experts* experts,
                             const mpi_router_matrix* router, const mpi_router_options* options,
                             const mpi_router_buffer* tape, const mpi_router_matrix* grad_rows,
                             const mpi_router_matrix* grad_router) {
  return {what,
          cuda,
          context_of(what, cuda),
          given(what, "experts", experts),
          given(what, "router", router),
          options_of(what, options),
          given(what, "tape", tape),
          given(what, "grad_rows", grad_rows),
          grad_router};
}

/// Of all but the gradient to the experts, and what the call itself looks at.
void check_all(const backward_arguments& a) {
  check(a.what, "experts", a.experts, on_gpu);
  check_rows(a.what, "router", a.router, a.experts, on_gpu);
  check_rows(a.what, "grad_rows", a.grad_rows, a.experts, on_gpu);
  if (a.grad_router != nullptr) {
    check_rows(a.what, "grad_router", *a.grad_router, a.experts, on_gpu);
    expect_distinct(a.what, "grad_router", *a.grad_router);
  }
  check_buffer(a.what, "tape", a.tape, tape_bytes(a.what, a.experts, a.options));
}

/// What the call takes, once it is known to be well; `gradient`: of the experts, in one of its forms.
gpu_backward pulled_back(const backward_arguments& a, const cuda::saved_step& saved,
                         const cuda::workspace& scratch, const named_memory& gradient) {
  expect_reachable(a.what, a.ctx,
                   {{"experts", memory_of(a.experts)},
                    {"router", memory_of(a.router)},
                    {"grad_rows", memory_of(a.grad_rows)},
                    {"grad_router", a.grad_router != nullptr ? memory_of(*a.grad_router) : nullptr},
                    {"tape", a.tape.data},
                    {"the workspace", scratch.data},
                    gradient});
  return {a.what, a.ctx, a.experts, a.router, a.options, saved, a.grad_rows, a.grad_router, scratch};
}

void run_factored(const backward_arguments& a, const cuda::gradient_factors& factors,
                  const named_memory& gradient) {
  const cuda::saved_step saved = saved_of(a.tape, a.experts);
  const cuda::workspace scratch = scratch_of(*a.cuda);
  gpu_rows_of(a.experts.dtype).factored(pulled_back(a, saved, scratch, gradient), factors);
}

/// p [N, F], z [N, D] and w [N, F].
cuda::gradient_factors factors_of(const mpi_router_buffer& buffer, const mpi_router_experts& experts) {
  const auto [n, f, d] = shape_of(experts);
  auto* const p = static_cast<float*>(buffer.data);
  return {.projection = p, .dual_projection = p + n * (f + d), .dual_row = p + n * f};
}

}  // namespace
}  // namespace mpi_router_c

using namespace mpi_router_c;

extern "C" {

mpi_router_code mpi_router_cuda_rows_vjp_workspace_size(const mpi_router_cuda* cuda,
                                                        const mpi_router_experts* experts,
                                                        const mpi_router_experts* grad_experts,
                                                        std::int32_t mode, std::int64_t* bytes) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_cuda_rows_vjp_workspace_size";
    const auto ctx = context_of(what, cuda);
    check(what, "experts", given(what, "experts", experts), on_gpu_unseen);
    const gradient_mode how = mode_of(what, mode);
    static_cast<void>(given(what, "bytes", bytes));
    const gpu_rows_functions& functions = gpu_rows_of(experts->dtype);
    if (grad_experts == nullptr) {
      *bytes = static_cast<std::int64_t>(functions.factored_bytes(ctx, somewhere(*experts)));
      return;
    }
    check_gradient(what, *experts, *grad_experts, on_gpu_unseen);
    *bytes = static_cast<std::int64_t>(
        functions.written_bytes(ctx, somewhere(*experts), somewhere(*grad_experts), how));
  });
}

mpi_router_code mpi_router_cuda_rows_vjp(const mpi_router_cuda* cuda, const mpi_router_experts* experts,
                                         const mpi_router_matrix* router, const mpi_router_options* options,
                                         const mpi_router_buffer* tape, const mpi_router_matrix* grad_rows,
                                         const mpi_router_matrix* grad_router,
                                         const mpi_router_experts* grad_experts, std::int32_t experts_mode) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_cuda_rows_vjp";
    const auto a = arguments(what, cuda, experts, router, options, tape, grad_rows, grad_router);
    const gradient_mode mode = mode_of(what, experts_mode);
    check_all(a);
    core::expect(a.options.through != differentiate::none, what,
                 ": through is none; mpi_router_cuda_rows_vjp_detached takes no gradient to the experts");
    check_gradient(what, a.experts, given(what, "grad_experts", grad_experts), on_gpu);
    expect_distinct(what, "grad_experts", *grad_experts);
    const cuda::saved_step saved = saved_of(a.tape, a.experts);
    const cuda::workspace scratch = scratch_of(*cuda);
    gpu_rows_of(a.experts.dtype)
        .written(pulled_back(a, saved, scratch, {"grad_experts", memory_of(*grad_experts)}), *grad_experts,
                 mode);
  });
}

mpi_router_code mpi_router_cuda_rows_vjp_detached(
    const mpi_router_cuda* cuda, const mpi_router_experts* experts, const mpi_router_matrix* router,
    const mpi_router_options* options, const mpi_router_buffer* tape, const mpi_router_matrix* grad_rows,
    const mpi_router_matrix* grad_router) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_cuda_rows_vjp_detached";
    auto a = arguments(what, cuda, experts, router, options, tape, grad_rows, grad_router);
    a.options.through = differentiate::all;  // to the router the gradient is the same
    static_cast<void>(given(what, "grad_router", grad_router));
    check_all(a);
    run_factored(a, {}, {"grad_experts", nullptr});
  });
}

mpi_router_code mpi_router_cuda_rows_vjp_factored(
    const mpi_router_cuda* cuda, const mpi_router_experts* experts, const mpi_router_matrix* router,
    const mpi_router_options* options, const mpi_router_buffer* tape, const mpi_router_matrix* grad_rows,
    const mpi_router_matrix* grad_router, const mpi_router_buffer* factors) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_cuda_rows_vjp_factored";
    const auto a = arguments(what, cuda, experts, router, options, tape, grad_rows, grad_router);
    check_all(a);
    const mpi_router_buffer& into = given(what, "factors", factors);
    check_buffer(what, "factors", into, factor_bytes(what, a.experts, a.options));
    run_factored(a, factors_of(into, a.experts), {"factors", into.data});
  });
}

}  // extern "C"
