// Ranks on GPUs that are threads of one program, any number of them on one device: for tests, for teaching,
// and for trying a program before there is a second GPU (NCCL takes one rank a device).
#pragma once

#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/distributed/device_sums.cuh>
#include <mpi_router/distributed/loopback.hpp>
#include <mpi_router/distributed/peers.cuh>
#include <mpi_router/distributed/rank_message.cuh>

#include <array>
#include <cstddef>
#include <vector>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Elements of all ranks.
template <class S>
struct loopback_sums {
  static constexpr int most = 64;
  const S* of[most];
  int ranks;
};
/// to = Σ over the ranks.
template <class S>
__global__ void loopback_sum_kernel(const __grid_constant__ loopback_sums<S> from, long long count, S* to) {
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    S sum = 0;
    for (int r = from.ranks - 1; r >= 0; --r) sum += from.of[r][i];
    to[i] = sum;
  }
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// Two events for each member: what it sends is ready; it has what the others sent.
class loopback_events {
 public:
  explicit loopback_events(index_t ranks) : of_(static_cast<std::size_t>(ranks)) {
    for (auto& rank : of_) {
      for (cudaEvent_t& event : rank) {
        detail::check("cudaEventCreateWithFlags", cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
      }
    }
  }
  loopback_events(const loopback_events&) = delete;
  loopback_events& operator=(const loopback_events&) = delete;
  ~loopback_events() {
    for (auto& rank : of_) {
      for (cudaEvent_t event : rank) static_cast<void>(cudaEventDestroy(event));
    }
  }
  [[nodiscard]] cudaEvent_t ready(index_t rank) const { return of_[static_cast<std::size_t>(rank)][0]; }
  [[nodiscard]] cudaEvent_t done(index_t rank) const { return of_[static_cast<std::size_t>(rank)][1]; }

 private:
  std::vector<std::array<cudaEvent_t, 2>> of_;
};

/// One member of a group of threads, a DeviceCommunicator. The threads meet on the host to show each other
/// where their messages lie; the copies are ordered by events, and no stream is waited for. Messages of
/// different lengths, and members that have returned or thrown, are communication_error on all. Not to be
/// captured in a graph, for events of other streams would be. run_device_ranks() makes them.
class device_loopback_communicator {
 public:
  device_loopback_communicator(mpi_router::detail::loopback_meeting& meeting, const loopback_events& events,
                               index_t rank)
      : meeting_(&meeting), events_(&events), rank_(rank) {}

  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t size() const noexcept { return meeting_->size(); }

  void all_gather(vector_view<const float, device_space> mine, vector_view<float, device_space> all,
                  stream_t stream) const {
    constexpr const char* call = "device_loopback: all_gather";
    core::expect(mine.is_contiguous() && all.is_contiguous() && all.size() == size() * mine.size(), call,
                 " of ", mine.size(), " elements from each of ", size(), " ranks into ", all.size());
    detail::check("cudaEventRecord", cudaEventRecord(events_->ready(rank_), stream));
    meeting_->show(call, rank_, {mine.data(), mine.size(), sizeof(float)});
    const auto bytes = static_cast<std::size_t>(mine.size()) * sizeof(float);
    for (index_t other = 0; other < size(); ++other) {
      detail::check("cudaStreamWaitEvent", cudaStreamWaitEvent(stream, events_->ready(other), 0));
      detail::check("cudaMemcpyAsync",
                    cudaMemcpyAsync(all.data() + other * mine.size(), meeting_->shown(other).data, bytes,
                                    cudaMemcpyDefault, stream));
    }
    leave(call, stream);
  }
  /// Sums in the opposite order of the ranks (of up to 64): other bits than in their order, as of a library.
  /// Takes memory of the device's pool meanwhile.
  template <std::floating_point S>
  void all_reduce_sum(vector_view<S, device_space> sums, stream_t stream) const {
    constexpr const char* call = "device_loopback: all_reduce_sum";
    core::expect(sums.is_contiguous() && size() <= detail::loopback_sums<S>::most, call, " of ", sums.size(),
                 " elements over ", size(), " ranks");
    const auto bytes = static_cast<std::size_t>(sums.size()) * sizeof(S);
    detail::check("cudaEventRecord", cudaEventRecord(events_->ready(rank_), stream));
    meeting_->show(call, rank_, {sums.data(), sums.size(), sizeof(S)});
    void* total = nullptr;  // what throws from here on leaves it to the pool
    detail::check("cudaMallocAsync", cudaMallocAsync(&total, bytes, stream));
    detail::loopback_sums<S> from{{}, static_cast<int>(size())};
    for (index_t other = 0; other < size(); ++other) {
      detail::check("cudaStreamWaitEvent", cudaStreamWaitEvent(stream, events_->ready(other), 0));
      from.of[other] = static_cast<const S*>(meeting_->shown(other).data);
    }
    detail::loopback_sum_kernel<<<256, 256, 0, stream>>>(from, static_cast<long long>(sums.size()),
                                                         static_cast<S*>(total));
    detail::check("loopback_sum_kernel", cudaGetLastError());
    leave(call, stream);  // none writes its elements before all have read them
    detail::check("cudaMemcpyAsync",
                  cudaMemcpyAsync(sums.data(), total, bytes, cudaMemcpyDeviceToDevice, stream));
    detail::check("cudaFreeAsync", cudaFreeAsync(total, stream));
  }

