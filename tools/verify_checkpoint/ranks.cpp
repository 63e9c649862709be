#include "ranks.hpp"

#include "arguments.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

#ifdef VERIFY_CHECKPOINT_MPI
#include <mpi_router/io/unfinished.hpp>

#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <vector>
#endif

namespace verify {

namespace {

const char* first_of(std::initializer_list<const char*> variables) {
  for (const char* name : variables) {
    if (const char* value = std::getenv(name)) {
      return value;
    }
  }
  return nullptr;
}

/// How many processes were started together, as Open MPI, MPICH and their like tell each in its environment;
/// 0 where that tells no more than that it is one of some.
int launched() {
  if (const char* size = first_of({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})) {
    return std::atoi(size);
  }
  if (std::getenv("PMIX_RANK") == nullptr) {
    return 1;
  }
  const char* size = std::getenv("SLURM_STEP_NUM_TASKS");
  return size == nullptr ? 0 : std::atoi(size);
}

const char* rank_among_launched() { return first_of({"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"}); }

/// Whether it is for this process to speak where it has not joined the others.
bool speaks_for_all() {
  const char* rank = rank_among_launched();
  return rank == nullptr || std::atoi(rank) == 0;
}

void say(const std::string& message) { std::fputs(("verify_checkpoint: " + message + "\n").c_str(), stderr); }

}  // namespace

bool ranks::started_by_mpirun() { return rank_among_launched() != nullptr; }

void ranks::settle() const {
  if (settle_with("")) {
    throw told_already();
  }
}

int ranks::fail(const std::string& message) const {
  if (joined_ && phase_ == phase::preparation) {
    static_cast<void>(settle_with(message));
  } else if (joined_ && phase_ == phase::work) {
    say(fmt::format("rank {}: {}", rank_, message));
    end_all();
  } else if (joined_ || speaks_for_all()) {
    say(message);
  }
  return 2;
}

#ifdef VERIFY_CHECKPOINT_MPI

namespace {

/// The cores that this process may run on, by how many of this host may run on the same. mpirun may also have
/// bound each to its own.
int share_of_cores() {
  MPI_Comm host{};
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
  int neighbours = 0;
  MPI_Comm_size(host, &neighbours);
  cpu_set_t cores;
  CPU_ZERO(&cores);
  ::sched_getaffinity(0, sizeof cores, &cores);
  std::vector<cpu_set_t> all(static_cast<std::size_t>(neighbours));
  MPI_Allgather(&cores, static_cast<int>(sizeof cores), MPI_BYTE, all.data(), static_cast<int>(sizeof cores),
                MPI_BYTE, host);
  MPI_Comm_free(&host);
  const auto sharing =
      std::ranges::count_if(all, [&](const auto& other) { return CPU_EQUAL(&cores, &other) != 0; });
  return std::max(1, CPU_COUNT(&cores) / static_cast<int>(sharing));
}

}  // namespace

ranks::~ranks() {
  if (joined_) {
    MPI_Finalize();
  }
}

void ranks::join() {
  const int expected = launched();
  if (expected == 1) {
    return;
  }
  int threads = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &threads);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  if (size_ == 1) {
    MPI_Finalize();
  }
  require(
      expected == 0 || size_ == expected,
      fmt::format("was started in {} processes by an mpirun of another MPI than the one it was built with",
                  expected));
  joined_ = size_ > 1;
  if (!joined_) {
    return;
  }
  const int share = share_of_cores();
  threads_ = std::getenv("OMP_NUM_THREADS") == nullptr ? share : 0;
  require(threads >= MPI_THREAD_SERIALIZED, "this MPI cannot be called from several threads");
}

std::string ranks::from_first(std::string text) const {
  if (joined_) {
    unsigned long long size = text.size();
    MPI_Bcast(&size, 1, MPI_UNSIGNED_LONG_LONG, 0, MPI_COMM_WORLD);
    text.resize(size);
    MPI_Bcast(text.data(), static_cast<int>(size), MPI_CHAR, 0, MPI_COMM_WORLD);
  }
  return text;
}

/// Whether any of them has a problem; if so, it has been said.
bool ranks::settle_with(const std::string& problem) const {
  if (!joined_) {
    return false;
  }
  int failed = problem.empty() ? 0 : 1;
  MPI_Allreduce(MPI_IN_PLACE, &failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  if (failed == 0) {
    return false;
  }
  const auto problem_of_first = from_first(problem);
  if (is_first() && !problem.empty()) {
    say(problem);
  } else if (!problem.empty() && problem != problem_of_first) {
    say(fmt::format("rank {}: {}", rank_, problem));
  }
  return true;
}

void ranks::end_all() {
  mpi_router::remove_unfinished();
  MPI_Abort(MPI_COMM_WORLD, 2);
}

void ranks::send(const std::string& line) const {
  require(line.size() <= INT_MAX, "a trace is too long for one message");
  MPI_Send(line.data(), static_cast<int>(line.size()), MPI_CHAR, 0, 0, MPI_COMM_WORLD);
}

std::optional<std::string> ranks::receive() const {
  int there = 0;
  MPI_Status status;
  MPI_Iprobe(MPI_ANY_SOURCE, 0, MPI_COMM_WORLD, &there, &status);
  if (there == 0) {
    return std::nullopt;
  }
  int size = 0;
  MPI_Get_count(&status, MPI_CHAR, &size);
  std::string line(static_cast<std::size_t>(size), '\0');
  MPI_Recv(line.data(), size, MPI_CHAR, status.MPI_SOURCE, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  return line;
}

#else

ranks::~ranks() = default;

void ranks::join() {
  require(
      launched() == 1,
      "was started by mpirun, but built without MPI (CMake option MPIROUTER_MPI): each process would do all "
      "the work and overwrite what the others write");
}

std::string ranks::from_first(std::string text) const { return text; }
bool ranks::settle_with(const std::string& /*problem*/) const { return false; }
void ranks::end_all() {}
void ranks::send(const std::string& /*line*/) const {}
std::optional<std::string> ranks::receive() const { return std::nullopt; }

#endif

}  // namespace verify
