// Communicators of anything: a pair of lambdas, and the choice of who adds.
#pragma once

#include <mpi_router/core/concepts.hpp>

#include <stdexcept>
#include <string>
#include <utility>

MPIROUTER_BEGIN_TYPES

#if MPIROUTER_HAS_EXCEPTIONS
/// What the library below a communicator reports: a call of MPI that failed, a member that has gone. The
/// message names the call, the rank and the numbers of elements.
class communication_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
#endif

namespace core {

/// Throws communication_error; without exceptions prints the same message and aborts.
[[noreturn]] inline void communication_failure(const std::string& message) {
#if MPIROUTER_HAS_EXCEPTIONS
  throw communication_error("mpi_router: " + message);
#else
  usage_failure(message);
#endif
}

/// What every adaptor checks before a library sees the numbers.
template <class S>
void expect_all_gather(const char* what, const vector_view<const S>& mine, const vector_view<S>& all,
                       index_t size) {
  expect(mine.is_contiguous() && all.is_contiguous() && all.size() == size * mine.size(), what,
         ": all_gather of ", mine.size(), " elements from each of ", size, " ranks into ", all.size());
  expect(!overlap(mine, all), what, ": all_gather into memory that it reads");
}

}  // namespace core

/// Placeholder where the communicator has no sum.
struct no_sum {};

/// A communicator of callables: `gather(mine, all)` and, if there is one, `sum(elements)`, which are given
/// views of float and of double. Build it with make_communicator().
template <class Gather, class Sum = no_sum>
class callable_communicator {
 public:
  callable_communicator(index_t rank, index_t size, Gather gather, Sum sum = {})
      : rank_(rank), size_(size), gather_(std::move(gather)), sum_(std::move(sum)) {
    core::expect(size >= 1 && rank >= 0 && rank < size, "make_communicator: rank ", rank, " of ", size);
  }
  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t size() const noexcept { return size_; }
  template <Accumulator S>
  void all_gather(vector_view<const S> mine, vector_view<S> all) const {
    core::expect_all_gather("make_communicator", mine, all, size_);
    gather_(mine, all);
  }
  template <Accumulator S>
    requires(!std::same_as<Sum, no_sum>)
  void all_reduce_sum(vector_view<S> elements) const {
    sum_(elements);
  }

 private:
  index_t rank_;
  index_t size_;
  Gather gather_;
  [[no_unique_address]] Sum sum_;
};

/// Makes lambdas a communicator: `make_communicator(rank, size, [&](auto mine, auto all) { … })`, and, if it
/// is to be used with backend_sum, one more `[&](auto elements) { … }` that adds in place. Throws usage_error
/// on a rank out of range.
template <class Gather, class Sum = no_sum>
[[nodiscard]] callable_communicator<Gather, Sum> make_communicator(index_t rank, index_t size, Gather gather,
                                                                   Sum sum = {}) {
  return {rank, size, std::move(gather), std::move(sum)};
}

namespace core {

/// A communicator that passes on what it is asked for to another.
template <Communicator C>
class forwarding_communicator {
 public:
  explicit forwarding_communicator(C comm) : comm_(std::move(comm)) {}
  [[nodiscard]] index_t rank() const { return static_cast<index_t>(comm_.rank()); }
  [[nodiscard]] index_t size() const { return static_cast<index_t>(comm_.size()); }
  template <Accumulator S>
  void all_gather(vector_view<const S> mine, vector_view<S> all) const {
    comm_.all_gather(mine, all);
  }

 protected:
  C comm_;
};

}  // namespace core

/// A communicator whose own reduction is to add, in place of sums in a fixed order. Build it with
/// backend_sum().
template <SummingCommunicator C>
class summing_backend : public core::forwarding_communicator<C> {
 public:
  using core::forwarding_communicator<C>::forwarding_communicator;
  template <Accumulator S>
  void all_reduce_sum(vector_view<S> elements) const {
    this->comm_.all_reduce_sum(elements);
  }
};

/// The same communicator, of which sharded_router_rows takes sums as its library makes them: a smaller
/// message, and bits that may change with the library, the network and the size of the message.
template <SummingCommunicator C>
[[nodiscard]] summing_backend<C> backend_sum(C comm) {
  return summing_backend<C>(std::move(comm));
}

namespace core {

template <class C>
inline constexpr bool sums_by_backend = false;
template <class C>
inline constexpr bool sums_by_backend<summing_backend<C>> = true;

}  // namespace core

MPIROUTER_END_TYPES
