// --lines and --resume: whatever ends a run, what it had finished is kept, and the resumed run writes what an
// uninterrupted one does.
#include "program.hpp"

#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <limits>
#include <set>
#include <sstream>
#include <thread>

namespace test_lines {
using namespace tool_test;

namespace {

std::string arrived(const std::string& path) {
  return std::filesystem::exists(path) ? read_bytes(path) : std::string();
}

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    lines.push_back(line);
  }
  return lines;
}

std::string joined(const std::vector<std::string>& lines, std::size_t count) {
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    text += lines[i] + "\n";
  }
  return text;
}

/// A model of two layers with rows and gates of every odd kind, and what a run on it writes.
class lines_run {
 public:
  lines_run() {
    checkpoint_builder builder;
    add_layer(builder, "model.layers.0.", random_layer(70, 5, 6, 8));
    auto odd = random_layer(71, 6, 7, 8);
    std::fill_n(odd.router.begin(), 8, 0.0F);                       // a zero row
    odd.router[8] = std::numeric_limits<float>::quiet_NaN();        // no row
    std::fill_n(odd.gates.begin() + 2 * 7 * 8, 7 * 8, 0.0F);        // a zero gate
    odd.gates[3 * 7 * 8] = std::numeric_limits<float>::infinity();  // no gate
    std::for_each_n(odd.gates.begin() + 4 * 7 * 8, 7 * 8, [](auto& x) { x *= 1e-30F; });
    add_layer(builder, "model.layers.1.", odd);
    builder.write(model());
  }
  [[nodiscard]] std::string model() const { return folder_ / "model.safetensors"; }
  [[nodiscard]] std::string lines() const { return folder_ / "lines"; }
  [[nodiscard]] const temporary_folder& folder() const { return folder_; }

