// What host and device find in a step of Lanczos, and when they take away twice what is not orthogonal.
#pragma once

#include <mpi_router/core/config.hpp>

MPIROUTER_BEGIN_TYPES

/// What a step of Lanczos finds, in units of the space's scale.
struct lanczos_step {
  double along = 0;  ///< the entry on the diagonal of T
  double left = 0;   ///< the norm of what is orthogonal to all before; 0 if nothing, NaN if not finite
};

namespace core {

/// A vector of which less than this part is left, beside those before it, is made orthogonal to them again.
inline constexpr double little_left = 0.3;
/// Where that leaves less than this part of it, it was rounding error.
inline constexpr double only_rounding = 0.5;

}  // namespace core

MPIROUTER_END_TYPES
