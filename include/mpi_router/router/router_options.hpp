// What the batched step computes in, and the size of its tape.
#pragma once

#include <mpi_router/core/by_products.hpp>
#include <mpi_router/core/experts.hpp>
#include <mpi_router/core/options.hpp>

MPIROUTER_BEGIN_TYPES

/// The type that the batched step computes in: double where the experts or the rows are stored in double.
template <Scalar T, Scalar R>
using router_scalar_t =
    std::conditional_t<std::same_as<accumulator_t<T>, double> || std::same_as<accumulator_t<R>, double>,
                       double, float>;

/// Elements of the tape: of each expert the rows after each step, and their norms before the retraction.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t router_tape_size(
    const expert_shape& shape, const router_options& options) noexcept {
  return shape.num_experts * options.steps * (shape.hidden_dim + 2);
}

MPIROUTER_END_TYPES
