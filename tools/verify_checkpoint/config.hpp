// What the config.json beside a checkpoint says of its layers and experts.
#pragma once

#include <mpi_router/core/config.hpp>

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace verify {

using mpi_router::index_t;

/// What is absent was not said, or not in words known here.
struct model_config {
  std::vector<std::string> names;  ///< model types and architectures, in small letters and digits alone
  std::optional<index_t> hidden_dim;
  std::optional<index_t> num_experts;              ///< routed experts of a layer
  std::optional<std::vector<index_t>> moe_layers;  ///< numbers of the layers with experts, ascending
  std::string problem;                             ///< why it could not be read; empty if it could

  /// Whether an architecture or model type begins so.
  [[nodiscard]] bool is_called(std::string_view architecture) const;
};

/// Reads `text`, a config.json. A composite model is asked for the part that speaks: text_config and the
/// like.
[[nodiscard]] model_config parse_config(std::string_view text);

/// The config.json in a folder, or beside a file; nothing where there is none.
[[nodiscard]] std::optional<model_config> read_config(const std::filesystem::path& checkpoint);

}  // namespace verify
