// verify_checkpoint under mpirun: any number of processes writes what one does, and a failure of any ends
// all.
#include "program.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <fstream>
#include <future>
#include <limits>
#include <set>
#include <sstream>

namespace test_ranks {
using namespace tool_test;

namespace {

#ifdef MPIEXEC
constexpr const char* mpiexec = MPIEXEC;
#else
constexpr const char* mpiexec = nullptr;
#endif

/// Says so where there is nothing to test.
bool has_mpi() {
  if (mpiexec == nullptr) {
    MESSAGE("skipped: this build has no MPI");
  }
  return mpiexec != nullptr;
}

/// What mpirun is to start, with what a machine of few cores and a container need.
std::string started_in(int processes) {
  static const bool is_open_mpi =
      std::system((quoted(mpiexec) + " --version 2>&1 | grep -qi open-mpi").c_str()) == 0;
  return "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ASAN_OPTIONS=detect_leaks=0 timeout "
         "300 " +
         quoted(mpiexec) + (is_open_mpi ? " --oversubscribe --bind-to none" : "") + " -n " +
         std::to_string(processes);
}

/// Open MPI 4.1's mpirun itself was seen to crash in libpmix while it ends all processes; it has no word then
/// of a process that a signal ended.
bool is_crash_of_mpirun(const outcome& result) {
  const auto says = [&](const char* words) { return result.err.find(words) != std::string::npos; };
  return result.status == 139 && says("ORTE_ERROR_LOG") && says("libpmix") && !says("noticed that process");
}

outcome run_in(int processes, const std::vector<std::string>& arguments) {
  return run(arguments, started_in(processes));
}

/// Two layers, one of experts of two sizes with a zero row and no number.
void write_model(const std::string& path) {
  checkpoint_builder builder;
  add_layer(builder, "model.layers.0.", random_layer(80, 5, 12, 16));
  auto odd = random_layer(81, 4, 9, 16);
  std::fill_n(odd.router.begin(), 16, 0.0F);
  odd.gates[9 * 16] = std::numeric_limits<float>::infinity();
  add_layer(builder, "model.layers.1.", odd);
  builder.write(path);
}

std::set<std::string> set_of_lines(std::istream&& in) {
  std::set<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    lines.insert(line);
  }
  return lines;
}

/// A failure of them all: status 2, its words once, nothing on the standard output.
void check_ends(const outcome& result, const std::string& words) {
  CAPTURE(result.err);
  CHECK((result.status == 2 || is_crash_of_mpirun(result)));
  CHECK(result.out.empty());
  const auto at = result.err.find(words);
  CHECK(at != std::string::npos);
  CHECK(result.err.find(words, at + 1) == std::string::npos);
}

}  // namespace

TEST_CASE("one, two, three and more processes than experts: the same bytes in every output") {
  if (!has_mpi()) {
    return;
  }
  const temporary_folder folder;
  write_model(folder / "m.safetensors");
  const auto outputs = [&](const std::string& name) {
    return std::vector<std::string>{folder / "m.safetensors",
                                    "--experts",
                                    "--json",
                                    folder / (name + ".json"),
                                    "--trace",
                                    folder / (name + ".csv"),
                                    "--lines",
                                    folder / (name + ".lines")};
  };
  const auto alone = run(outputs("0"));
  REQUIRE(alone.status == 0);
  for (const int processes : {1, 2, 3, 11}) {
    CAPTURE(processes);
    const auto name = std::to_string(processes);
    const auto result = run_in(processes, outputs(name));
    CAPTURE(result.err);
    CHECK(result.status == 0);
    CHECK(result.out == alone.out);
    CHECK(read_bytes(folder / (name + ".json")) == read_bytes(folder / "0.json"));
    CHECK(read_bytes(folder / (name + ".csv")) == read_bytes(folder / "0.csv"));
    CHECK(set_of_lines(std::ifstream(folder / (name + ".lines"))) ==
          set_of_lines(std::ifstream(folder / "0.lines")));
  }
}