 protected:
  /// peers[i], where it is wanted, is `offset` after what rank (rank() + 1 + i) mod size() shows; all have
  /// come to here.
  void show(stream_t stream, const float* work, std::ptrdiff_t offset, float** peers) const {
    constexpr const char* call = "device_loopback: meet";
    detail::check("cudaEventRecord", cudaEventRecord(events_->ready(rank_), stream));
    meeting_->show(call, rank_, {work, 1, sizeof(float)});
    for (index_t i = 0; i + 1 < size(); ++i) {
      const index_t other = (rank_ + 1 + i) % size();
      detail::check("cudaStreamWaitEvent", cudaStreamWaitEvent(stream, events_->ready(other), 0));
      if (peers == nullptr) continue;
      const float* const there = static_cast<const float*>(meeting_->shown(other).data) + offset;
      detail::check("cudaMemcpyAsync", cudaMemcpyAsync(peers + i, &there, sizeof(there), cudaMemcpyDefault,
                                                       stream));  // pageable: taken when it returns
    }
    leave(call, stream);
  }

 private:
  /// None writes again what another still reads.
  void leave(const char* call, stream_t stream) const {
    detail::check("cudaEventRecord", cudaEventRecord(events_->done(rank_), stream));
    meeting_->wait(call, rank_);
    for (index_t other = 0; other < size(); ++other) {
      detail::check("cudaStreamWaitEvent", cudaStreamWaitEvent(stream, events_->done(other), 0));
    }
  }

  mpi_router::detail::loopback_meeting* meeting_;
  const loopback_events* events_;
  index_t rank_;
};
static_assert(SummingDeviceCommunicator<device_loopback_communicator>);

/// The same member, a PeerCommunicator: on one device every rank reaches the memory of all. `work`: where
/// this rank's workspace begins.
class device_loopback_peer : public device_loopback_communicator {
 public:
  device_loopback_peer(const device_loopback_communicator& comm, void* work)
      : device_loopback_communicator(comm), work_(static_cast<float*>(work)) {}
  void meet(const context& ctx, float* mine, float** peers) const {
    show(ctx.stream, work_, peers == nullptr ? 0 : mine - work_, peers);
  }

 private:
  float* work_;
};
static_assert(PeerCommunicator<device_loopback_peer>);

/// Runs work(communicator) on `size` threads, one a rank, all on the device that is current, and waits for
/// the threads (not for their streams). As run_ranks().
template <class Work>
void run_device_ranks(index_t size, const Work& work) {
  int device = 0;
  detail::check("cudaGetDevice", cudaGetDevice(&device));
  mpi_router::detail::loopback_meeting meeting(size);
  const loopback_events events(size);
  mpi_router::detail::run_members(meeting, [&](index_t rank) {
    detail::check("cudaSetDevice", cudaSetDevice(device));
    work(device_loopback_communicator(meeting, events, rank));
  });
}

MPIROUTER_CUDA_END
