// The two small models that come with the project: the router row and the gate matrix of each expert.
#pragma once

#include "steps.hpp"

namespace theory {

struct real_expert {
  bool mpi;      ///< of the model that was trained with MPI; else of that with the usual router
  int layer;     ///< 0 or 1
  VectorXd row;  ///< as stored
  MatrixXd a;    ///< A, [F, D] = [128, 256]
};

/// The 32 experts. Throws where a file or a tensor is missing.
std::vector<real_expert> real_experts();

}  // namespace theory
