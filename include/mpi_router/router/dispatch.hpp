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
namespace detail {

inline void check_lists(const char* what, const dispatch_lists& out, std::span<const expert_id> experts,
                        std::span<const status> statuses) {
  expect(!out.offsets.empty() && out.tokens.size() >= experts.size() &&
             (out.entries.empty() || out.entries.size() >= experts.size()),
         what, ": lists of ", out.offsets.size(), ", ", out.tokens.size(), " and ", out.entries.size(),
         " elements for ", experts.size(), " expert ids");
  expect_apart(what,
               {{"the offsets", addresses_of(out.offsets)},
                {"the tokens", addresses_of(out.tokens)},
                {"the entries", addresses_of(out.entries)}},
               {{"the expert ids", addresses_of(experts)}, {"the statuses", addresses_of(statuses)}});
}

}  // namespace detail

/// Sorts the choices of the gate by expert (a stable counting sort), O(T·K + N), nothing allocated.
///
/// experts: T · K ids, all in [0, N), N = offsets.size() − 1; statuses: T, tokens that these leave out are in
/// no list (so that offsets[N] < T · K then), or empty. Throws usage_error on sizes, overlap, and on ids that
/// are out of range, before anything is written.
inline void build_dispatch(std::span<const expert_id> experts, index_t top_k,
                           std::span<const status> statuses, const dispatch_lists& out) {
  detail::check_lists("build_dispatch", out, experts, statuses);
  detail::check_ids("build_dispatch", experts, top_k, statuses, static_cast<index_t>(out.offsets.size()) - 1);
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
