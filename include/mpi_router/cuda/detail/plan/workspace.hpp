// What a plan puts into the caller's workspace.
#pragma once

#include <mpi_router/cuda/detail/plan/partial_sums.hpp>
#include <mpi_router/cuda/detail/plan/partition.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

#include <cstddef>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Hands out pieces of a workspace, each aligned to workspace_alignment; with no data it only counts. Views
/// hold N·F·D below 2^60 elements, so that no count of bytes overflows.
class arena {
 public:
  explicit arena(void* data) : data_(static_cast<unsigned char*>(data)) {}
  template <class U>
  [[nodiscard]] U* take(index_t count) {
    const std::size_t at = used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(U) + workspace_alignment - 1) / workspace_alignment *
             workspace_alignment;
    return data_ == nullptr ? nullptr : reinterpret_cast<U*>(data_ + at);
  }
  [[nodiscard]] std::size_t used() const noexcept { return used_; }
  /// As far as another that began at the same place: one of the two is used.
  void reach(const arena& other) noexcept { used_ = other.used_ > used_ ? other.used_ : used_; }

 private:
  unsigned char* data_;
  std::size_t used_ = 0;
};

/// Memory for the partial sums of a plan.
[[nodiscard]] inline partial_sums take_partial_sums(arena& memory, const partition& part, int pitch) {
  partial_sums s;
  s.pitch = pitch;
  s.rows = memory.take<float>(part.slots() * pitch);
  s.headers = memory.take<slot_header>(part.slots());
  return s;
}

MPIROUTER_CUDA_DETAIL_END
