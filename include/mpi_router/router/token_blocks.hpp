// How tokens are cut into tasks: by their number alone, so that results do not depend on who runs them.
#pragma once

#include <mpi_router/core/concepts.hpp>

#include <algorithm>

MPIROUTER_BEGIN
namespace detail {

/// Tokens are cut into blocks of this many, whatever runs them.
inline constexpr index_t token_block = 256;

[[nodiscard]] constexpr index_t token_blocks(index_t num_tokens) noexcept {
  return num_tokens / token_block + (num_tokens % token_block != 0 ? 1 : 0);
}

/// Calls body(first, count, block) for each block of tokens.
template <class Run, class Body>
void for_token_blocks(const Run& executor, index_t num_tokens, const Body& body) {
  executor(token_blocks(num_tokens), [&](index_t block) {
    const index_t first = block * token_block;
    body(first, std::min(token_block, num_tokens - first), block);
  });
}

template <Accumulator S>
void set_zero(const vector_view<S>& x) noexcept {
  for (index_t i = 0; i < x.size(); ++i) {
    x[i] = S{0};
  }
}

}  // namespace detail
MPIROUTER_END
