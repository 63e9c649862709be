// What the batched step tells besides the rows, and the sizes that go with it. Plain data.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/core/options.hpp>

#include <span>

MPIROUTER_BEGIN_TYPES

/// What router_rows tells besides the rows. Each may be left empty: not wanted.
template <Accumulator S>
struct router_by_products {
  std::span<status>
      statuses{};  ///< N: what became of each row; of the first step that failed, if there are several
  vector_view<S> rayleigh{};  ///< N: ρ of the row that the last step started from
  vector_view<S> cosine{};    ///< N: cos of the angle of the last step, in (0, 1]
  vector_view<S> tape{};      ///< router_tape_size(…) elements: what the backward needs
};

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
