// The logarithm of a score in long double, which holds e^-11000: what selection and weights are held against.
#pragma once

#include <mpi_router/core/gating_options.hpp>

#include <algorithm>
#include <cmath>

namespace test_support {

/// log of the score; −∞ for a score of zero.
inline long double log_score(mpi_router::score_function f, long double x) {
  using mpi_router::score_function;
  const long double softplus = std::max(x, 0.0L) + std::log1p(std::exp(-std::abs(x)));
  switch (f) {
    case score_function::softmax: return x;
    case score_function::sigmoid: return -(std::max(-x, 0.0L) + std::log1p(std::exp(-std::abs(x))));
    case score_function::sqrtsoftplus: return (x < -40 ? x : std::log(softplus)) / 2;
  }
  return 0;
}

}  // namespace test_support
