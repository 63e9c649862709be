// All that a gate needs and tells, for T tokens: random logits, and a bias where it is wanted.
#pragma once

#include <mpi_router/router/gating.hpp>

#include <support/random.hpp>

#include <vector>

namespace test_support {

template <class S>
struct gated {
  mpi_router::index_t tokens, experts;
  mpi_router::gating_options options;
  std::vector<S> logits, bias, weights, workspace;
  std::vector<mpi_router::expert_id> ids;
  std::vector<mpi_router::status> statuses;

  gated(mpi_router::index_t t, mpi_router::index_t n, const mpi_router::gating_options& o, std::uint64_t seed,
        bool biased = false)
      : tokens(t), experts(n), options(o) {
    random_source random(seed);
    logits = random_vector<S>(random, t * n);
    if (biased) bias = random_vector<S>(random, n, 0.3);
    weights.resize(static_cast<std::size_t>(t * o.top_k));
    ids.resize(weights.size());
    statuses.resize(static_cast<std::size_t>(t));
    workspace.resize(static_cast<std::size_t>(mpi_router::gating_workspace(t, n)));
  }
  auto view() const { return mpi_router::row_major(logits.data(), tokens, experts); }
  void forward() {
    mpi_router::gate<S>(view(), options, bias,
                        {mpi_router::row_major(weights.data(), tokens, options.top_k), ids, statuses},
                        workspace);
  }
};

}  // namespace test_support
