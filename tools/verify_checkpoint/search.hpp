// Finds the MoE layers of a checkpoint, and names all of it that is not looked at.
#pragma once

#include "assemble.hpp"
#include "config.hpp"

#include <mpi_router/io/checkpoint.hpp>

#include <optional>
#include <string>
#include <vector>

namespace verify {

/// What becomes of a thing that is not certified.
enum class fate {
  set_aside,  ///< no part of the model's routers and experts: optimizer state, adapters; or a mere remark
  unseen,     ///< routers or experts that the files hold and that are not looked at
  missing     ///< promised by file names, the index or config.json, and not there
};

/// Something that looks like part of an MoE layer and is not looked at, or is not there.
struct unmatched {
  std::string name;
  std::string reason;  ///< with a hint
  fate what = fate::unseen;
  index_t layers = 0;  ///< whole layers that the answer lacks for it
  index_t rows = 0;    ///< rows that it lacks, those of the layers included
};

/// Tensors that the user names. {layer} stands for any text, the same in both; {expert} for the number of the
/// expert.
struct name_patterns {
  std::string router;
  std::string gate;
};

struct search_options {
  std::optional<name_patterns> patterns;  ///< instead of the families
  std::optional<layout> how;              ///< instead of the family's layout
  router_layout router_how = router_layout::nd;
};

struct search_result {
  std::vector<moe_layer> layers;  ///< in natural order: layer 2 before layer 10
  std::vector<unmatched> others;
};

/// Layers by the names of known families, or by the user's patterns; `others` has the rest, and what is
/// missing by the names of the shards, by the index and by the config.json beside.
[[nodiscard]] search_result find_layers(const mpi_router::checkpoint& model, const search_options& options);

}  // namespace verify
