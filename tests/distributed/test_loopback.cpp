// The laws on groups of threads, and the group itself: members that throw or leave let nobody wait.
#include <mpi_router/distributed/loopback.hpp>
#include <mpi_router/distributed/overlap.hpp>
#include <mpi_router/distributed/sharded_rows.hpp>
#include <mpi_router/distributed/sharded_rows_vjp.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>

#include "laws.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <mutex>
#include <stdexcept>
#include <thread>

using namespace mpi_router;
using namespace test_support;

#if defined(MPIROUTER_TEST_SHORT) || (defined(__SANITIZE_THREAD__) && !defined(MPIROUTER_TEST_FULL))
constexpr index_t group_sizes[] = {1, 4, 7};
#else
constexpr index_t group_sizes[] = {1, 2, 3, 4, 7, 8, 16};
#endif

TEST_CASE("the laws, on one thread and on several") {
  for (const index_t size : group_sizes) {
    for (const law& law : distributed_laws()) {
      std::mutex mutex;
      std::string broken;
      run_ranks(size, [&](const loopback_communicator& comm) {
        const std::string said = law.broken(any_communicator(comm));
        const std::scoped_lock lock(mutex);
        if (!said.empty()) broken += "rank " + std::to_string(comm.rank()) + ": " + said + "\n";
      });
      CAPTURE(size);
      CAPTURE(law.name);
      CHECK(broken == "");
    }
  }
}

namespace {

/// What each of `size` threads is told when it fails.
std::vector<std::string> messages(index_t size,
                                  const std::function<void(const loopback_communicator&)>& work) {
  std::vector<std::string> said(static_cast<std::size_t>(size));
  run_ranks(size, [&](const loopback_communicator& comm) {
    try {
      work(comm);
    } catch (const std::exception& error) {
      said[static_cast<std::size_t>(comm.rank())] = error.what();
    }
  });
  return said;
}

}  // namespace

TEST_CASE("a gather and a sum, and again") {
  run_ranks(5, [](const loopback_communicator& comm) {
    for (int round = 0; round < 20; ++round) {
      std::vector<double> mine(600, static_cast<double>(comm.rank() + round)), all(3000);
      comm.all_gather(vector_view<const double>(mine), vector_view<double>(all));
      for (std::size_t k = 0; k < all.size(); ++k) {
        if (all[k] != static_cast<double>(k / 600 + static_cast<std::size_t>(round)))
          throw std::runtime_error("gather");
      }
      comm.all_reduce_sum(vector_view<double>(mine));
      if (mine.front() != 10.0 + 5 * round || mine.back() != mine.front()) throw std::runtime_error("sum");
    }
  });
}

TEST_CASE("sizes that differ are an error on every rank") {
  for (const auto& said : messages(3, [](const loopback_communicator& comm) {
         std::vector<float> mine(static_cast<std::size_t>(comm.rank() == 1 ? 4 : 5)), all(mine.size() * 3);
         comm.all_gather(vector_view<const float>(mine), vector_view<float>(all));
       })) {
    CHECK(contains(said, "rank 0 has 5 elements of 4 bytes, rank 1 has 4 of 4"));
  }
}

TEST_CASE("elements that differ, and elements with gaps") {
  for (const auto& said : messages(2, [](const loopback_communicator& comm) {
         std::vector<float> mine(6), all(12);
         std::vector<double> my_doubles(6), all_doubles(12);
         if (comm.rank() == 0) {
           comm.all_gather(vector_view<const float>(mine), vector_view<float>(all));
         } else {
           comm.all_gather(vector_view<const double>(my_doubles), vector_view<double>(all_doubles));
         }
       })) {
    CHECK(contains(said, "rank 0 has 6 elements of 4 bytes, rank 1 has 6 of 8"));
  }
  for (const auto& said : messages(2, [](const loopback_communicator& comm) {
         std::vector<float> mine(6);
         comm.all_reduce_sum(vector_view<float>(mine.data(), 3, 2));
       })) {
    CHECK(contains(said, "all_reduce_sum of elements 2 apart"));
  }
}

