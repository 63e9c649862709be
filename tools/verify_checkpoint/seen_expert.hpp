// What a comparison needs to know of one expert.
#pragma once

#include "compare_results.hpp"
#include "gpu.hpp"

#include <Eigen/Core>

namespace verify {

/// One expert of one checkpoint, and what of it is compared.
struct seen_expert {
  version_result numbers;
  mpi_router::principal_direction found;
  Eigen::VectorXd v;     ///< the principal direction; zero where there is none
  Eigen::VectorXd row;   ///< as stored
  Eigen::VectorXd next;  ///< after one step, unit norm
};

/// On the device where there is one and the expert is large.
[[nodiscard]] seen_expert look_at(const moe_layer& layer, index_t expert, gpu* device);

}  // namespace verify
