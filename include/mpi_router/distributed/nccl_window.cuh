// A communicator of NCCL whose ranks write into each other's workspace. Needs nccl.h and nccl_device.h (NCCL
// 2.28 or newer) and the library.
#pragma once

#include <mpi_router/distributed/nccl.cuh>
#include <mpi_router/distributed/peers.cuh>

#if __has_include(<nccl_device.h>)
#include <nccl_device.h>
#else
#error "mpi_router/distributed/nccl_window.cuh needs nccl_device.h, of NCCL 2.28 or newer; nccl.cuh does not"
#endif

MPIROUTER_CUDA_DETAIL_BEGIN

/// All ranks come to here.
template <class = void>
__global__ void __launch_bounds__(warp_threads)
    meet_kernel(const __grid_constant__ ncclDevComm comm, ncclWindow_t window, std::size_t offset,
                float** peers) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  for (int i = static_cast<int>(threadIdx.x); peers != nullptr && i + 1 < comm.lsaSize; i += warp_threads) {
    peers[i] = static_cast<float*>(ncclGetLsaPointer(window, offset, (comm.lsaRank + 1 + i) % comm.lsaSize));
  }
  ncclLsaBarrierSession<ncclCoopCta> barrier(ncclCoopCta(), comm, ncclTeamTagLsa(), 0);
  barrier.sync(ncclCoopCta(), ::cuda::memory_order_acq_rel);
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// A borrowed ncclComm_t whose workspace is a window, as a PeerCommunicator: sharded_router_rows then writes
/// each direction, with its numbers, to all ranks as it is made, over NVLink, in place of a message after the
/// reads. It sends no messages: columns and the backward take nccl_communicator, and a workspace that is in
/// no window.
///
/// device: made by ncclDevCommCreate with lsaBarrierCount of 1 or more, of which the first barrier is used.
/// window: of ncclCommWindowRegister with NCCL_WIN_COLL_SYMMETRIC, of `bytes` at `base`, as many on every
/// rank: what the rank with the largest workspace needs. All borrowed. The workspace of a call lies in it, on
/// every rank as far from the base. One call at a time, on one stream.
///
/// Throws usage_error as nccl_communicator, where not all ranks reach each other's memory (they are not of
/// one NVLink domain), and where a workspace does not lie in the window.
class nccl_window_communicator {
 public:
  static constexpr bool at_rest_after_meet = true;  ///< § PeerCommunicator

  nccl_window_communicator(ncclComm_t comm, const ncclDevComm& device, ncclWindow_t window, void* base,
                           std::size_t bytes)
      : comm_(comm),
        device_(device),
        window_(window),
        base_(static_cast<unsigned char*>(base)),
        bytes_(bytes) {
    core::expect(window != nullptr && base != nullptr, "nccl_window_communicator: a null window");
    core::expect(device.lsaSize == size() && device.lsaRank == rank(), "nccl_window_communicator: of ",
                 size(), " ranks, rank ", rank(), " reaches the memory of ", device.lsaSize,
                 " alone: use nccl_communicator");
  }

  [[nodiscard]] index_t rank() const noexcept { return comm_.rank(); }
  [[nodiscard]] index_t size() const noexcept { return comm_.size(); }
  [[nodiscard]] ncclComm_t handle() const noexcept { return comm_.handle(); }

  /// That what the ranks write lies in the window.
  void expect_holds(const float* first, std::size_t bytes) const {
    const auto at = reinterpret_cast<std::uintptr_t>(first);
    const auto begin = reinterpret_cast<std::uintptr_t>(base_);
    core::expect(at >= begin && at - begin <= bytes_ && bytes <= bytes_ - (at - begin),
                 "nccl_window_communicator: the workspace does not lie in the window of ", bytes_, " bytes");
  }
  void meet(const context& ctx, float* mine, float** peers) const {
    const std::size_t offset =
        mine == nullptr ? 0
                        : reinterpret_cast<std::uintptr_t>(mine) - reinterpret_cast<std::uintptr_t>(base_);
    detail::launch("meet_kernel", ctx, {1, detail::warp_threads}, detail::meet_kernel<>, device_, window_,
                   offset, peers);
  }

 private:
  nccl_communicator comm_;
  ncclDevComm device_;
  ncclWindow_t window_;
  unsigned char* base_;
  std::size_t bytes_;
};
static_assert(PeerCommunicator<nccl_window_communicator> && !DeviceCommunicator<nccl_window_communicator>);

MPIROUTER_CUDA_END
