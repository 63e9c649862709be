// The laws on the processes of mpirun, and what mpi_communicator refuses. Exit status 0: they hold. With the
// argument "throw": the last rank throws before its message; mpirun has to end the others.
#include <mpi_router/distributed/mpi.hpp>

#include "laws.hpp"

#include <support/messages.hpp>

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

using namespace mpi_router;
using namespace test_support;

namespace {

bool allgather_fails = false;

}  // namespace

// MPI's profiling interface: a program may put itself before its calls.
extern "C" int MPI_Allgather(const void* mine, int count, MPI_Datatype type, void* all, int count_of_each,
                             MPI_Datatype type_of_each, MPI_Comm comm) {
  return allgather_fails ? MPI_ERR_INTERN
                         : PMPI_Allgather(mine, count, type, all, count_of_each, type_of_each, comm);
}
extern "C" int MPI_Iallgather(const void* mine, int count, MPI_Datatype type, void* all, int count_of_each,
                              MPI_Datatype type_of_each, MPI_Comm comm, MPI_Request* request) {
  return allgather_fails
             ? MPI_ERR_INTERN
             : PMPI_Iallgather(mine, count, type, all, count_of_each, type_of_each, comm, request);
}

namespace {

int failures = 0;

void expect_message(const std::string& got, std::string_view part) {
  if (contains(got, part)) return;
  std::fprintf(stderr, "wanted: %.*s; got: %s\n", static_cast<int>(part.size()), part.data(), got.c_str());
  ++failures;
}

std::string construct(MPI_Comm comm) {
  return message_of([&] { static_cast<void>(mpi_communicator(comm)); });
}

/// A message that nobody waits for is over where its request is gone; several may be under way.
void dropped_requests() {
  const mpi_communicator comm(MPI_COMM_WORLD);
  const std::vector<double> mine(1000, static_cast<double>(comm.rank() + 1));
  std::vector<double> first(1000 * static_cast<std::size_t>(comm.size())), second(first);
  {
    auto one = comm.start_all_gather(vector_view<const double>(mine), vector_view<double>(first));
    auto two = comm.start_all_gather(vector_view<const double>(mine), vector_view<double>(second));
    one.poll();
    auto moved = std::move(one);
    two.wait();
  }
  for (std::size_t i = 0; i < first.size(); ++i) {
    const auto of = static_cast<double>(i / 1000 + 1);
    if (first[i] == of && second[i] == of) continue;
    std::fprintf(stderr, "a dropped request: element %zu is %g and %g, not %g\n", i, first[i], second[i], of);
    ++failures;
    return;
  }
}

/// Where calls fail and the error handler returns, what MPI says arrives as an exception.
void failing_calls() {
  MPI_Comm own{};
  MPI_Comm_dup(MPI_COMM_WORLD, &own);
  const mpi_communicator comm(own);
  const std::vector<float> mine(3);
  std::vector<float> all(3 * static_cast<std::size_t>(comm.size()));
  const std::uintptr_t nowhere = std::uintptr_t{1} << 46;  // never read: the count is looked at first
  const vector_view<const float> tall(mine.data(), index_t{1} << 31);
  const vector_view<float> taller(reinterpret_cast<float*>(nowhere), comm.size() * tall.size());
  const auto too_many = message_of([&] { comm.all_gather(tall, taller); });
  expect_message(too_many, "2147483648 elements from each rank, which an int cannot count");
  expect_message(
      message_of([&] { comm.all_gather(vector_view<const float>(mine), vector_view<float>(all.data(), 2)); }),
      "mpi_communicator: all_gather of 3 elements");
  allgather_fails = true;
  std::string said;
  try {
    comm.all_gather(vector_view<const float>(mine), vector_view<float>(all));
  } catch (const communication_error& error) {
    said = error.what();
  }
  expect_message(said,
                 "MPI_Allgather of 3 elements a rank failed on rank " + std::to_string(comm.rank()) + " of ");
  try {
    comm.start_all_gather(vector_view<const float>(mine), vector_view<float>(all)).wait();
  } catch (const communication_error& error) {
    said = error.what();
  }
  allgather_fails = false;
  expect_message(said, "MPI_Iallgather of 3 elements a rank failed on rank " + std::to_string(comm.rank()));
  MPI_Comm_free(&own);
}

}  // namespace

int main(int argc, char** argv) {
  expect_message(construct(MPI_COMM_WORLD), "MPI_Init was not called");
  MPI_Init(&argc, &argv);
  const mpi_communicator world(MPI_COMM_WORLD);
  if (argc > 1 && std::string_view(argv[1]) == "throw") {
    if (world.rank() == world.size() - 1) throw std::runtime_error("this rank has had enough");
    std::vector<float> mine(2), all(2 * static_cast<std::size_t>(world.size()));
    world.all_gather(vector_view<const float>(mine), vector_view<float>(all));
    return 0;
  }
  expect_message(construct(MPI_COMM_NULL), "MPI_COMM_NULL");
  for (const law& law : distributed_laws()) {
    const std::string said = law.broken(any_communicator(world));
    if (said.empty()) continue;
    std::fprintf(stderr, "rank %td: %s: %s\n", world.rank(), law.name.c_str(), said.c_str());
    ++failures;
  }
  dropped_requests();
  failing_calls();
  MPI_Finalize();
  expect_message(construct(MPI_COMM_WORLD), "MPI_Finalize was called already");
  return failures == 0 ? 0 : 1;
}
