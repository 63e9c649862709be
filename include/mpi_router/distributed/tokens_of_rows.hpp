// Whose tokens the gradient of rows comes from.
#pragma once

#include <mpi_router/core/config.hpp>

MPIROUTER_BEGIN_TYPES

/// Whose tokens the gradient of the rows comes from.
enum class tokens_of_rows : unsigned char {
  /// Every rank has seen the same tokens, or what it is given is the sum over all of them already.
  same_on_all_ranks,
  /// Every rank has tokens of its own: what they are given is summed over the ranks first, in rank order.
  split_over_ranks
};

MPIROUTER_END_TYPES
