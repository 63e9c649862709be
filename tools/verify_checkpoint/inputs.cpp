#include "inputs.hpp"

#include "find_layers.hpp"
#include "terminal.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

namespace verify {

namespace {

using mpi_router::io::printable;

/// The folder of the two models that come with the project: installed beside the program, or in the tree that
/// it was built from.
std::filesystem::path own_models() {
#ifdef VERIFY_CHECKPOINT_INSTALLED_MODELS
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  const auto installed = (program.parent_path() / VERIFY_CHECKPOINT_INSTALLED_MODELS).lexically_normal();
  if (!error && std::filesystem::is_directory(installed, error)) {
    return installed;
  }
#endif
  return VERIFY_CHECKPOINT_MODELS;
}

/// Adds the checkpoint and its layers. Throws where it cannot be read, or has none.
void add_input(const std::string& path, const arguments& a, opened& inputs) {
  const auto& model = inputs.models.emplace_back(path);
  try {
    inputs.found.push_back(find_some(model, a));
  } catch (...) {
    inputs.models.pop_back();
    throw;
  }
  inputs.paths.push_back(path);
  for (const auto* layer : inputs.chosen.emplace_back(choose(inputs.found.back(), selected(a))).asked) {
    inputs.num_experts += layer->num_experts;
  }
}

/// Notes, and tells once, that a checkpoint of several could not be read.
void note_unread(const std::string& path, std::string reason, const ranks& all, opened& inputs) {
  if (all.is_first()) {
    std::replace(reason.begin(), reason.end(), '\n', ' ');
    fmt::print(stderr, "verify_checkpoint: {}\n", printable(reason, longest_line));
  }
  if (reason.starts_with(path + ": ")) {
    reason.erase(0, path.size() + 2);
  }
  auto& failed = inputs.failed.emplace_back(unread{path, {}});
  failed.nothing.omissions.push_back({path, "could not be read: " + reason, omission_kind::missing});
}

}  // namespace

opened open_inputs(const arguments& a, const ranks& all) {
  auto paths = a.inputs;
  if (paths.empty()) {
    for (const char* name : {"tiny-vanilla.safetensors", "tiny-mpi.safetensors"}) {
      paths.push_back((own_models() / name).string());
    }
  }
  opened inputs;
  for (const auto& path : paths) {
    try {
      add_input(path, a, inputs);
    } catch (const std::exception& error) {
      if (paths.size() == 1 || all.size() > 1) {  // processes must not differ in what they could read
        throw;
      }
      note_unread(path, error.what(), all, inputs);
    }
  }
  if (inputs.models.empty()) {
    throw told_already();
  }
  require(!inputs.layers().empty(), fmt::format("no layer has a number of --layers {}", a.layers));
  for (const index_t number : lone_numbers(a.layers)) {
    require(std::ranges::any_of(inputs.found, [&](const auto& found) { return has_number(found, number); }),
            fmt::format("no layer has the number {} of --layers {}", number, a.layers));
  }
  return inputs;
}

std::vector<checkpoint_result> without_results(const opened& inputs) {
  std::vector<checkpoint_result> checkpoints;
  for (std::size_t i = 0; i < inputs.paths.size(); ++i) {
    auto& c = checkpoints.emplace_back(
        checkpoint_result{inputs.paths[i], &inputs.found[i], {}, inputs.chosen[i].skipped});
    for (const auto* layer : inputs.chosen[i].asked) {
      c.layers.push_back({layer, {}});
    }
  }
  for (const auto& failed : inputs.failed) {
    checkpoints.push_back(checkpoint_result{failed.path, &failed.nothing, {}, {}});
  }
  return checkpoints;
}

}  // namespace verify
