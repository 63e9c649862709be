// In which order a backward over panels copies what its gradient is added to, and what it waits for.
#pragma once

#include <mpi_router/cuda/detail/plan/tuning.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A panel is lifted from the first pass with one place in the ring of weights on, the doubled ones last. The
/// copies of the first `ahead` passes of the old gradient travel with those of weights that the dots start,
/// `doubled` groups; then each pass that is lifted takes along the one that is `ahead` of it, in the group
/// that it closes. Passes that are doubled close none.
struct old_copies {
  int passes;   // of a panel
  int doubled;  // of them
  int ahead;    // places in the ring of the old gradient

  /// Whether every pass has a group to travel with: those that close none come last.
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr bool reaches_all() const { return ahead >= doubled; }
  /// The pass that is lifted as the ith.
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr int pass(int i) const { return (i + doubled) % passes; }
  /// Of the groups that the dots close, the one that the ith pass travels with, i < ahead.
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr int dots_group(int i) const { return i * doubled / ahead; }
  /// How many groups may be under way when the ith pass is needed: those that were closed after its own.
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr int pending(int i) const {
    const int lifted = passes - doubled;
    const int closed = i < lifted ? i : lifted;  // of the lift's groups
    return i < ahead ? doubled - 1 - dots_group(i) + closed : closed - 1 - (i - ahead);
  }
};

MPIROUTER_CUDA_DETAIL_END
