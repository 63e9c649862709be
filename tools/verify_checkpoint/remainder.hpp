// The routers and experts of a checkpoint that no layer uses, by the look of their names.
#pragma once

#include "search.hpp"

#include <set>
#include <string>

namespace verify {

/// What a search has come to so far.
struct found_parts {
  search_result result;
  std::set<const mpi_router::stored_tensor*>
      said;                      ///< tensors that are used, or about which something is said
  std::set<std::string> blocks;  ///< all that the files hold: "model.layers.3.mlp."
};

/// Adds to `others` what the files hold beside the layers that were found: routers and experts under names
/// that no family has, those that the index omits, optimizer state and adapters.
void note_remainder(const mpi_router::checkpoint& model, found_parts& found);

}  // namespace verify