namespace {

/// What two ranks are told whose layers have these neurons or columns of the whole, of which rank 1 is asked
/// in its way.
template <class Shard, class Call>
std::vector<std::string> two_shards(const Shard& shard_of, const Call& call) {
  return messages(2, [&](const loopback_communicator& comm) {
    std::vector<float> weights(120, 1), router(15, 1), rows(15), workspace(20000);
    const sharded_layer layer{shard_of(comm.rank(), weights.data()), row_major(router.data(), 3, 5),
                              row_major(rows.data(), 3, 5)};
    call(comm, layer, vector_view<float>(workspace));
  });
}

}  // namespace

TEST_CASE("neurons and columns that leave a gap, or meet") {
  struct run {
    index_t first, count;
  };
  const auto neurons = [](const run& a, const run& b) {
    return two_shards(
        [&](index_t rank, float* data) {
          const run& own = rank == 0 ? a : b;
          return shard_of_neurons(experts_nfd(data, {3, own.count, 5}), own.first, 8);
        },
        [](const auto& comm, const auto& layer, const auto& work) {
          sharded_router_rows(comm, layer, {}, work);
        });
  };
  const auto columns = [](const run& a, const run& b) {
    return two_shards(
        [&](index_t rank, float* data) {
          const run& own = rank == 0 ? a : b;
          return shard_of_columns(experts_nfd(data, {3, 8, own.count}), own.first, 5);
        },
        [](const auto& comm, const auto& layer, const auto& work) {
          sharded_router_rows(comm, layer, {}, work);
        });
  };
  for (const auto& said : neurons({0, 3}, {3, 5})) CHECK(said == "");
  for (const auto& said : columns({0, 3}, {3, 2})) CHECK(said == "");
  for (const auto& said : columns({0, 5}, {2, 0})) CHECK(said == "");  // nothing, wherever it is
  for (const run other : {run{4, 4}, run{2, 6}}) {
    for (const auto& said : neurons({0, 3}, other)) {
      CHECK(contains(said, "layer 0, expert 0: rank 1 has neurons from " + std::to_string(other.first) +
                               " on, where the ranks before it end at 3"));
    }
  }
  for (const run other : {run{4, 1}, run{2, 3}}) {
    for (const auto& said : columns({0, 3}, other)) {
      CHECK(contains(said, "layer 0: rank 1 has columns from " + std::to_string(other.first) +
                               " on, where the ranks before it end at 3"));
    }
  }
  for (const auto& said : columns({0, 3}, {3, 1}))
    CHECK(contains(said, "layer 0: the ranks have 4 columns of D = 5"));
}

TEST_CASE("ranks that go about one call in other ways") {
  const auto whole = [](index_t rank, float* data) {
    return shard_of_neurons(experts_nfd(data, {3, 4, 5}), 4 * rank, 8);
  };
  const auto differ = [&](const std::vector<std::string>& said) {
    CHECK(said[0] == said[1]);
    CHECK(contains(said[1], "rank 1 comes with other layers, shapes or options than rank 0"));
  };
  differ(two_shards(whole, [](const auto& comm, const auto& layer, const auto& work) {
    const auto through = comm.rank() == 0 ? differentiate::all : differentiate::last;
    sharded_router_rows(comm, layer, {.through = through}, work);
  }));
  differ(two_shards(whole, [](const auto& comm, const auto& layer, const auto& work) {
    if (comm.rank() == 0) return sharded_router_rows(comm, layer, {}, work);
    sharded_router_rows(overlap_layers(comm), layer, {}, work);
  }));
  differ(two_shards(whole, [](const auto& comm, const auto& layer, const auto& work) {
    if (comm.rank() == 0) return sharded_router_rows(comm, layer, {}, work);
    sharded_router_rows(backend_sum(comm), layer, {}, work);
  }));
  differ(messages(2, [](const loopback_communicator& comm) {  // one has neurons, one has columns
    std::vector<float> weights(120, 1), router(15, 1), rows(15), workspace(20000);
    const auto call = [&](const auto& shard) {
      const sharded_layer layer{shard, row_major(router.data(), 3, 5), row_major(rows.data(), 3, 5)};
      sharded_router_rows(comm, layer, {}, vector_view<float>(workspace));
    };
    if (comm.rank() == 0) return call(shard_of_neurons(experts_nfd(weights.data(), {3, 8, 5}), 0, 8));
    call(shard_of_columns(experts_nfd(weights.data(), {3, 8, 5}), 0, 5));
  }));
}

