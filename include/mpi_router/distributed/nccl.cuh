// A communicator of NCCL, for the calls on GPUs. Needs nccl.h and the library.
#pragma once

#include <mpi_router/distributed/communicator.hpp>
#include <mpi_router/distributed/device_sums.cuh>
#include <mpi_router/distributed/sharded_router_rows.cuh>
#include <mpi_router/distributed/sharded_router_rows_vjp.cuh>

#include <nccl.h>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Nothing, after what is in the stream by now: it does not let the next kernel start before it has ended.
template <class = void>
__global__ void full_stop_kernel() {}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// A borrowed ncclComm_t as a SummingDeviceCommunicator: one ncclAllGather of floats a message (with
/// backend_sum one ncclAllReduce), on the stream of the call. Nothing of NCCL is made, waited for or
/// destroyed here.
///
/// Not within ncclGroupStart and ncclGroupEnd: what follows the message would be enqueued first. On a
/// non-blocking communicator the host waits until NCCL has enqueued it. NCCL connects the ranks at their
/// first message: make one before a graph is captured.
///
/// Throws usage_error on a null handle and on one that is not ready (a non-blocking initialisation under way,
/// a communicator that was aborted or has failed), communication_error where a call fails, each with the
/// call, the rank and the sizes. NCCL reports a rank that has gone by its own asynchronous error
/// (`expect_healthy`).
class nccl_communicator {
 public:
  explicit nccl_communicator(ncclComm_t comm) : comm_(comm) {
    core::expect(comm != nullptr, "nccl_communicator: a null ncclComm_t");
    expect_healthy();
    check("ncclCommUserRank", ncclCommUserRank(comm, &rank_), 0);
    check("ncclCommCount", ncclCommCount(comm, &size_), 0);
  }

  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t size() const noexcept { return size_; }
  [[nodiscard]] ncclComm_t handle() const noexcept { return comm_; }

  /// Enqueued on `stream`, a stream of the communicator's device.
  void all_gather(vector_view<const float, device_space> mine, vector_view<float, device_space> all,
                  stream_t stream) const {
    core::expect(mine.is_contiguous() && all.is_contiguous() && all.size() == size_ * mine.size(),
                 "nccl_communicator: all_gather of ", mine.size(), " elements from each of ", size_,
                 " ranks into ", all.size());
    enqueue("ncclAllGather", mine.size(), stream, [&] {
      return ncclAllGather(mine.data(), all.data(), static_cast<std::size_t>(mine.size()), ncclFloat, comm_,
                           stream);
    });
  }
  /// One ncclAllReduce in place, for backend_sum(). Enqueued likewise.
  template <std::floating_point S>
  void all_reduce_sum(vector_view<S, device_space> sums, stream_t stream) const {
    core::expect(sums.is_contiguous(), "nccl_communicator: all_reduce_sum of elements with gaps");
    enqueue("ncclAllReduce", sums.size(), stream, [&] {
      return ncclAllReduce(sums.data(), sums.data(), static_cast<std::size_t>(sums.size()),
                           sizeof(S) == sizeof(double) ? ncclDouble : ncclFloat, ncclSum, comm_, stream);
    });
  }

  /// Throws usage_error while the handle is not ready, communication_error once it has failed.
  void expect_healthy() const {
    ncclResult_t state = ncclSuccess;
    check("ncclCommGetAsyncError", ncclCommGetAsyncError(comm_, &state), 0);
    core::expect(state != ncclInProgress,
                 "nccl_communicator: the communicator is not ready: wait until ncclCommGetAsyncError says "
                 "ncclSuccess");
    check("ncclCommGetAsyncError", state, 0);
  }

 private:
  template <class Call>
  void enqueue(const char* name, index_t elements, stream_t stream, const Call& call) const {
    // In a window NCCL launches its kernel so that it may start while the last of ours runs, which lets it.
    detail::full_stop_kernel<><<<1, 1, 0, stream>>>();
    detail::check("full_stop_kernel", cudaGetLastError());
    ncclResult_t state = call();
    while (state ==
           ncclInProgress) {  // of a non-blocking communicator: what follows must not be enqueued first
      check("ncclCommGetAsyncError", ncclCommGetAsyncError(comm_, &state), elements);
    }
    check(name, state, elements);
  }
  void check(const char* call, ncclResult_t code, index_t elements) const {
    if (code != ncclSuccess && code != ncclInProgress) {
      core::communication_failure(core::concatenate(call, " of ", elements, " numbers a rank failed on rank ",
                                                    rank_, " of ", size_, ": ", ncclGetErrorString(code)));
    }
  }

  ncclComm_t comm_;
  int rank_ = -1;
  int size_ = 0;
};

MPIROUTER_CUDA_END
