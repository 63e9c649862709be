// One run: a router, a seed, its trace.
#pragma once

#include "model.hpp"

#include <mpi_router/router/load.hpp>

#include <functional>

namespace train {

struct settings {
  model_sizes sizes{};
  index_t steps = 800;
  index_t sequences = 16;  ///< a batch
  index_t every = 100;     ///< steps between measurements
  float rate = 3e-3F;
  float coefficient = 0.01F;  ///< of the balance loss
  double c_prime = 4;
};

/// What is measured every so often, over all layers.
struct record {
  index_t step = 0;
  double train_loss = 0;  ///< mean since the last record; nats per byte
  double test_loss = 0;
  double balance_loss = 0;
  double max_violation_batch = 0;              ///< mean over the batches since the last record
  double max_violation_global = 0;             ///< of their sum
  double entropy = 0;                          ///< of their sum, in nats
  mpi_router::alignment_statistics alignment;  ///< of the rows that tokens met, over experts and layers
};

struct run_result {
  router_kind router{};
  std::uint64_t seed = 0;
  std::vector<record> trace;
  std::unique_ptr<model> trained;
};

/// Trains one model. Runs with the same seed start from the same weights and see the same batches. One
/// thread; the same numbers whatever runs beside it. `progress` is called once a step.
[[nodiscard]] run_result train_one(const corpus& text, const settings& s, router_kind router,
                                   std::uint64_t seed, const std::function<void()>& progress);

}  // namespace train
