// mpi_router_cuda_rows and its stateful form.
#include "rows.hpp"

namespace mpi_router_c {
namespace {

struct forward_arguments {
  const char* what;
  const mpi_router_cuda* cuda;
  const mpi_router_experts& experts;
  const mpi_router_matrix& router;
  const mpi_router_matrix& rows;  // the router, where the step is stateful
  const router_options options;
  const mpi_router_by_products told;
  const mpi_router_buffer* tape;
};

/// Of all but shapes of experts, radius, workspace and overlaps, which the call itself looks at.
void check_all(const forward_arguments& a) {
  check(a.what, "experts", a.experts, on_gpu);
  check_rows(a.what, "router", a.router, a.experts, on_gpu);
  check_rows(a.what, "rows", a.rows, a.experts, on_gpu);
  expect_distinct(a.what, "rows", a.rows);
  if (a.tape != nullptr) {
    check_buffer(a.what, "tape", *a.tape, tape_bytes(a.what, a.experts, a.options));
  }
}

void expect_reachable(const forward_arguments& a, const cuda::context& ctx) {
  const mpi_router_by_products& t = a.told;
  mpi_router_c::expect_reachable(a.what, ctx,
                                 {{"experts", memory_of(a.experts)},
                                  {"router", memory_of(a.router)},
                                  {"rows", memory_of(a.rows)},
                                  {"statuses", t.statuses},
                                  {"rayleigh", t.rayleigh},
                                  {"cosine", t.cosine},
                                  {"residual", t.residual},
                                  {"energy", t.energy},
                                  {"row_norm", t.row_norm},
                                  {"image_norm", t.image_norm},
                                  {"tape", a.tape != nullptr ? a.tape->data : nullptr},
                                  {"the workspace", a.cuda->workspace.data}});
}

void run(const forward_arguments& a) {
  const cuda::context ctx = context_of(a.what, a.cuda);
  check_all(a);
  const mpi_router_by_products& t = a.told;
  const cuda::step_by_products told{.statuses = reinterpret_cast<status*>(t.statuses),
                                    .rayleigh = t.rayleigh,
                                    .cosine = t.cosine,
                                    .tape = {},
                                    .residual = t.residual,
                                    .energy = t.energy,
                                    .row_norm = t.row_norm,
                                    .image_norm = t.image_norm};
  const cuda::saved_step saved = a.tape != nullptr ? saved_of(*a.tape, a.experts) : cuda::saved_step{};
  expect_reachable(a, ctx);
  gpu_rows_of(a.experts.dtype)
      .forward({a.what, ctx, a.experts, a.router, a.rows, a.options, told, saved, scratch_of(*a.cuda)});
}

}  // namespace
}  // namespace mpi_router_c

using namespace mpi_router_c;

extern "C" {

mpi_router_code mpi_router_cuda_rows_workspace_size(const mpi_router_cuda* cuda,
                                                    const mpi_router_experts* experts,
                                                    const mpi_router_options* options, std::int64_t* bytes) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_cuda_rows_workspace_size";
    const auto ctx = context_of(what, cuda);
    check(what, "experts", given(what, "experts", experts), on_gpu_unseen);
    const router_options o = options_of(what, options);
    core::expect(o.steps >= 1, what, ": steps is ", o.steps);
    static_cast<void>(given(what, "bytes", bytes));
    *bytes = static_cast<std::int64_t>(
        gpu_rows_of(experts->dtype).forward_bytes(ctx, somewhere(*experts), o.steps));
  });
}

mpi_router_code mpi_router_cuda_rows(const mpi_router_cuda* cuda, const mpi_router_experts* experts,
                                     const mpi_router_matrix* router, const mpi_router_options* options,
                                     const mpi_router_matrix* rows, const mpi_router_by_products* told,
                                     const mpi_router_buffer* tape) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_cuda_rows";
    run({what, cuda, given(what, "experts", experts), given(what, "router", router),
         given(what, "rows", rows), options_of(what, options),
         told != nullptr ? *told : mpi_router_by_products{}, tape});
  });
}

mpi_router_code mpi_router_cuda_stateful_rows(const mpi_router_cuda* cuda, const mpi_router_experts* experts,
                                              const mpi_router_matrix* router,
                                              const mpi_router_options* options,
                                              const mpi_router_by_products* told) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_cuda_stateful_rows";
    const mpi_router_matrix& state = given(what, "router", router);
    run({what, cuda, given(what, "experts", experts), state, state, options_of(what, options),
         told != nullptr ? *told : mpi_router_by_products{}, nullptr});
  });
}

}  // extern "C"
