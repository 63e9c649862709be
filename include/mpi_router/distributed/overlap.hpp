// Messages that are under way while work goes on: a layer's, while the next layer is read.
#pragma once

#include <mpi_router/distributed/communicator.hpp>

#include <array>
#include <optional>
#include <type_traits>
#include <utility>

MPIROUTER_BEGIN_TYPES

/// A communicator with messages that begin and end apart: `start_all_gather(mine, all)` begins what
/// all_gather does and gives a request; until `request.wait()` has returned, `mine` is not written and `all`
/// is left alone. Several may be under way, which begin and end in the same order on all ranks. A request
/// that is destroyed has been waited for. Where it has `poll()`, that lets it make progress.
template <class C>
concept StartingCommunicator =
    Communicator<C> &&
    requires(const std::remove_cvref_t<C>& comm, vector_view<const float> mine, vector_view<float> all,
             vector_view<const double> my_doubles, vector_view<double> all_doubles) {
      comm.start_all_gather(mine, all).wait();
      comm.start_all_gather(my_doubles, all_doubles).wait();
    };

/// A communicator that takes a message a layer. Build it with overlap_layers().
template <StartingCommunicator C>
class layer_overlap : public core::forwarding_communicator<C> {
 public:
  using core::forwarding_communicator<C>::forwarding_communicator;
  template <Accumulator S>
  [[nodiscard]] auto start_all_gather(vector_view<const S> mine, vector_view<S> all) const {
    return this->comm_.start_all_gather(mine, all);
  }
};

/// The same communicator, with which sharded_router_rows and its backward send every layer by itself, and
/// read the next while that is under way: worth it where a layer's read takes longer than its message begins
/// and ends, and there are several layers in a call. The bits are those of one message for all. Columns,
/// whose messages wait for each other, are sent as ever.
template <StartingCommunicator C>
[[nodiscard]] layer_overlap<C> overlap_layers(C comm) {
  return layer_overlap<C>(std::move(comm));
}

namespace core {

template <class C>
inline constexpr bool overlaps_layers = false;
template <class C>
inline constexpr bool overlaps_layers<layer_overlap<C>> = true;

/// Of a communicator that has none: it is over when it has begun.
struct no_request {
  void wait() {}
};

/// Some messages under way, the oldest of which is waited for where there are more.
template <Accumulator S, class Comm>
class messages_under_way {
 public:
  static constexpr bool overlaps = overlaps_layers<Comm>;

  explicit messages_under_way(const Comm& comm) : comm_(comm) {}

  void start(vector_view<const S> mine, vector_view<S> all) {
    if constexpr (overlaps) {
      for (auto& request : requests_) {
        if constexpr (requires { request->poll(); }) {
          if (request) request->poll();
        }
      }
      auto& request = requests_[started_ % most];
      if (request) wait_for(request);
      request.emplace(comm_.start_all_gather(mine, all));
      ++started_;
    } else {
      comm_.all_gather(mine, all);
    }
  }
  /// Returns when the i-th that was started is over.
  void wait(std::size_t i) {
    if constexpr (overlaps) {
      if (i + most < started_) return;  // it has made room for another
      auto& request = requests_[i % most];
      if (request) wait_for(request);
    }
  }

 private:
  static constexpr std::size_t most = 4;
  static void wait_for(auto& request) {
    request->wait();
    request.reset();
  }
  template <class C>
  struct request_of {
    using type = no_request;
  };
  template <class C>
    requires(overlaps_layers<C>)
  struct request_of<C> {
    using type = decltype(std::declval<const C&>().start_all_gather(std::declval<vector_view<const S>>(),
                                                                    std::declval<vector_view<S>>()));
  };

  const Comm& comm_;
  std::array<std::optional<typename request_of<Comm>::type>, most> requests_{};
  std::size_t started_ = 0;
};

}  // namespace core

MPIROUTER_END_TYPES
