// M of an expert whose type is known when the program runs.
#pragma once

#include "arrays.hpp"

#include <mpi_router/verify/any_operator.hpp>

#include <vector>

namespace mpi_router_c {

/// Of expert i, with sums in double.
[[nodiscard]] any_operator<double> operator_in_double(const mpi_router_experts& experts, index_t i);

/// Of expert i, with sums in float; what is stored in double is rounded, to `rounded`, which it then reads.
[[nodiscard]] any_operator<float> operator_in_float(const mpi_router_experts& experts, index_t i,
                                                    std::vector<float>& rounded);

/// Row i as doubles.
[[nodiscard]] std::vector<double> row_in_double(const mpi_router_matrix& rows, index_t i);

}  // namespace mpi_router_c
