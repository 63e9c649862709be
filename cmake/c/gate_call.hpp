// What a gate on either side takes.
#pragma once

#include "arrays.hpp"

#include <mpi_router/core/gating_options.hpp>

namespace mpi_router_c {

/// Throws usage_error where a value is none.
[[nodiscard]] gating_options options_of(const char* what, const mpi_router_gating_options& options);

}  // namespace mpi_router_c
