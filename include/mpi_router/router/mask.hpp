// Which tokens count. One mask for all of router/: the statuses of T tokens, or none at all, where every
// token counts. A token counts if its status is routed (core/error.hpp): what is masked, or was non_finite,
// has no experts, adds nothing to losses, loads and dispatch lists, gets no gradient, and may have any ids,
// −1 among them. Means are over the tokens that count.
#pragma once

#include <mpi_router/core/concepts.hpp>
#include <mpi_router/core/gating_options.hpp>

#include <span>

MPIROUTER_BEGIN
namespace detail {

[[nodiscard]] inline bool counts(std::span<const status> statuses, index_t token) noexcept {
  return statuses.empty() || is_routed(statuses[static_cast<std::size_t>(token)]);
}

inline void check_mask(const char* what, std::span<const status> statuses, index_t num_tokens) {
  expect(statuses.empty() || static_cast<index_t>(statuses.size()) == num_tokens, what, ": ", statuses.size(),
         " statuses for ", num_tokens, " tokens");
}

/// f(entry, expert) for each entry t · K + k of the tokens that count.
template <class F>
void for_entries(std::span<const expert_id> experts, index_t top_k, std::span<const status> statuses,
                 const F& f) {
  const index_t tokens = static_cast<index_t>(experts.size()) / top_k;
  for (index_t token = 0; token < tokens; ++token) {
    for (index_t entry = token * top_k; counts(statuses, token) && entry < (token + 1) * top_k; ++entry) {
      f(entry, static_cast<index_t>(experts[static_cast<std::size_t>(entry)]));
    }
  }
}

/// Throws usage_error unless there are rows of K ids, all in [0, N) except those of tokens that do not count.
inline void check_ids(const char* what, std::span<const expert_id> experts, index_t top_k,
                      std::span<const status> statuses, index_t num_experts) {
  const auto size = static_cast<index_t>(experts.size());
  expect(top_k >= 1 && size % top_k == 0, what, ": ", size, " expert ids are not rows of ", top_k);
  check_mask(what, statuses, size / top_k);
  for_entries(experts, top_k, statuses, [&](index_t entry, index_t expert) {
    expect(expert >= 0 && expert < num_experts, what, ": token ", entry / top_k, " has expert ", expert,
           " of ", num_experts);
  });
}

/// The same, for T tokens.
inline void check_ids(const char* what, std::span<const expert_id> experts, index_t top_k,
                      std::span<const status> statuses, index_t num_tokens, index_t num_experts) {
  expect(static_cast<index_t>(experts.size()) == num_tokens * top_k, what, ": ", experts.size(),
         " expert ids, not T · K = ", num_tokens, " · ", top_k);
  check_ids(what, experts, top_k, statuses, num_experts);
}

}  // namespace detail
MPIROUTER_END
