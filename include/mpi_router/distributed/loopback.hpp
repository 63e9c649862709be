// Ranks that are threads of one program: for tests, for teaching, and for trying a program before there is a
// network.
#pragma once

#include <mpi_router/distributed/communicator.hpp>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

MPIROUTER_BEGIN

namespace detail {

/// What a member shows the others while a call is under way.
struct loopback_message {
  const void* data = nullptr;
  index_t elements = 0;
  std::size_t element_size = 0;
  friend bool is_like(const loopback_message& a, const loopback_message& b) {
    return a.elements == b.elements && a.element_size == b.element_size;
  }
};

/// Where the members meet. One that has gone ends the wait of all others.
class loopback_meeting {
 public:
  explicit loopback_meeting(index_t size) : size_(size), shown_(static_cast<std::size_t>(size)) {
    expect(size >= 1, "loopback: a group of ", size, " ranks");
  }

  [[nodiscard]] index_t size() const noexcept { return size_; }
  /// Written by its own rank before, read by all between two waits.
  [[nodiscard]] const loopback_message& shown(index_t rank) const {
    return shown_[static_cast<std::size_t>(rank)];
  }

  void wait(const char* call, index_t rank) {
    std::unique_lock lock(mutex_);
    const std::size_t round = round_;
    if (gone_ < 0 && ++arrived_ == size_) {
      arrived_ = 0;
      ++round_;
      lock.unlock();
      all_here_.notify_all();
      return;
    }
    all_here_.wait(lock, [&] { return round_ != round || gone_ >= 0; });
    if (round_ == round) {  // for good: a group that has lost a member never meets again
      core::communication_failure(
          concatenate(call, " on rank ", rank, " of ", size_, ", but rank ", gone_, " has gone"));
    }
  }
  /// Shows the others a message. Returns when all have shown theirs and all are alike; else throws, on every
  /// rank.
  void show(const char* call, index_t rank, const loopback_message& mine) {
    shown_[static_cast<std::size_t>(rank)] = mine;
    wait(call, rank);
    const loopback_message first = shown(0);
    for (index_t other = 1; other < size_; ++other) {
      const loopback_message theirs = shown(other);
      if (!is_like(first, theirs)) {
        wait(call, rank);
        core::communication_failure(concatenate(call, " on rank ", rank, " of ", size_, ": rank 0 has ",
                                                first.elements, " elements of ", first.element_size,
                                                " bytes, rank ", other, " has ", theirs.elements, " of ",
                                                theirs.element_size));
      }
    }
  }
  void leave(index_t rank) {
    {
      const std::scoped_lock lock(mutex_);
      gone_ = gone_ < 0 ? rank : gone_;
    }
    all_here_.notify_all();
  }

 private:
  index_t size_;
  std::vector<loopback_message> shown_;
  std::mutex mutex_;
  std::condition_variable all_here_;
  index_t arrived_ = 0;
  std::size_t round_ = 0;
  index_t gone_ = -1;
};

}  // namespace detail

template <Accumulator S, class Comm>
class loopback_request;

/// One member of a group of threads. A Communicator, a StartingCommunicator, whose messages go when they are
/// waited for, and a SummingCommunicator, which adds in rank order.
/// Calls that do not fit on all ranks throw communication_error on all, with the sizes; so do calls for which
/// a member is missing that has returned or thrown. run_ranks() makes them.
class loopback_communicator {
 public:
  loopback_communicator(detail::loopback_meeting& meeting, index_t rank) : meeting_(&meeting), rank_(rank) {}

  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t size() const noexcept { return meeting_->size(); }

  template <Accumulator S>
  void all_gather(vector_view<const S> mine, vector_view<S> all) const {
    constexpr const char* call = "loopback: all_gather";
    core::expect_all_gather("loopback", mine, all, size());
    meeting_->show(call, rank_, {mine.data(), mine.size(), sizeof(S)});
    for (index_t other = 0; other < size(); ++other) {
      std::copy_n(data_of<S>(other), mine.size(), all.data() + other * mine.size());
    }
    meeting_->wait(call, rank_);  // none goes on and writes while another reads
  }

  template <Accumulator S>
  [[nodiscard]] loopback_request<S, loopback_communicator> start_all_gather(vector_view<const S> mine,
                                                                            vector_view<S> all) const {
    core::expect_all_gather("loopback", mine, all, size());
    return {*this, mine, all};
  }

  template <Accumulator S>
  void all_reduce_sum(vector_view<S> elements) const {
    constexpr const char* call = "loopback: all_reduce_sum";
    core::expect(elements.is_contiguous(), "loopback: all_reduce_sum of elements ", elements.stride(),
                 " apart");
    meeting_->show(call, rank_, {elements.data(), elements.size(), sizeof(S)});
    std::array<S, 256> sums{};
    constexpr auto most = static_cast<index_t>(sums.size());
    for (index_t first = 0; first < elements.size(); first += most) {
      const index_t count = std::min(most, elements.size() - first);
      for (index_t k = 0; k < count; ++k) {
        S sum = data_of<S>(0)[first + k];
        for (index_t other = 1; other < size(); ++other) sum += data_of<S>(other)[first + k];
        sums[static_cast<std::size_t>(k)] = sum;
      }
      meeting_->wait(call, rank_);  // all have read what is written now
      std::copy_n(sums.data(), count, elements.data() + first);
    }
    meeting_->wait(call, rank_);
  }

 private:
  template <class S>
  [[nodiscard]] const S* data_of(index_t rank) const {
    return static_cast<const S*>(meeting_->shown(rank).data);
  }
  detail::loopback_meeting* meeting_;
  index_t rank_;
};

/// A message that has begun. It must be waited for: a thread that drops it has thrown, and is about to leave
/// its group.
template <Accumulator S, class Comm>
class loopback_request {
 public:
  loopback_request(const Comm& comm, vector_view<const S> mine, vector_view<S> all)
      : comm_(comm), mine_(mine), all_(all) {}
  void wait() { comm_.all_gather(mine_, all_); }

 private:
  Comm comm_;
  vector_view<const S> mine_;
  vector_view<S> all_;
};

namespace detail {

/// work(rank) on a thread for each member of a meeting; the exception of the first that threw is thrown on.
template <class Work>
void run_members(loopback_meeting& meeting, const Work& work) {
  std::exception_ptr first;
  std::mutex keep;
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(meeting.size()));
  for (index_t rank = 0; rank < meeting.size(); ++rank) {
    threads.emplace_back([&, rank] {
#if MPIROUTER_HAS_EXCEPTIONS
      try {
        work(rank);
      } catch (...) {
        const std::scoped_lock lock(keep);
        first = first ? first : std::current_exception();
      }
#else
      work(rank);
#endif
      meeting.leave(rank);
    });
  }
  for (auto& thread : threads) thread.join();
#if MPIROUTER_HAS_EXCEPTIONS
  if (first) std::rethrow_exception(first);
#endif
}

}  // namespace detail

/// Runs work(communicator) on `size` threads, one a rank, and waits for all of them. Where members throw, the
/// others do not wait for them in vain, and the exception of the first that threw is thrown on. Throws
/// usage_error on size < 1. (It starts threads and allocates, unlike the rest of the library.)
template <class Work>
void run_ranks(index_t size, const Work& work) {
  detail::loopback_meeting meeting(size);
  detail::run_members(meeting, [&](index_t rank) { work(loopback_communicator(meeting, rank)); });
}

MPIROUTER_END
