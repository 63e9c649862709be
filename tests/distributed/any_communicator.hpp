// Any communicator as one type, so that the laws are compiled once for threads and for processes.
#pragma once

#include <mpi_router/distributed/communicator.hpp>

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>

namespace test_support {

using mpi_router::index_t;
using mpi_router::vector_view;

/// A message under way.
class any_request {
 public:
  template <class Request>
  explicit any_request(Request request)
      : of_([kept = std::make_shared<Request>(std::move(request))] { kept->wait(); }) {}
  void wait() { of_(); }

 private:
  std::function<void()> of_;
};

class any_communicator {
 public:
  template <class Comm>
  explicit any_communicator(const Comm& comm)
      : rank_(comm.rank()),
        size_(comm.size()),
        floats_(
            [comm](vector_view<const float> mine, vector_view<float> all) { comm.all_gather(mine, all); }),
        doubles_(
            [comm](vector_view<const double> mine, vector_view<double> all) { comm.all_gather(mine, all); }),
        start_floats_([comm](vector_view<const float> mine, vector_view<float> all) {
          return started(comm, mine, all);
        }),
        start_doubles_([comm](vector_view<const double> mine, vector_view<double> all) {
          return started(comm, mine, all);
        }),
        sum_floats_([comm](vector_view<float> v) { comm.all_reduce_sum(v); }),
        sum_doubles_([comm](vector_view<double> v) { comm.all_reduce_sum(v); }) {}

  [[nodiscard]] index_t rank() const { return rank_; }
  [[nodiscard]] index_t size() const { return size_; }
  void all_gather(vector_view<const float> mine, vector_view<float> all) const { floats_(mine, all); }
  void all_gather(vector_view<const double> mine, vector_view<double> all) const { doubles_(mine, all); }
  [[nodiscard]] any_request start_all_gather(vector_view<const float> mine, vector_view<float> all) const {
    return start_floats_(mine, all);
  }
  [[nodiscard]] any_request start_all_gather(vector_view<const double> mine, vector_view<double> all) const {
    return start_doubles_(mine, all);
  }
  void all_reduce_sum(vector_view<float> v) const { sum_floats_(v); }
  void all_reduce_sum(vector_view<double> v) const { sum_doubles_(v); }

 private:
  struct over {
    void wait() {}
  };
  template <class Comm, class S>
  static any_request started(const Comm& comm, vector_view<const S> mine, vector_view<S> all) {
    if constexpr (requires { comm.start_all_gather(mine, all); }) {
      return any_request(comm.start_all_gather(mine, all));
    } else {
      comm.all_gather(mine, all);
      return any_request(over{});
    }
  }

  index_t rank_;
  index_t size_;
  std::function<void(vector_view<const float>, vector_view<float>)> floats_;
  std::function<void(vector_view<const double>, vector_view<double>)> doubles_;
  std::function<any_request(vector_view<const float>, vector_view<float>)> start_floats_;
  std::function<any_request(vector_view<const double>, vector_view<double>)> start_doubles_;
  std::function<void(vector_view<float>)> sum_floats_;
  std::function<void(vector_view<double>)> sum_doubles_;
};

/// One rank alone, by lambdas.
[[nodiscard]] inline any_communicator alone() {
  return any_communicator(mpi_router::make_communicator(
      0, 1, [](auto mine, auto all) { std::copy_n(mine.data(), mine.size(), all.data()); }, [](auto) {}));
}

}  // namespace test_support
