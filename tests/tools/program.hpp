// Runs verify_checkpoint as a user does, on checkpoints made here.
#pragma once

#include <io/checkpoints.hpp>
#include <mpi_router/backend/eigen.hpp>

#include <sys/wait.h>
#include <Eigen/Core>
#include <nlohmann/json.hpp>

#include <cstdlib>
#include <deque>
#include <filesystem>
#include <string>
#include <vector>

namespace tool_test {

using io_test::add_layer;
using io_test::checkpoint_builder;
using io_test::contains;
using io_test::layer_data;
using io_test::random_layer;
using io_test::read_bytes;
using io_test::temporary_folder;
using io_test::write_bytes;
using mpi_router::dtype;
using mpi_router::index_t;
using nlohmann::json;

struct outcome {
  int status = -1;
  std::string out;
  std::string err;
};

inline std::string quoted(const std::string& argument) {
  std::string out = "'";
  for (const char c : argument) {
    out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  }
  return out + "'";
}

/// Runs the program. Neither stream is a terminal.
inline outcome run(const std::vector<std::string>& arguments, const std::string& environment = "") {
  const temporary_folder folder;
  std::string command = environment + " " + quoted(PROGRAM);
  for (const auto& argument : arguments) {
    command += " " + quoted(argument);
  }
  command += " >" + quoted(folder / "out") + " 2>" + quoted(folder / "err") + " </dev/null";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_bytes(folder / "out"),
          read_bytes(folder / "err")};
}

/// Runs it with --json and returns the document; the run must succeed.
inline json run_json(std::vector<std::string> arguments, const std::string& environment = "") {
  const temporary_folder folder;
  arguments.push_back("--json");
  arguments.push_back(folder / "out.json");
  const auto result = run(arguments, environment);
  INFO(result.err);
  REQUIRE(result.status == 0);
  return json::parse(read_bytes(folder / "out.json"));
}

/// Exit status 2, one line on the standard error that holds `reason`, nothing else.
inline void check_refused(const std::vector<std::string>& arguments, const std::string& reason) {
  const auto result = run(arguments);
  CAPTURE(result.err);
  CHECK(result.status == 2);
  CHECK(result.out.empty());
  CHECK(contains(result.err, reason));
  CHECK(result.err.starts_with("verify_checkpoint: "));
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
}

inline std::string data_file(const std::string& name) { return std::string(EXAMPLE_DATA) + "/" + name; }

/// The numbers of all experts of a document, without the names around them.
inline json numbers_of(const json& document) {
  json out = json::array();
  for (const auto& layer : document["layers"]) {
    out.push_back(layer["experts"]);
  }
  return out;
}

/// How often a text holds another.
inline std::size_t count(const std::string& text, const std::string& what) {
  std::size_t found = 0;
  for (auto at = text.find(what); at != text.npos; at = text.find(what, at + what.size())) {
    ++found;
  }
  return found;
}

inline bool has_gnuplot() { return std::system("gnuplot --version >/dev/null 2>&1") == 0; }

}  // namespace tool_test
