// Dispatch lists: which tokens go to which expert, sorted by expert.
#pragma once

#include <mpi_router/router/load.hpp>

MPIROUTER_BEGIN_TYPES

/// The tokens of expert i are tokens[offsets[i]] … tokens[offsets[i + 1] − 1], in ascending order. The memory
/// is the caller's.
struct dispatch_lists {
  std::span<index_t> offsets;  ///< N + 1
  std::span<index_t> tokens;   ///< T · K
  std::span<index_t> entries =
      {};  ///< T · K or empty: t · K + k, where the token's weight for this expert lies
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// Sorts the choices of the gate by expert (a stable counting sort), O(T·K + N), nothing allocated.
///
/// experts: T · K ids, all in [0, N), N = offsets.size() − 1; statuses: T, tokens that are not ok are left
/// out (so that offsets[N] < T · K then), or empty. Throws usage_error on sizes and on ids that are out of
/// range.
inline void build_dispatch(std::span<const expert_id> experts, index_t top_k,
                           std::span<const status> statuses, const dispatch_lists& out) {
  detail::expect_experts("build_dispatch", experts, top_k, statuses);
  detail::expect(!out.offsets.empty() && out.tokens.size() >= experts.size() &&
                     (out.entries.empty() || out.entries.size() >= experts.size()),
                 "build_dispatch: lists of ", out.offsets.size(), ", ", out.tokens.size(), " and ",
                 out.entries.size(), " elements for ", experts.size(), " expert ids");
  for (index_t& offset : out.offsets) {
    offset = 0;
  }
  count_load(experts, top_k, statuses, out.offsets.first(out.offsets.size() - 1));
  index_t first = 0;  // counts become offsets of first tokens …
  for (index_t& offset : out.offsets) {
    const index_t count = offset;
    offset = first;
    first += count;
  }
  detail::for_entries(experts, top_k, statuses, [&](index_t entry, index_t expert) {
    const auto at = static_cast<std::size_t>(out.offsets[static_cast<std::size_t>(expert)]++);
    out.tokens[at] = entry / top_k;
    if (!out.entries.empty()) {
      out.entries[at] = entry;
    }
  });
  for (std::size_t i = out.offsets.size() - 1; i > 0; --i) {  // … which moved to their ends: shift them back
    out.offsets[i] = out.offsets[i - 1];
  }
  out.offsets[0] = 0;
}

MPIROUTER_END
