// How many tokens each expert gets: counts, MaxVio, entropy, and the bias that evens them out without a loss.
#pragma once

#include <mpi_router/core/concepts.hpp>
#include <mpi_router/router/gating_options.hpp>
#include <mpi_router/router/statistics.hpp>

#include <cmath>
#include <span>

MPIROUTER_BEGIN
namespace detail {

inline void expect_experts(const char* what, std::span<const expert_id> experts, index_t top_k,
                           std::span<const status> statuses) {
  const auto count = static_cast<index_t>(experts.size());
  expect(top_k >= 1 && count % top_k == 0, what, ": ", count, " expert ids are not rows of ", top_k);
  expect(statuses.empty() || static_cast<index_t>(statuses.size()) == count / top_k, what, ": ",
         statuses.size(), " statuses for ", count / top_k, " tokens");
}

/// Whether a token is not left out.
[[nodiscard]] inline bool counts(std::span<const status> statuses, index_t token) noexcept {
  return statuses.empty() || statuses[static_cast<std::size_t>(token)] == status::ok;
}

/// f(entry, expert) for each entry t · K + k of the tokens that are not left out.
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

/// Throws usage_error unless there are K ids for each of T tokens, all in [0, N) but those of tokens that are
/// left out.
inline void check_ids(const char* what, std::span<const expert_id> experts, index_t top_k,
                      std::span<const status> statuses, index_t num_tokens, index_t num_experts) {
  expect_experts(what, experts, top_k, statuses);
  expect(static_cast<index_t>(experts.size()) == num_tokens * top_k, what, ": ", experts.size(),
         " expert ids, not T · K = ", num_tokens, " · ", top_k);
  for_entries(experts, top_k, statuses, [&](index_t, index_t expert) {
    expect(expert >= 0 && expert < num_experts, what, ": expert ", expert, " of ", num_experts);
  });
}

}  // namespace detail

/// Adds to load[i] the number of times that expert i was chosen. experts: T · K ids, all in [0, N), N =
/// load.size(); statuses: T, tokens that are not ok count for nothing, or empty. Loads of batches, threads
/// and ranks add up.
inline void count_load(std::span<const expert_id> experts, index_t top_k, std::span<const status> statuses,
                       std::span<index_t> load) {
  detail::expect_experts("count_load", experts, top_k, statuses);
  detail::for_entries(experts, top_k, statuses, [&](index_t, index_t expert) {
    detail::expect(expert >= 0 && expert < static_cast<index_t>(load.size()), "count_load: expert ", expert,
                   " of ", load.size());
    ++load[static_cast<std::size_t>(expert)];
  });
}

/// Mean of a load.
[[nodiscard]] inline double mean_load(std::span<const index_t> load) noexcept {
  double sum = 0;
  for (const index_t count : load) {
    sum += static_cast<double>(count);
  }
  return load.empty() ? 0 : sum / static_cast<double>(load.size());
}

/// MaxVio = max load / mean load − 1: 0 for even loads, N/K − 1 if every token goes to the same K experts. Of
/// one batch or, from loads summed over a set, global. 0 where nothing was routed.
[[nodiscard]] inline double max_violation(std::span<const index_t> load) noexcept {
  const double mean = mean_load(load);
  double largest = 0;
  for (const index_t count : load) {
    largest = std::max(largest, static_cast<double>(count));
  }
  return mean > 0 ? largest / mean - 1 : 0;
}

/// Entropy of the load in nats, −Σ p log p with p = load / Σ load; log N for even loads.
[[nodiscard]] inline double load_entropy(std::span<const index_t> load) noexcept {
  const double total = mean_load(load) * static_cast<double>(load.size());
  double entropy = 0;
  for (const index_t count : load) {
    if (count > 0) {
      const double p = static_cast<double>(count) / total;
      entropy -= p * std::log(p);
    }
  }
  return entropy;
}

MPIROUTER_END

MPIROUTER_BEGIN_TYPES

/// Loads over time: MaxVio and entropy of each batch as running statistics, and the summed loads for the
/// global ones. The N counts are the caller's and start at zero (or where an earlier tracker left them).
class load_tracker {
 public:
  MPIROUTER_ALWAYS_INLINE explicit load_tracker(std::span<index_t> total) : total_(total) {}

  MPIROUTER_ALWAYS_INLINE void add(std::span<const index_t> batch) {
    sum(batch);
    violation_.add(max_violation(batch));
    entropy_.add(load_entropy(batch));
  }
  /// The batches that another thread or rank has seen.
  MPIROUTER_ALWAYS_INLINE void merge(const load_tracker& other) {
    sum(other.total_);
    violation_.merge(other.violation_);
    entropy_.merge(other.entropy_);
  }

  /// MaxVio of the batches; its mean is MaxVio_batch.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE const running_statistics& batch_violation() const noexcept {
    return violation_;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE const running_statistics& batch_entropy() const noexcept {
    return entropy_;
  }
  /// MaxVio_global: of all tokens seen.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE double global_violation() const noexcept {
    return max_violation(total_);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE double global_entropy() const noexcept {
    return load_entropy(total_);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE std::span<const index_t> total() const noexcept { return total_; }

 private:
  MPIROUTER_ALWAYS_INLINE void sum(std::span<const index_t> load) {
    core::expect(load.size() == total_.size(), "load_tracker: loads of ", load.size(), " and ", total_.size(),
                 " experts");
    for (std::size_t i = 0; i < load.size(); ++i) {
      total_[i] += load[i];
    }
  }

  std::span<index_t> total_;
  running_statistics violation_;
  running_statistics entropy_;
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// Balancing without a loss (Wang et al. 2024, DeepSeek-V3): bias_i += rate · sign(mean load − load_i). Call
/// it once a step with the load of the whole batch, summed over ranks. No gradient: the bias only selects.
template <Accumulator S>
void update_expert_bias(std::span<const index_t> load, std::type_identity_t<S> rate,
                        const vector_view<S>& bias) {
  detail::expect(static_cast<index_t>(load.size()) == bias.size(), "update_expert_bias: loads of ",
                 load.size(), " experts, biases of ", bias.size());
  const double mean = mean_load(load);
  for (index_t i = 0; i < bias.size(); ++i) {
    const double lacking = mean - static_cast<double>(load[static_cast<std::size_t>(i)]);
    bias[i] += lacking > 0 ? rate : lacking < 0 ? -rate : S{0};
  }
}

MPIROUTER_END