TEST_CASE("what one process began others resume, and the other way round") {
  if (!has_mpi()) {
    return;
  }
  const temporary_folder folder;
  write_model(folder / "m.safetensors");
  const auto arguments = [&](const std::string& json) {
    return std::vector<std::string>{folder / "m.safetensors", "--json",  folder / json, "--lines",
                                    folder / "lines",         "--resume"};
  };
  REQUIRE(run(arguments("whole")).status == 0);
  const auto text = read_bytes(folder / "lines");
  auto part = text;
  for (int line = 0; line < 4; ++line) {
    part.resize(part.rfind('\n', part.size() - 2) + 1);
  }
  for (const int processes : {0, 2, 3}) {
    CAPTURE(processes);
    write_bytes(folder / "lines", part + "{\"layer\":");
    const auto result = processes == 0 ? run(arguments("again")) : run_in(processes, arguments("again"));
    CAPTURE(result.err);
    CHECK(result.status == 0);
    CHECK(read_bytes(folder / "again") == read_bytes(folder / "whole"));
    CHECK(read_bytes(folder / "lines").starts_with(part));
    CHECK(set_of_lines(std::ifstream(folder / "lines")) == set_of_lines(std::istringstream(text)));
  }
}

TEST_CASE("a failure of all is said once, a failure of one ends all") {
  if (!has_mpi()) {
    return;
  }
  const temporary_folder folder;
  write_model(folder / "m.safetensors");
  const std::string model = folder / "m.safetensors";
  check_ends(run_in(3, {folder / "none"}),
             "verify_checkpoint: " + (folder / "none").string() + ": cannot be opened");
  check_ends(run_in(3, {"--no-such-flag"}), "verify_checkpoint: The following argument was not expected");
  check_ends(run_in(2, {"recondition", model, folder / "new"}), "run this without mpirun");
  check_ends(run_in(2, {model, "--list"}), "run this without mpirun");
  // Of the first alone: outputs.
  check_ends(run_in(3, {model, "--json", folder / "none/json"}), "json: cannot be written");
  write_bytes(folder / "lines", "");
  check_ends(run_in(2, {model, "--lines", folder / "lines"}), "lines: exists");
  // Of another alone: each process takes the model from a link of its own, and one of them leads nowhere.
  const std::string own =
      "sh -c 'program=$1; shift; cd \"$0/rank${OMPI_COMM_WORLD_RANK:-$PMI_RANK}\" && exec "
      "\"$program\" \"$@\"' " +
      quoted(folder.path().string());
  for (int rank = 0; rank < 3; ++rank) {
    std::filesystem::create_directory(folder / ("rank" + std::to_string(rank)));
    std::filesystem::create_symlink("../m.safetensors", folder / ("rank" + std::to_string(rank) + "/m"));
  }
  std::filesystem::create_directory(folder / "rank3");
  std::filesystem::create_symlink("../m.safetensors", folder / "rank3/m");
  int processes = 3;
  const auto apart = [&](const std::vector<std::string>& arguments) {
    return run(arguments, started_in(processes) + " " + own);
  };
  CHECK(apart({"m", "--json", folder / "json"}).status == 0);
  std::filesystem::remove(folder / "json");
  std::filesystem::remove(folder / "rank2/m");
  check_ends(apart({"m", "--json", folder / "json"}), "verify_checkpoint: rank 2: m: cannot be opened");
  checkpoint_builder other;
  add_layer(other, "model.layers.0.", random_layer(80, 5, 12, 16));
  other.write(folder / "rank2/m");
  check_ends(
      apart({"m", "--json", folder / "json"}),
      "verify_checkpoint: rank 2: reads or does other things than the first rank: files, 0, m, bytes was");
  processes = 4;  // the others wait for messages that pass through the second and third
  check_ends(
      apart({"m", "--json", folder / "json"}),
      "verify_checkpoint: rank 2: reads or does other things than the first rank: files, 0, m, bytes was");
  CHECK_FALSE(std::filesystem::exists(folder / "json"));
}

