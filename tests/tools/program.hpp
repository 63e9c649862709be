// Runs verify_checkpoint as a user does, on checkpoints made here.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/io/safetensors.hpp>

#include <io/files.hpp>
#include <support/random.hpp>

#include <sys/wait.h>
#include <Eigen/Core>
#include <nlohmann/json.hpp>

#include <cstdlib>
#include <deque>
#include <filesystem>
#include <string>
#include <vector>

namespace tool_test {

using io_test::contains;
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

/// One layer in memory: router rows [N, D] and gates [N, F, D], as bf16 can hold them.
struct layer_data {
  index_t n = 0;
  index_t f = 0;
  index_t d = 0;
  std::vector<float> router;
  std::vector<float> gates;

  [[nodiscard]] float gate(index_t e, index_t i, index_t j) const {
    return gates[static_cast<std::size_t>((e * f + i) * d + j)];
  }
};

inline layer_data random_layer(std::uint64_t seed, index_t n, index_t f, index_t d) {
  test_support::random_source random(seed);
  const auto values = [&](index_t count) {
    std::vector<float> out;
    for (const auto x : test_support::random_vector<mpi_router::bf16>(random, count)) {
      out.push_back(static_cast<float>(x));
    }
    return out;
  };
  layer_data layer{n, f, d, values(n * d), values(n * f * d)};
  return layer;
}

/// Collects tensors, which it owns, and writes them.
class checkpoint_builder {
 public:
  template <class T>
  void add(const std::string& name, std::vector<index_t> shape, const std::vector<float>& values) {
    auto& bytes = storage_.emplace_back(values.size() * sizeof(T));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const T value(values[i]);
      std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
    }
    sources_.push_back({name, mpi_router::dtype_of<T>::value, std::move(shape), bytes});
  }
  void add_raw(const std::string& name, dtype type, std::vector<index_t> shape) {
    auto& bytes = storage_.emplace_back(*mpi_router::detail::byte_size(type, shape));
    sources_.push_back({name, type, std::move(shape), bytes});
  }
  void write(const std::filesystem::path& path) const {
    mpi_router::write_safetensors(path, sources_, metadata);
  }
  /// Every tensor into one of `count` shards, in turn, with an index.
  void write_shards(const std::filesystem::path& folder, std::size_t count) const {
    json index{{"metadata", {{"total_size", 1}}}, {"weight_map", json::object()}};
    for (std::size_t s = 0; s < count; ++s) {
      const std::string name = "model-" + std::to_string(s + 1) + ".safetensors";
      std::vector<mpi_router::tensor_source> part;
      for (std::size_t i = s; i < sources_.size(); i += count) {
        part.push_back(sources_[i]);
        index["weight_map"][sources_[i].name] = name;
      }
      mpi_router::write_safetensors(folder / name, part, metadata);
    }
    write_bytes(folder / "model.safetensors.index.json", index.dump(2));
  }

  std::map<std::string, std::string> metadata{{"format", "pt"}};

 private:
  std::deque<std::vector<std::byte>> storage_;
  std::vector<mpi_router::tensor_source> sources_;
};

/// The layer under this project's names.
template <class T = mpi_router::bf16>
void add_layer(checkpoint_builder& builder, const std::string& prefix, const layer_data& layer) {
  builder.add<float>(prefix + "mlp.router.weight", {layer.n, layer.d}, layer.router);
  builder.add<T>(prefix + "mlp.experts.gate_proj", {layer.n, layer.f, layer.d}, layer.gates);
}

/// The numbers of all experts of a document, without the names around them.
inline json numbers_of(const json& document) {
  json out = json::array();
  for (const auto& layer : document["layers"]) {
    out.push_back(layer["experts"]);
  }
  return out;
}

}  // namespace tool_test
