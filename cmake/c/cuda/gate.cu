// mpi_router_cuda_gate.
#include "call.hpp"

#include "../gate_call.hpp"

#include <mpi_router/cuda/gating.cuh>

#include <cstdint>

namespace mpi_router_c {
namespace {

/// A matrix or vector of the gate: f32, and on the GPU.
template <class Array>
const Array& in_float(const char* what, const char* name, const Array* array) {
  check(what, name, given(what, name, array), on_gpu);
  if (array->dtype != MPIROUTER_F32) {
    unsupported(what, ": ", name, " is ", name_of(array->dtype), ", and a gate on a GPU takes f32");
  }
  return *array;
}

const mpi_router_matrix& check_logits(const char* what, const mpi_router_matrix* logits) {
  const mpi_router_matrix& in = in_float(what, "logits", logits);
  if (in.shape[1] > 1 && in.strides[1] != 1) {
    unsupported(what, ": logits has the strides [", in.strides[0], ", ", in.strides[1],
                "], and a gate on a GPU takes contiguous rows");
  }
  return in;
}

float* check_weights(const char* what, const mpi_router_matrix* weights, index_t tokens, index_t top_k) {
  const mpi_router_matrix& out = in_float(what, "weights", weights);
  expect_shape(what, "weights", out, tokens, top_k, "[T, K]");
  if ((tokens > 1 && out.strides[0] != top_k) || (tokens > 0 && top_k > 1 && out.strides[1] != 1)) {
    unsupported(what, ": weights has the strides [", out.strides[0], ", ", out.strides[1],
                "], and a gate on a GPU writes them contiguous");
  }
  return static_cast<float*>(out.data);
}

const float* check_bias(const char* what, const mpi_router_vector* bias, index_t experts) {
  if (bias == nullptr) {
    return nullptr;
  }
  const mpi_router_vector& b = in_float(what, "selection_bias", bias);
  core::expect(b.size == experts, what, ": selection_bias has ", b.size, " elements, logits is ", experts,
               " experts wide");
  if (b.size > 1 && b.stride != 1) {
    unsupported(what, ": selection_bias has the stride ", b.stride, ", and a gate on a GPU takes 1");
  }
  return static_cast<const float*>(b.data);
}

void expect_aligned(const char* what, const char* name, const std::int32_t* counts) {
  core::expect(reinterpret_cast<std::uintptr_t>(counts) % alignof(std::int32_t) == 0, what, ": ", name,
               " is not aligned to int32_t");
}

}  // namespace
}  // namespace mpi_router_c

using namespace mpi_router_c;

extern "C" mpi_router_code mpi_router_cuda_gate(const mpi_router_cuda* cuda, const mpi_router_matrix* logits,
                                                const mpi_router_gating_options* options,
                                                const mpi_router_vector* selection_bias,
                                                const std::uint8_t* mask, const mpi_router_matrix* weights,
                                                std::int32_t* experts, std::uint8_t* statuses,
                                                std::int32_t* load) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_cuda_gate";
    const cuda::context ctx = context_of(what, cuda);
    const gating_options o = options_of(what, given(what, "options", options));
    const mpi_router_matrix& in = check_logits(what, logits);
    core::check_gating(what, o, in.shape[1]);
    const index_t tokens = in.shape[0];
    float* const out = check_weights(what, weights, tokens, o.top_k);
    const float* const bias = check_bias(what, selection_bias, in.shape[1]);
    core::expect(experts != nullptr || tokens == 0, what, ": experts is null");
    expect_aligned(what, "experts", experts);
    expect_aligned(what, "load", load);
    expect_reachable(what, ctx,
                     {{"logits", memory_of(in)},
                      {"weights", memory_of(*weights)},
                      {"selection_bias", bias},
                      {"mask", mask},
                      {"experts", experts},
                      {"statuses", statuses},
                      {"load", load}});
    cuda::gate(
        ctx, view_of<const float, device_space>(in), o, bias,
        {.weights = out, .experts = experts, .statuses = reinterpret_cast<status*>(statuses), .load = load},
        reinterpret_cast<const status*>(mask));
  });
}
