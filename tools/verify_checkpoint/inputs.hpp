// The checkpoints of a run, opened, and the layers to look at.
#pragma once

#include "arguments.hpp"
#include "ranks.hpp"
#include "results.hpp"
#include "selection.hpp"

#include <mpi_router/io/checkpoint.hpp>

#include <deque>
#include <string>
#include <vector>

namespace verify {

/// A checkpoint of several that could not be read, as a result that has no layers and says why.
struct unread {
  std::string path;
  moe_layers nothing;
};

/// The checkpoints of a run and their layers.
struct opened {
  std::vector<std::string> paths;  ///< of those that could be read
  std::deque<mpi_router::checkpoint> models;
  std::deque<moe_layers> found;
  std::vector<chosen_layers> chosen;  ///< of each
  std::deque<unread> failed;
  index_t num_experts = 0;

  [[nodiscard]] std::vector<const moe_layer*> layers() const {
    std::vector<const moe_layer*> all;
    for (const auto& some : chosen) {
      all.insert(all.end(), some.asked.begin(), some.asked.end());
    }
    return all;
  }
};

/// One checkpoint must be readable; of several, in one process, those that are not are noted and the others
/// done.
[[nodiscard]] opened open_inputs(const arguments& a, const ranks& all);

/// The checkpoints and the layers that were asked for, without results.
[[nodiscard]] std::vector<checkpoint_result> without_results(const opened& inputs);

}  // namespace verify
