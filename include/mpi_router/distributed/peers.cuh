// Ranks whose GPUs reach each other's memory: what one makes goes to all as it is made, and no message is
// waited for.
#pragma once

#include <mpi_router/core/config.hpp>
#include <mpi_router/cuda/context.cuh>

#include <concepts>
#include <type_traits>

MPIROUTER_CUDA_BEGIN

/// A communicator whose ranks have their workspaces at the same place of memory that all can write to.
/// `meet(ctx, mine, peers)` is enqueued on the stream of ctx: what is enqueued after it on any rank runs
/// after what was enqueued before it on all, and sees what that wrote. Where `peers` is not null, peers[i],
/// memory of this device, becomes the address that rank (rank() + 1 + i) mod size() has for what lies at
/// `mine` here, for all size() − 1 others. Nothing waits on the host, nothing is allocated; may be captured
/// in a graph. distributed/nccl_window.cuh adapts a window of NCCL.
///
/// `static constexpr bool at_rest_after_meet = true` says that meet always launches a kernel, which lets the
/// next start only when it has itself waited for the one before it: then the reading of weights begins while
/// the ranks meet, as with context::inputs_at_rest.
template <class C>
concept PeerCommunicator =
    requires(const std::remove_cvref_t<C>& comm, const context& ctx, float* mine, float** peers) {
      { comm.rank() } -> std::convertible_to<index_t>;
      { comm.size() } -> std::convertible_to<index_t>;
      comm.meet(ctx, mine, peers);
    };

MPIROUTER_CUDA_END

MPIROUTER_CUDA_DETAIL_BEGIN

/// What the communicator says of that.
template <class C>
[[nodiscard]] constexpr bool is_at_rest_after_meet() {
  if constexpr (requires { C::at_rest_after_meet; }) {
    return C::at_rest_after_meet;
  } else {
    return false;
  }
}

MPIROUTER_CUDA_DETAIL_END