  [[nodiscard]] std::vector<std::string> arguments(std::vector<std::string> more = {}) const {
    std::vector<std::string> all{model(),   "--experts",     "--json",   folder_ / "json",
                                 "--trace", folder_ / "csv", "--report", folder_ / "page",
                                 "--lines", lines(),         "--resume"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  /// All that a run writes, and how it ends.
  [[nodiscard]] std::vector<std::string> go(const std::vector<std::string>& more = {}) const {
    const auto result = run(arguments(more), "PATH=/nonexistent");  // gnuplot would take its time
    return {std::to_string(result.status),
            result.out,
            result.err,
            arrived(folder_ / "json"),
            arrived(folder_ / "csv"),
            arrived(folder_ / "page/index.html")};
  }

 private:
  temporary_folder folder_;
};

}  // namespace

TEST_CASE("a header, and a line for each expert with the numbers of the JSON document") {
  const lines_run run;
  REQUIRE(run.go()[0] == "0");
  const auto document = json::parse(read_bytes(run.folder() / "json"));
  const auto lines = split_lines(read_bytes(run.lines()));
  REQUIRE(lines.size() == 1 + 5 + 6);
  const auto header = json::parse(lines[0]);
  CHECK(header["verify_checkpoint"] == document["version"]);
  CHECK(header["tolerance"] == 1e-6);
  CHECK(header["files"][0][0]["file"] == run.model());
  CHECK(header["files"][0][0]["bytes"] == std::filesystem::file_size(run.model()));
  CHECK(header["layers"][1]["name"] == "model.layers.1.mlp");
  std::set<std::pair<int, int>> seen;
  for (std::size_t i = 1; i < lines.size(); ++i) {
    const auto line = json::parse(lines[i]);
    seen.emplace(line["layer"].get<int>(), line["expert"].get<int>());
    const auto& expert =
        document["layers"][line["layer"].get<std::size_t>()]["experts"][line["expert"].get<std::size_t>()];
    for (const auto& [name, value] : expert.items()) {
      CHECK_MESSAGE(line.at(name) == value, lines[i], name);
    }
  }
  CHECK(seen.size() == 5 + 6);
}

TEST_CASE(
    "resumed after any number of experts, and after any part of a line: the same output, byte for byte") {
  const lines_run run;
  const auto whole = run.go();
  const auto lines = split_lines(read_bytes(run.lines()));
  CHECK(contains(whole[3], "\"status\": \"non_finite\""));
  CHECK(contains(whole[3], "\"status\": \"zero_row\""));
  CHECK(contains(whole[3], "\"status\": \"zero_image\""));
  for (std::size_t kept = 0; kept <= lines.size(); ++kept) {
    CAPTURE(kept);
    const std::string next = kept < lines.size() ? lines[kept] : "";
    for (const std::size_t torn : {std::size_t{0}, next.size() / 2, next.size()}) {
      write_bytes(run.lines(), joined(lines, kept) + next.substr(0, torn));
      CHECK(run.go() == whole);
      const auto now = split_lines(read_bytes(run.lines()));
      CHECK(std::set(now.begin(), now.end()) == std::set(lines.begin(), lines.end()));
      CHECK(joined(now, kept) == joined(lines, kept));  // what was there stays
    }
  }
  // The order of the lines is that in which experts happened to finish.
  auto turned = lines;
  std::reverse(turned.begin() + 1, turned.end());
  write_bytes(run.lines(), joined(turned, 8));
  CHECK(run.go() == whole);
}

TEST_CASE("killed in the midst of its work, resumed: the same document") {
  const temporary_folder folder;
  checkpoint_builder builder;
  add_layer(builder, "layers.0.", random_layer(72, 24, 160, 200));
  builder.write(folder / "m.safetensors");
  const std::string lines = folder / "lines";
  const auto arguments = [&](const std::string& json) {
    return std::vector<std::string>{folder / "m.safetensors", "--threads", "1", "--json", folder / json};
  };
  REQUIRE(run(arguments("whole")).status == 0);

  auto words = arguments("resumed");
  words.insert(words.end(), {"--lines", lines, "--resume"});
  const auto child = ::fork();
  if (child == 0) {
    std::vector<char*> argv{const_cast<char*>(PROGRAM)};
    for (auto& word : words) {
      argv.push_back(word.data());
    }
    argv.push_back(nullptr);
    ::execv(PROGRAM, argv.data());
    ::_exit(127);
  }
  REQUIRE(child > 0);
  int status = 0;
  while (split_lines(arrived(lines)).size() < 4 && ::waitpid(child, &status, WNOHANG) == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ::kill(child, SIGKILL);
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  const auto kept = read_bytes(lines);
  CHECK_FALSE(std::filesystem::exists(folder / "resumed"));
  CHECK(split_lines(kept).size() >= 4);
  CHECK(split_lines(kept).size() < 1 + 24);

  REQUIRE(run(words).status == 0);
  CHECK(read_bytes(folder / "resumed") == read_bytes(folder / "whole"));
  const auto all = read_bytes(lines);
  CHECK(all.starts_with(kept.substr(0, kept.rfind('\n') + 1)));
  CHECK(split_lines(all).size() == 1 + 24);
}

TEST_CASE("a file that is full or cannot be written: a clear error, and what it has is resumed") {
  const lines_run run;
  const auto whole = run.go();
  const auto lines = split_lines(read_bytes(run.lines()));
  const auto bytes = read_bytes(run.lines()).size();
  const auto room = (lines[0].size() + bytes) / 2;  // for the header and some lines
  std::filesystem::remove(run.lines());
  const auto full = tool_test::run({run.model(), "--lines", run.lines(), "--trace", run.folder() / "csv"},
                                   "ulimit -f " + std::to_string(room / 512) + ";");
  CAPTURE(full.err);
  CHECK(full.status == 2);
  CHECK(full.out.empty());
  CHECK(contains(full.err, "lines: cannot be written: File too large; what is in it stays"));
  const auto kept = read_bytes(run.lines());
  CHECK(kept.ends_with('\n'));
  CHECK(split_lines(kept).size() > 1);
  CHECK(split_lines(kept).size() < lines.size());
  CHECK(run.go() == whole);

  const std::vector<std::string> start{run.model(), "--json", run.folder() / "other", "--lines"};
  const auto refuse = [&](const std::string& file, const std::string& reason) {
    auto words = start;
    words.push_back(file);
    check_refused(words, reason);
    words.emplace_back("--resume");
    return words;
  };
  check_refused(refuse(run.folder() / "missing/lines", "missing/lines: cannot be written: No such file"),
                "missing/lines: cannot be written");
  check_refused(refuse(run.folder() / "page", "page: exists"), "page: cannot be written: Is a directory");
  check_refused(refuse("/dev/full", "/dev/full: exists"), "/dev/full: is not a regular file");
  check_refused(refuse(run.model(), "never overwritten"), "never overwritten");
  check_refused(refuse(run.folder() / "other", "--json and --lines name one file"), "name one file");
  CHECK_FALSE(std::filesystem::exists(run.folder() / "other"));
}

TEST_CASE("a file that is there is never overwritten, and only what belongs to the run is resumed") {
  const lines_run run;
  REQUIRE(run.go()[0] == "0");
  const auto text = read_bytes(run.lines());
  const auto lines = split_lines(text);
  check_refused({run.model(), "--lines", run.lines()},
                "lines: exists; with --resume the run goes on from there");
  check_refused({run.model(), "--resume"}, "--resume requires --lines");
  check_refused({run.model(), "--list", "--lines", run.folder() / "none"}, "--lines excludes --list");
  const auto refuse = [&](const std::vector<std::string>& more, const std::string& reason) {
    check_refused(run.arguments(more), reason);
  };
  refuse({"--tolerance", "1e-5"}, "resumed by this: tolerance was 1e-06 and is 1e-05");
  refuse({"--max-steps", "9"}, "max_steps was 10000 and is 9");
  refuse({"--no-svd"}, "svd was \"automatic\" and is \"never\"");
  refuse({"--svd"}, "svd was \"automatic\" and is \"always\"");
  refuse({"--sample", "2"}, "sample was \"all\" and is 2");
  refuse({"--layers", "1"}, "layers was a list of 2 and is a list of 1");
  refuse({data_file("tiny-mpi.safetensors")}, "files was a list of 1 and is a list of 2");
  check_refused({run.model(), "--lines", run.lines(), "--resume"}, "trace was true and is false");
  CHECK(read_bytes(run.lines()) == text);
  // What decides no number may change.
  CHECK(tool_test::run(run.arguments({"--threads", "1", "--worst-first"})).status == 0);

  const auto holds = [&](const std::string& bytes, const std::string& reason) {
    write_bytes(run.lines(), bytes);
    refuse({}, reason);
    CHECK(read_bytes(run.lines()) == bytes);
  };
  holds("a letter", "is no file of --lines");
  holds("a letter\n", "is no file of --lines");
  holds("{}\n", "is no file of --lines");
  holds(joined(lines, 2) + "{}\n" + lines[2] + "\n", "line 3 is damaged");
  holds(joined(lines, 3) + lines[2] + "\n", "is there twice");
  auto word = lines[1];
  word.replace(word.find("\"status\":\"") + 10, 1, "x");
  holds(lines[0] + "\n" + word + "\n", "line 2 is damaged");
  auto other = lines[1];
  other.replace(other.find("\"expert\":") + 9, 1, "77");
  holds(lines[0] + "\n" + other + "\n", "was not asked for");
}

TEST_CASE("a checkpoint that changed is not resumed") {
  const lines_run run;
  REQUIRE(run.go()[0] == "0");
  const auto bytes = read_bytes(run.model());
  const auto time = std::filesystem::last_write_time(run.model());
  std::filesystem::last_write_time(run.model(), time + std::chrono::milliseconds(1));
  check_refused(run.arguments(), "model.safetensors, modified was ");
  std::filesystem::last_write_time(run.model(), time);
  CHECK(run.go()[0] == "0");
  write_bytes(run.folder() / "config.json", "{}");
  check_refused(run.arguments(), "files, 0 was a list of 1 and is a list of 2");
  std::filesystem::remove(run.folder() / "config.json");
  checkpoint_builder more;
  add_layer(more, "model.layers.0.", random_layer(70, 5, 6, 8));
  add_layer(more, "model.layers.1.", random_layer(70, 6, 7, 8));
  add_layer(more, "other.", random_layer(70, 2, 3, 8));
  more.write(run.model());
  check_refused(run.arguments(), "model.safetensors, bytes was " + std::to_string(bytes.size()));
}

TEST_CASE("one run at a time writes to a file") {
  const lines_run run;
  REQUIRE(run.go()[0] == "0");
  const int other = ::open(run.lines().c_str(), O_RDWR);
  REQUIRE(::flock(other, LOCK_EX) == 0);
  check_refused(run.arguments(), "lines: is being written by another run");
  ::close(other);
  CHECK(run.go()[0] == "0");
}

}  // namespace test_lines
