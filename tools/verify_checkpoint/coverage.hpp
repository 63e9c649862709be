// How much of a checkpoint an answer is about.
#pragma once

#include "results.hpp"

#include <optional>
#include <string>
#include <vector>

namespace verify {

/// Counts of layers and rows: those that the files hold, and those that file names or config.json promise.
struct coverage {
  index_t layers = 0;
  index_t rows = 0;
  index_t layers_seen = 0;  ///< looked at
  index_t rows_seen = 0;
  index_t layers_certified = 0;  ///< all of whose rows are certified to the angle asked for, or to any
  index_t rows_certified = 0;
  index_t layers_unseen = 0;  ///< whole layers that the files hold and that were not looked at
  index_t rows_unseen = 0;
  index_t layers_skipped = 0;        ///< whole layers that --layers leaves out
  index_t rows_skipped = 0;          ///< rows that --layers and --sample leave out
  std::vector<std::string> missing;  ///< "NAME: REASON" of all that is promised and not here

  /// Whether nothing is left out but what was not asked for.
  [[nodiscard]] bool is_complete() const;
};

/// Over all checkpoints of a run. `angle` is what --require-angle asks for.
[[nodiscard]] coverage coverage_of(const std::vector<checkpoint_result>& checkpoints,
                                   std::optional<double> angle = std::nullopt);

/// "2 of 3 layers, 8 of 12 rows were looked at; 1 layer (4 rows) was not looked at".
[[nodiscard]] std::string describe_seen(const coverage& c);

/// "2 of 3 layers, 8 of 12 rows are certified to be within …; 1 layer (4 rows) was not looked at".
[[nodiscard]] std::string describe_certified(const coverage& c, double angle);

}  // namespace verify
