// The launches of the gate and of what tells how even its loads are.
#pragma once

#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/gate/balance.cuh>
#include <mpi_router/cuda/detail/gate/kernel.cuh>
#include <mpi_router/cuda/detail/gate/ranks_kernel.cuh>
#include <mpi_router/cuda/detail/plan/gate_plan.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

inline void launch_gate(const context& ctx, const gate_args& args) {
  const gate_plan plan = make_gate_plan(
      ctx, {args.tokens, args.num_experts, args.top_k, args.groups, args.top_groups, args.load != nullptr});
  const launch_shape shape{plan.blocks, static_cast<unsigned>(plan.threads), plan.shared_bytes};
  if (plan.ranks()) {
    const auto run = [&](auto kernel) { launch("gate_ranks_kernel", ctx, shape, kernel, args); };
    plan.own == 16    ? run(gate_ranks_kernel<4, 16>)
    : plan.lanes == 4 ? run(gate_ranks_kernel<4, 32>)
                      : run(gate_ranks_kernel<8, 32>);
    return;
  }
  const auto run = [&](auto kernel) {
    launch("gate_kernel", ctx, shape, kernel, args, plan.scratch_per_warp);
  };
  switch (plan.own) {
    case 2: run(gate_kernel<2>); break;
    case 4: run(gate_kernel<4>); break;
    case 8: run(gate_kernel<8>); break;
    case 16: run(gate_kernel<16>); break;
    default: run(gate_kernel<0>);
  }
}

inline void launch_balance(const context& ctx, const int* load, int num_experts, double* max_violation,
                           double* entropy) {
  launch("balance_kernel", ctx, {1, balance_threads}, balance_kernel<>, load, num_experts, max_violation,
         entropy);
}

MPIROUTER_CUDA_DETAIL_END
