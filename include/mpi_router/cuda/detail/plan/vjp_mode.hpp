// What becomes of the gradient to the weights.
#pragma once

#include <mpi_router/core/config.hpp>
#include <mpi_router/core/storage_traits.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

enum class vjp_mode { factored, write, accumulate };

/// A tile takes less where the old gradient travels through the ring as well.
[[nodiscard]] constexpr tile_limits vjp_tile(vjp_mode mode) {
  return mode == vjp_mode::accumulate ? vjp_tile_with_old : vjp_tile_alone;
}

/// Whether the gradient that is added to travels through the ring with the weights: where a thread's columns
/// of it fill vectors.
template <class T, class G>
constexpr bool old_in_ring = sizeof(G) >= sizeof(T);
/// Whether a backward over panels has a ring for the old gradient: also where it is written between elements
/// that stay, for memory takes no less than 32 bytes at a time.
template <class T, class G>
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr bool needs_old(vjp_mode mode, bool in_pairs) {
  return old_in_ring<T, G> && (mode == vjp_mode::accumulate || (in_pairs && mode == vjp_mode::write));
}

/// Whether a factored backward over panels is by tensor cores: a float is the sum of three bf16s, down to
/// 2^-110; of f16s it is not.
template <class T>
constexpr bool in_panel_tiles = std::is_same_v<T, bf16>;

MPIROUTER_CUDA_DETAIL_END
