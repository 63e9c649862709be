// The backward on the plain path: any strides, any alignment, any size, f64 storage. Sums in f64.
#pragma once

#include <mpi_router/cuda/detail/dual_row.cuh>
#include <mpi_router/cuda/detail/plain.cuh>
#include <mpi_router/cuda/detail/plan/vjp_plan.hpp>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// z̄ of each expert in f64, zero where there was no step. `image`: z itself in f64, if the saved direction is
/// too short.
template <class = void>
__global__ void __launch_bounds__(256)
    dual_kernel(const __grid_constant__ dual_source from, const double* image, int hidden, double* dual) {
  __shared__ double scratch[2 * most_warps];
  wait_for_previous_kernel();
  const int e = static_cast<int>(blockIdx.x);
  const long long row = static_cast<long long>(e) * hidden;
  const auto direction = [&](int d) { return image != nullptr ? image[row + d] : from.direction.load(e, d); };
  double sums[2] = {0.0, 0.0};
  for (int d = static_cast<int>(threadIdx.x); d < hidden; d += 256) {
    sums[0] = fma(direction(d), direction(d), sums[0]);
    sums[1] = fma(direction(d), from.grad_rows.load(e, d), sums[1]);
  }
  sum_over_block(sums, scratch, 256);
  const bool dead = from.saved.statuses != nullptr && from.saved.statuses[e] != status::ok;
  const double gain = from.radius / from.saved.image_norm[e];
  for (int d = static_cast<int>(threadIdx.x); d < hidden; d += 256) {
    dual[row + d] = dead ? 0.0 : gain * (from.grad_rows.load(e, d) - direction(d) * (sums[1] / sums[0]));
  }
}

template <class G>
struct outer_args {
  batch<G> gradient;
  any_matrix rows;
  const double* y;     // [N, F]
  const double* w;     // [N, F]
  const double* dual;  // [N, D]
  const status* statuses;
  int ffn;
  int hidden;
};

/// Ā = y z̄ᵀ + w rᵀ, element by element; threads run along the contiguous axis.
template <class G, bool add>
__global__ void __launch_bounds__(256) outer_kernel(const __grid_constant__ outer_args<G> a) {
  wait_for_previous_kernel();
  const int e = static_cast<int>(blockIdx.x);
  const bool dead = a.statuses != nullptr && a.statuses[e] != status::ok;
  G* const base = a.gradient.of(e);
  const bool along_hidden = llabs(a.gradient.hidden) <= llabs(a.gradient.ffn);
  const int inner = along_hidden ? a.hidden : a.ffn;
  const int outer = along_hidden ? a.ffn : a.hidden;
  for (int i = static_cast<int>(blockIdx.y); i < outer; i += static_cast<int>(gridDim.y)) {
    for (int j = static_cast<int>(threadIdx.x); j < inner; j += 256) {
      const int f = along_hidden ? i : j;
      const int d = along_hidden ? j : i;
      G& at = base[f * a.gradient.ffn + d * a.gradient.hidden];
      const long long row = static_cast<long long>(e) * a.ffn + f;
      const double value =
          dead ? 0.0
               : a.y[row] * a.dual[static_cast<long long>(e) * a.hidden + d] + a.w[row] * a.rows.load(e, d);
      if (!add) {
        at = from_double<G>(value);
      } else if (!dead) {
        at = from_double<G>(to_double(at) + value);
      }
    }
  }
}

template <class = void>
__global__ void __launch_bounds__(256)
    narrow_kernel(const double* from, float* to, const status* statuses, int extent) {
  wait_for_previous_kernel();
  const int e = static_cast<int>(blockIdx.x);
  const bool dead = statuses != nullptr && statuses[e] != status::ok;
  for (int i = static_cast<int>(blockIdx.y * 256 + threadIdx.x); i < extent;
       i += static_cast<int>(gridDim.y) * 256) {
    const long long at = static_cast<long long>(e) * extent + i;
    to[at] = dead ? 0.0F : static_cast<float>(from[at]);
  }
}

template <class T, class G, vjp_mode mode>
void plain_vjp(const context& ctx, const batch<const T>& weights, const expert_shape& shape,
               const any_matrix& rows, const dual_source& dual, const any_matrix& grad_router,
               const batch<G>& gradient, const gradient_factors& factors, const plain_vjp_memory& memory) {
  const int ffn = static_cast<int>(shape.ffn_dim);
  const int hidden = static_cast<int>(shape.hidden_dim);
  const auto experts = static_cast<unsigned>(shape.num_experts);
  constexpr bool again = sizeof(T) == 8;  // an f32 direction is too short for f64 weights
  if (again) {
    plain_step<T>(ctx, weights, shape, rows, memory.y, memory.u, memory.energy);
  }
  launch("dual_kernel", ctx, {experts, 256}, dual_kernel<>, dual, again ? memory.u : nullptr, hidden,
         memory.dual);
  contract_args<T> project{weights,
                           weights.ffn,
                           weights.hidden,
                           ffn,
                           hidden,
                           {rows, any_matrix(memory.dual, hidden)},
                           {memory.y, memory.w}};
  contract<T, 2>(ctx, shape.num_experts, project);
  contract_args<T> lift{weights,
                        weights.hidden,
                        weights.ffn,
                        hidden,
                        ffn,
                        {any_matrix(memory.w, ffn), {}},
                        {memory.u, nullptr}};
  contract<T, 1>(ctx, shape.num_experts, lift);
  const status* const statuses = dual.saved.statuses;
  if (grad_router.data != nullptr) {
    collect(ctx, shape.num_experts,
            collect_args<matrix_images>{{any_matrix(memory.u, hidden), nullptr},
                                        grad_router,
                                        nullptr,
                                        statuses,
                                        dual.passes_on() ? dual.grad_rows : any_matrix(),
                                        hidden});
  }
  if constexpr (mode == vjp_mode::factored) {
    const auto narrow = [&](const double* from, float* to, int extent) {
      if (to != nullptr) {
        const int tall = (extent + 255) / 256;
        launch("narrow_kernel", ctx, {experts, 256, 0, 1, static_cast<unsigned>(tall < 1024 ? tall : 1024)},
               narrow_kernel<>, from, to, statuses, extent);
      }
    };
    narrow(memory.y, factors.projection, ffn);
    narrow(memory.w, factors.dual_projection, ffn);
    narrow(memory.dual, factors.dual_row, hidden);
  } else {
    const outer_args<G> args{gradient, rows, memory.y, memory.w, memory.dual, statuses, ffn, hidden};
    const int tall = ffn > hidden ? ffn : hidden;
    launch("outer_kernel", ctx, {experts, 256, 0, 1, static_cast<unsigned>(tall < 1024 ? tall : 1024)},
           outer_kernel < G, mode == vjp_mode::accumulate >, args);
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
