// Ranks whose GPUs reach each other's memory: what one makes goes to all as it is made, and no message is
// waited for.
#pragma once

#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/distributed/rank_message.cuh>

MPIROUTER_CUDA_BEGIN

/// A communicator whose ranks have their workspaces at the same place of memory that all can write to.
/// `meet(ctx, mine, peers)` is enqueued on the stream of ctx: what is enqueued after it on any rank runs
/// after what was enqueued before it on all, and sees what that wrote. Where `peers` is not null, peers[i],
/// memory of this device, becomes the address that rank (rank() + 1 + i) mod size() has for what lies at
/// `mine` here, for all size() − 1 others. Nothing waits on the host, nothing is allocated; may be captured
/// in a graph. distributed/nccl_window.cuh adapts a window of NCCL.
template <class C>
concept PeerCommunicator =
    requires(const std::remove_cvref_t<C>& comm, const context& ctx, float* mine, float** peers) {
      { comm.rank() } -> std::convertible_to<index_t>;
      { comm.size() } -> std::convertible_to<index_t>;
      comm.meet(ctx, mine, peers);
    };

MPIROUTER_CUDA_END

MPIROUTER_CUDA_DETAIL_BEGIN

/// The others, as rows at `at` go to them; `mine`: what their bases stand for here.
[[nodiscard]] inline peer_rows peers_at(float* const* bases, index_t ranks, const float* mine,
                                        const float* at) {
  return bases == nullptr ? peer_rows{} : peer_rows{bases, static_cast<int>(ranks - 1), at - mine};
}

/// The first floats of what this rank has made, to all others: a block for each.
template <class = void>
__global__ void __launch_bounds__(generic_threads)
    send_kernel(const float4* from, int fours, float* const* peers) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  auto* const to = reinterpret_cast<float4*>(peers[blockIdx.x]);
  for (int i = static_cast<int>(threadIdx.x); i < fours; i += static_cast<int>(blockDim.x)) {
    to[i] = from[i];
  }
  __threadfence_system();
}
inline void send_to_peers(const context& ctx, const float* mine, index_t floats, float* const* peers,
                          index_t ranks) {
  if (ranks < 2) return;
  launch("send_kernel", ctx, {static_cast<unsigned>(ranks - 1), generic_threads}, send_kernel<>,
         reinterpret_cast<const float4*>(mine), static_cast<int>(floats / 4), peers);
}

MPIROUTER_CUDA_DETAIL_END
