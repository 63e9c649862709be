// mpi_router_cuda_put_factors and mpi_router_cuda_restore_padding.
#include "call.hpp"

#include <mpi_router/cuda/grouped_factors.cuh>

#include <cstdint>

namespace mpi_router_c {
namespace {

struct grouped_arguments {
  const char* what;
  const cuda::context ctx;
  const mpi_router_matrix& grads;
  const mpi_router_matrix& tokens;
  const std::int32_t* offsets;
  index_t experts;
  const cuda::workspace kept;
};

/// Of the operands; shapes and overlaps the call itself looks at.
grouped_arguments arguments(const char* what, const mpi_router_cuda* cuda, const mpi_router_matrix* grads,
                            const mpi_router_matrix* tokens, const std::int32_t* offsets, index_t experts) {
  const cuda::context ctx = context_of(what, cuda);
  check(what, "grads", given(what, "grads", grads), on_gpu);
  check(what, "tokens", given(what, "tokens", tokens), on_gpu);
  core::expect(grads->dtype == tokens->dtype, what, ": grads is ", name_of(grads->dtype), ", tokens is ",
               name_of(tokens->dtype));
  expect_distinct(what, "grads", *grads);
  expect_distinct(what, "tokens", *tokens);
  core::expect(reinterpret_cast<std::uintptr_t>(offsets) % alignof(std::int32_t) == 0, what,
               ": offsets is not aligned to int32_t");
  return {what, ctx, *grads, *tokens, offsets, experts, scratch_of(*cuda)};
}

void expect_reachable(const grouped_arguments& a, const mpi_router_matrix* router, const void* factors) {
  mpi_router_c::expect_reachable(a.what, a.ctx,
                                 {{"grads", memory_of(a.grads)},
                                  {"tokens", memory_of(a.tokens)},
                                  {"offsets", a.offsets},
                                  {"router", router != nullptr ? memory_of(*router) : nullptr},
                                  {"factors", factors},
                                  {"the workspace", a.kept.data}});
}

/// use(operands) in the type of both.
template <class Use>
void with_operands(const grouped_arguments& a, const Use& use) {
  with_type(a.grads.dtype, [&]<class T>(std::type_identity<T>) {
    use(cuda::grouped_operands<T>{view_of<T, device_space>(a.grads), view_of<T, device_space>(a.tokens),
                                  a.offsets, a.experts});
  });
}

}  // namespace
}  // namespace mpi_router_c

using namespace mpi_router_c;

extern "C" {

mpi_router_code mpi_router_cuda_put_factors(const mpi_router_cuda* cuda, const mpi_router_matrix* grads,
                                            const mpi_router_matrix* tokens, const std::int32_t* offsets,
                                            const mpi_router_matrix* router,
                                            const mpi_router_buffer* factors) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_cuda_put_factors";
    check(what, "router", given(what, "router", router), on_gpu);
    const auto a = arguments(what, cuda, grads, tokens, offsets, router->shape[0]);
    const index_t n = a.experts;
    const index_t f = a.grads.shape[1];
    const index_t d = a.tokens.shape[1];
    const mpi_router_buffer& from = given(what, "factors", factors);
    const double bytes =
        4.0 * static_cast<double>(n) * (2.0 * static_cast<double>(f) + static_cast<double>(d));
    core::expect(static_cast<double>(from.bytes) >= bytes, what, ": factors has ", from.bytes,
                 " bytes, where ", n, " experts of F = ", f, " and D = ", d, " ask for 4 N (2 F + D)");
    check_buffer(what, "factors", from, 0);
    expect_reachable(a, router, from.data);
    auto* const p = static_cast<float*>(from.data);
    const cuda::gradient_factors parts =
        p == nullptr ? cuda::gradient_factors{}
                     : cuda::gradient_factors{
                           .projection = p, .dual_projection = p + n * (f + d), .dual_row = p + n * f};
    with_operands(a, [&](const auto& operands) {
      with_type(router->dtype, [&]<class R>(std::type_identity<R>) {
        cuda::put_factors(a.ctx, operands, parts, view_of<const R, device_space>(*router), a.kept);
      });
    });
  });
}

mpi_router_code mpi_router_cuda_restore_padding(const mpi_router_cuda* cuda, const mpi_router_matrix* grads,
                                                const mpi_router_matrix* tokens, const std::int32_t* offsets,
                                                std::int64_t num_experts) {
  return guarded([&] {
    const auto a = arguments("mpi_router_cuda_restore_padding", cuda, grads, tokens, offsets, num_experts);
    expect_reachable(a, nullptr, nullptr);
    with_operands(a, [&](const auto& operands) { cuda::restore_padding(a.ctx, operands, a.kept); });
  });
}

}  // extern "C"
