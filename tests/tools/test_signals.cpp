// A run that the system ends leaves no temporary file, and the old outputs as they were.
#include "program.hpp"

#include <doctest/doctest.h>

#include <csignal>
#include <set>

namespace test_signals {
using namespace tool_test;

namespace {

/// A folder with a checkpoint, outputs of an earlier run, and a gnuplot that does what it is told to in the
/// midst of the next.
class interrupted_run {
 public:
  explicit interrupted_run(const std::string& gnuplot) {
    checkpoint_builder builder;
    add_layer(builder, "model.layers.0.", random_layer(70, 4, 24, 32));
    builder.write(folder_ / "model.safetensors");
    write_bytes(folder_ / "out.json", "old");
    std::filesystem::create_directory(folder_ / "bin");
    write_bytes(folder_ / "bin/gnuplot", "#!/bin/sh\n" + gnuplot + "\n");
    std::filesystem::permissions(folder_ / "bin/gnuplot", std::filesystem::perms::owner_all);
  }

  [[nodiscard]] outcome go(const std::string& before = "") const {
    return run({folder_ / "model.safetensors", "--json", folder_ / "out.json", "--trace",
                folder_ / "trace.csv", "--report", folder_ / "page"},
               before + "MODEL=" + quoted(model()) + " PATH=" + quoted(folder_ / "bin") + ":$PATH");
  }
  [[nodiscard]] std::string model() const { return folder_ / "model.safetensors"; }
  [[nodiscard]] std::string json_text() const { return read_bytes(folder_ / "out.json"); }
  /// All files but those of the report's data.
  [[nodiscard]] std::set<std::string> files() const {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_.path())) {
      const std::string name = entry.path().filename().string();
      if (entry.is_regular_file() && !name.starts_with("checkpoint-")) {
        names.insert(name);
      }
    }
    return names;
  }

 private:
  temporary_folder folder_;
};

const std::set<std::string> inputs_and_old{"gnuplot", "model.safetensors", "out.json"};

}  // namespace

TEST_CASE("a signal ends the run, and nothing half written remains") {
  for (const auto& [name, number] :
       {std::pair{"INT", SIGINT}, {"TERM", SIGTERM}, {"HUP", SIGHUP}, {"QUIT", SIGQUIT}, {"PIPE", SIGPIPE}}) {
    CAPTURE(name);
    const interrupted_run run("kill -" + std::string(name) + " $PPID");
    const auto result = run.go();
    CHECK((result.status == 128 + number || result.status == -1));  // as a shell says it, or the system
    CHECK(result.out.empty());
    CHECK(run.files() == inputs_and_old);
    CHECK(run.json_text() == "old");
  }
}

TEST_CASE("what the caller ignores is ignored") {
  const interrupted_run run("kill -HUP $PPID\nexit 1");
  CHECK(run.go("trap '' HUP; ").status == 0);
  CHECK(run.files() ==
        std::set<std::string>{"gnuplot", "model.safetensors", "out.json", "trace.csv", "index.html"});
}

TEST_CASE("a checkpoint that becomes shorter while it is read: a message that names it, and status 2") {
  const interrupted_run run(": >\"$MODEL\"\nexit 1");
  const auto result = run.go();
  CAPTURE(result.err);
  CHECK(result.status == 2);
  CHECK(result.out.empty());
  CHECK(contains(result.err, "verify_checkpoint: " + std::filesystem::canonical(run.model()).string() +
                                 ": became shorter while it was read"));
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  CHECK(run.files() == inputs_and_old);
  CHECK(run.json_text() == "old");
}

TEST_CASE("an output over the limit on file sizes is an error like others") {
  const interrupted_run run("exit 1");
  const temporary_folder folder;
  const auto result = tool_test::run({run.model(), "--json", folder / "out.json"}, "ulimit -f 1;");
  CAPTURE(result.err);
  CHECK(result.status == 2);
  CHECK(contains(result.err, "out.json: cannot be written: File too large"));
  CHECK(folder.entries() == 0);
}

}  // namespace test_signals
