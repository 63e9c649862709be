// The score functions, each of them, for tests that hold for all.
#pragma once

#include <mpi_router/core/scores.hpp>

#include <array>

namespace test_support {

inline constexpr std::array all_scores{mpi_router::score_function::softmax,
                                       mpi_router::score_function::sigmoid,
                                       mpi_router::score_function::sqrtsoftplus};

}  // namespace test_support
