// A communicator of the Message Passing Interface, which shares its three letters with Manifold Power
// Iteration and nothing else. Needs an MPI library (mpi_router::mpi).
#pragma once

#include <mpi_router/distributed/communicator.hpp>

#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1  // the C++ bindings that MPI-3 removed
#endif
#ifndef MPICH_SKIP_MPICXX
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <array>
#include <limits>
#include <string>
#include <utility>

MPIROUTER_BEGIN

namespace detail {

[[nodiscard]] inline std::string mpi_error(int code) {
  std::array<char, MPI_MAX_ERROR_STRING + 1> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) return "error " + std::to_string(code);
  return {text.data(), static_cast<std::size_t>(length)};
}

template <Accumulator S>
[[nodiscard]] MPI_Datatype mpi_type() noexcept {
  return std::same_as<S, float> ? MPI_FLOAT : MPI_DOUBLE;
}

}  // namespace detail

class mpi_request;

/// A borrowed MPI_Comm as a Communicator, StartingCommunicator and SummingCommunicator. It makes one call a
/// message, MPI_Allgather or MPI_Allreduce, which block, or MPI_Iallgather, from the thread that calls; the
/// communicator, its error handler and MPI itself stay the caller's.
///
/// Throws usage_error where MPI is not initialised or is finalised, on MPI_COMM_NULL, on an
/// intercommunicator, and on more elements than an int counts. Where a call of MPI fails and the error
/// handler returns (MPI_ERRORS_RETURN; the default ends the program), throws communication_error with the
/// call, the rank and the sizes.
class mpi_communicator {
 public:
  explicit mpi_communicator(MPI_Comm comm) : comm_(comm) {
    expect_running("mpi_communicator");
    core::expect(comm != MPI_COMM_NULL,
                 "mpi_communicator: MPI_COMM_NULL, as processes outside of a group have");
    int is_inter = 0;
    check("MPI_Comm_test_inter", MPI_Comm_test_inter(comm, &is_inter), 0);
    core::expect(is_inter == 0, "mpi_communicator: an intercommunicator");
    check("MPI_Comm_rank", MPI_Comm_rank(comm, &rank_), 0);
    check("MPI_Comm_size", MPI_Comm_size(comm, &size_), 0);
  }

  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t size() const noexcept { return size_; }
  [[nodiscard]] MPI_Comm handle() const noexcept { return comm_; }

  template <Accumulator S>
  void all_gather(vector_view<const S> mine, vector_view<S> all) const {
    core::expect_all_gather("mpi_communicator", mine, all, size_);
    const int elements = count("MPI_Allgather", mine.size());
    check("MPI_Allgather",
          MPI_Allgather(mine.data(), elements, detail::mpi_type<S>(), all.data(), elements,
                        detail::mpi_type<S>(), comm_),
          mine.size());
  }
  /// MPI_Iallgather. Most libraries move the numbers in calls of MPI only: the request is polled between
  /// layers.
  template <Accumulator S>
  [[nodiscard]] mpi_request start_all_gather(vector_view<const S> mine, vector_view<S> all) const;
  template <Accumulator S>
  void all_reduce_sum(vector_view<S> elements) const {
    core::expect(elements.is_contiguous(), "mpi_communicator: a sum of elements ", elements.stride(),
                 " apart");
    check("MPI_Allreduce",
          MPI_Allreduce(MPI_IN_PLACE, elements.data(), count("MPI_Allreduce", elements.size()),
                        detail::mpi_type<S>(), MPI_SUM, comm_),
          elements.size());
  }

 private:
  friend class mpi_request;
  static void expect_running(const char* call) {
    int initialised = 0;
    int finalised = 0;
    MPI_Initialized(&initialised);
    MPI_Finalized(&finalised);
    core::expect(initialised != 0, call, ": MPI_Init was not called");
    core::expect(finalised == 0, call, ": MPI_Finalize was called already");
  }
  [[nodiscard]] static int count(const char* call, index_t elements) {
    expect_running(call);
    core::expect(elements <= std::numeric_limits<int>::max(), call, ": ", elements,
                 " elements from each rank, which an int cannot count: give fewer layers to a call");
    return static_cast<int>(elements);
  }
  void check(const char* call, int code, index_t elements) const {
    if (code != MPI_SUCCESS) {
      core::communication_failure(core::concatenate(call, " of ", elements,
                                                    " elements a rank failed on rank ", rank_, " of ", size_,
                                                    ": ", detail::mpi_error(code)));
    }
  }

  MPI_Comm comm_;
  int rank_ = -1;
  int size_ = 0;
};

/// A message of MPI that has begun.
class mpi_request {
 public:
  mpi_request(const mpi_communicator& comm, MPI_Request request, index_t elements)
      : comm_(comm), request_(request), elements_(elements) {}
  mpi_request(mpi_request&& other) noexcept
      : comm_(other.comm_),
        request_(std::exchange(other.request_, MPI_REQUEST_NULL)),
        elements_(other.elements_) {}
  mpi_request& operator=(mpi_request&&) = delete;
  ~mpi_request() {
    if (request_ != MPI_REQUEST_NULL) MPI_Wait(&request_, MPI_STATUS_IGNORE);
  }
  void wait() { comm_.check("MPI_Wait", MPI_Wait(&request_, MPI_STATUS_IGNORE), elements_); }
  void poll() {
    int is_over = 0;
    comm_.check("MPI_Test", MPI_Test(&request_, &is_over, MPI_STATUS_IGNORE), elements_);
  }

 private:
  mpi_communicator comm_;
  MPI_Request request_;
  index_t elements_;
};

template <Accumulator S>
mpi_request mpi_communicator::start_all_gather(vector_view<const S> mine, vector_view<S> all) const {
  core::expect_all_gather("mpi_communicator", mine, all, size_);
  const int elements = count("MPI_Iallgather", mine.size());
  MPI_Request request = MPI_REQUEST_NULL;
  check("MPI_Iallgather",
        MPI_Iallgather(mine.data(), elements, detail::mpi_type<S>(), all.data(), elements,
                       detail::mpi_type<S>(), comm_, &request),
        mine.size());
  return {*this, request, mine.size()};
}

MPIROUTER_END