TEST_CASE("sums over ranks of which one has less room take as much as that has") {
  for (const auto& said : messages(2, [](const loopback_communicator& comm) {
         std::vector<float> weights(20, 1), router(10, 1), grad_rows(10, 1), grad_router(10);
         const auto whole = [](std::vector<float>& v) { return row_major(v.data(), 2, 5); };
         const sharded_layer_vjp layer{
             shard_of_experts(experts_nfd(weights.data(), {1, 4, 5}), comm.rank(), 2), whole(router),
             whole(grad_rows), whole(grad_router), no_gradient{}};
         std::vector<float> tape(14, 1);
         const index_t size = sharded_router_rows_vjp_workspace(layer, 2, 1);
         std::vector<float> workspace(static_cast<std::size_t>(size + 100), 7.0F);
         sharded_router_rows_vjp(comm, layer, tape, {}, tokens_of_rows::split_over_ranks,
                                 gradient_mode::write,
                                 vector_view<float>(workspace.data(), comm.rank() == 0 ? size + 100 : size));
         const auto unwritten = std::count(workspace.begin() + size, workspace.end(), 7.0F);
         if (comm.rank() == 1 && unwritten != 100) throw std::runtime_error("written past the workspace");
       })) {
    CHECK(said == "");
  }
}

TEST_CASE_TEMPLATE("what ranks tell each other of a call is told exactly, to sixty bits", S, float, double) {
  for (const index_t word : {index_t{0}, index_t{5}, (index_t{1} << 20) - 1, index_t{1} << 20,
                             (index_t{1} << 40) + 3, (index_t{1} << 60) - 1}) {
    std::array<S, 3> digits{};
    detail::put_word(digits.data(), word);
    CHECK(detail::get_word(digits.data()) == word);
  }
}

TEST_CASE("a member that throws, or returns too early, is missed and not waited for") {
  const auto gather = [](const loopback_communicator& comm) {
    std::vector<float> mine(2), all(2 * static_cast<std::size_t>(comm.size()));
    comm.all_gather(vector_view<const float>(mine), vector_view<float>(all));
  };
  CHECK(message_of([&] {
          run_ranks(3, [&](const loopback_communicator& comm) {
            if (comm.rank() == 2) core::usage_failure("has had enough");
            std::this_thread::sleep_for(std::chrono::milliseconds(20));  // so that it is the first to throw
            gather(comm);
          });
        }) == "mpi_router: has had enough");
  const auto said = messages(4, [&](const loopback_communicator& comm) {
    gather(comm);
    if (comm.rank() == 1) return;
    try {
      gather(comm);
    } catch (const communication_error&) {
      gather(comm);  // for good
    }
  });
  for (const std::size_t rank : {0U, 2U, 3U}) CHECK(contains(said[rank], "but rank 1 has gone"));
  CHECK(said[1] == "");
}

TEST_CASE("what communicators refuse") {
  std::vector<float> mine(3), all(6);
  const auto lambda = make_communicator(0, 2, [](auto, auto) {});
  CHECK(refused([&] { lambda.all_gather(vector_view<const float>(mine), vector_view<float>(all.data(), 5)); },
                "all_gather of 3 elements from each of 2 ranks into 5"));
  CHECK(refused([&] { lambda.all_gather(vector_view<const float>(all.data(), 3), vector_view<float>(all)); },
                "into memory that it reads"));
  CHECK(refused([&] { static_cast<void>(make_communicator(2, 2, [](auto, auto) {})); }, "rank 2 of 2"));
  static_assert(Communicator<decltype(lambda)> && !SummingCommunicator<decltype(lambda)>);
  static_assert(SummingCommunicator<loopback_communicator> && SummingCommunicator<any_communicator>);
}