TEST_CASE("a failure in the midst of the work ends all, and nothing half written remains") {
  if (!has_mpi()) {
    return;
  }
  const temporary_folder folder;
  checkpoint_builder builder;
  add_layer(builder, "model.layers.0.", random_layer(82, 40, 24, 32));
  builder.write(folder / "m.safetensors");
  REQUIRE(run({folder / "m.safetensors", "--lines", folder / "all"}).status == 0);
  const auto room = std::filesystem::file_size(folder / "all") / 2 / 512;
  std::filesystem::remove(folder / "all");
  // The limit is for this program alone: mpirun keeps files of its own, and where processes share memory,
  // they.
  const auto limited = "OMPI_MCA_btl=self,tcp " + started_in(3) + " sh -c 'ulimit -f " +
                       std::to_string(room) + "; exec \"$@\"' sh";
  check_ends(
      run({folder / "m.safetensors", "--lines", folder / "lines", "--json", folder / "json"}, limited),
      "verify_checkpoint: rank 0: " + (folder / "lines").string() + ": cannot be written: File too large");
  CHECK(folder.entries() == 2);
  CHECK(read_bytes(folder / "lines").ends_with('\n'));
}

TEST_CASE("a process that is killed ends all, and what was finished is resumed") {
  if (!has_mpi()) {
    return;
  }
  const temporary_folder folder;
  checkpoint_builder builder;
  add_layer(builder, "model.layers.0.", random_layer(83, 30, 160, 200));
  builder.write(folder / "m.safetensors");
  REQUIRE(run({folder / "m.safetensors", "--json", folder / "whole"}).status == 0);
  const std::vector<std::string> arguments{folder / "m.safetensors", "--json",  folder / "json", "--lines",
                                           folder / "lines",         "--resume"};
  const std::string with_pid = " sh -c 'echo $$ >\"$0${OMPI_COMM_WORLD_RANK:-$PMI_RANK}\"; exec \"$@\"' ";
  auto ended = std::async(std::launch::async, [&] {
    return run(arguments, "OMP_NUM_THREADS=1 " + started_in(3) + with_pid + quoted(folder / "pid"));
  });
  const auto lines = [&] { return set_of_lines(std::ifstream(folder / "lines")).size(); };
  while (lines() < 4 && ended.wait_for(std::chrono::milliseconds(1)) == std::future_status::timeout) {
  }
  REQUIRE(::kill(std::stoi(read_bytes(folder / "pid1")), SIGKILL) == 0);
  const auto result = ended.get();
  CAPTURE(result.err);
  CHECK(result.status != 0);
  CHECK(result.out.empty());
  CHECK_FALSE(std::filesystem::exists(folder / "json"));
  CHECK(lines() < 1 + 30);
  CHECK(run(arguments).status == 0);
  CHECK(read_bytes(folder / "json") == read_bytes(folder / "whole"));
}

TEST_CASE("the exit status is that of the first, and words come once") {
  if (!has_mpi()) {
    return;
  }
  const temporary_folder folder;
  write_model(folder / "m.safetensors");
  const auto result = run_in(3, {folder / "m.safetensors", "--require-angle", "0.01"});
  CAPTURE(result.err);
  CHECK(result.status == 1);
  const auto at = result.err.find("rows are certified");
  CHECK(at != std::string::npos);
  CHECK(result.err.find("rows are certified", at + 1) == std::string::npos);
  const auto version = run_in(3, {"--version"});
  CHECK(version.status == 0);
  CHECK(std::count(version.out.begin(), version.out.end(), '\n') == 1);
}

TEST_CASE("a program that was started several times and cannot join says so once, and writes nothing") {
  const temporary_folder folder;
  write_model(folder / "m.safetensors");
  // As Open MPI, MPICH and PMIx tell a process what it is, without an mpirun that it could join.
  for (const std::string launcher :
       {"OMPI_COMM_WORLD_SIZE=3 OMPI_COMM_WORLD_RANK=", "PMI_SIZE=3 PMI_RANK="}) {
    const std::vector<std::string> arguments{folder / "m.safetensors", "--json", folder / "json"};
    const std::string environment =
        "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ASAN_OPTIONS=detect_leaks=0 " + launcher;
    check_ends(run(arguments, environment + "0"), "verify_checkpoint: was started ");
    const auto other = run(arguments, environment + "1");
    CHECK(other.status == 2);
    CHECK((other.out + other.err).empty());
    CHECK(folder.entries() == 1);
  }
  CHECK(run({folder / "m.safetensors"}, "OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=0").status == 0);
}

}  // namespace test_ranks
