// Messages of GPUs that are under way while weights are read: on a stream of their own.
#pragma once

#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/distributed/rank_message.cuh>

#include <utility>

MPIROUTER_CUDA_BEGIN

/// A DeviceCommunicator with messages beside the stream of a call: `start_all_gather(mine, all, stream)`
/// begins one as soon as what is in the stream by now is done, and lets the stream go on;
/// `finish_all(stream)` makes what the stream does next wait for all that have begun. Messages begin in the
/// same order on all ranks. Nothing waits on the host, nothing is allocated.
template <class C>
concept StartingDeviceCommunicator =
    DeviceCommunicator<C> &&
    requires(const std::remove_cvref_t<C>& comm, vector_view<const float, device_space> mine,
             vector_view<float, device_space> all, stream_t stream) {
      comm.start_all_gather(mine, all, stream);
      comm.finish_all(stream);
    };

/// A stream for messages with the events that order it after another and that after it. Of the device that is
/// current when it is made; make one and keep it. Its messages go first where a multiprocessor is free.
class message_stream {
 public:
  message_stream() {
    int least = 0;
    int greatest = 0;
    detail::check("cudaDeviceGetStreamPriorityRange", cudaDeviceGetStreamPriorityRange(&least, &greatest));
    detail::check("cudaStreamCreateWithPriority",
                  cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
    for (cudaEvent_t* const event : {&ready_, &arrived_}) {
      detail::check("cudaEventCreateWithFlags", cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    }
  }
  message_stream(const message_stream&) = delete;
  message_stream& operator=(const message_stream&) = delete;
  ~message_stream() {
    static_cast<void>(cudaEventDestroy(ready_));
    static_cast<void>(cudaEventDestroy(arrived_));
    static_cast<void>(cudaStreamDestroy(stream_));
  }
  [[nodiscard]] stream_t handle() const noexcept { return stream_; }
  /// What comes on it waits for what is in `other` by now.
  void begin_after(stream_t other) const { order(ready_, other, stream_); }
  /// What comes in `other` waits for what is on it by now.
  void end_before(stream_t other) const { order(arrived_, stream_, other); }

 private:
  static void order(cudaEvent_t event, stream_t first, stream_t then) {
    detail::check("cudaEventRecord", cudaEventRecord(event, first));
    detail::check("cudaStreamWaitEvent", cudaStreamWaitEvent(then, event, 0));
  }

  cudaStream_t stream_ = nullptr;
  cudaEvent_t ready_ = nullptr;
  cudaEvent_t arrived_ = nullptr;
};

/// A communicator whose messages go beside the reads. Build it with overlap_layers().
template <DeviceCommunicator C>
class device_layer_overlap {
 public:
  device_layer_overlap(C comm, const message_stream& beside) : comm_(std::move(comm)), beside_(&beside) {}
  [[nodiscard]] index_t rank() const { return static_cast<index_t>(comm_.rank()); }
  [[nodiscard]] index_t size() const { return static_cast<index_t>(comm_.size()); }
  void all_gather(vector_view<const float, device_space> mine, vector_view<float, device_space> all,
                  stream_t stream) const {
    comm_.all_gather(mine, all, stream);
  }
  void start_all_gather(vector_view<const float, device_space> mine, vector_view<float, device_space> all,
                        stream_t stream) const {
    beside_->begin_after(stream);
    comm_.all_gather(mine, all, beside_->handle());
  }
  void finish_all(stream_t stream) const { beside_->end_before(stream); }

 private:
  C comm_;
  const message_stream* beside_;
};

/// The same communicator, with which sharded_router_rows and its backward send some layers by themselves (a
/// large one in pieces; some 4 MiB a message) on `beside`, and read the next while that is under way. Bits
/// may differ from those of one message for all: layers are read by other launches. `beside` is borrowed, for
/// one call at a time. Columns, whose messages wait for each other, are sent as ever.
template <DeviceCommunicator C>
[[nodiscard]] device_layer_overlap<C> overlap_layers(C comm, const message_stream& beside) {
  return {std::move(comm), beside};
}

MPIROUTER_CUDA_END

MPIROUTER_CUDA_DETAIL_BEGIN

/// The message of some parts, on the stream of the call or beside it.
template <class Comm>
void start_gather(const context& ctx, const Comm& comm, const float* mine, float* all, index_t floats) {
  if constexpr (StartingDeviceCommunicator<Comm>) {
    comm.start_all_gather(vector_view<const float, device_space>(mine, floats),
                          vector_view<float, device_space>(all, static_cast<index_t>(comm.size()) * floats),
                          ctx.stream);
  } else {
    gather(ctx, comm, mine, all, floats);
  }
}

template <class Comm>
void wait_for_messages(const context& ctx, const Comm& comm) {
  if constexpr (StartingDeviceCommunicator<Comm>) comm.finish_all(ctx.stream);
}

MPIROUTER_CUDA_DETAIL_END
