// How many tokens each expert gets: counts, MaxVio, entropy, and the bias that evens them out without a loss.
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/router/mask.hpp>
#include <mpi_router/router/statistics.hpp>

#include <cmath>
#include <span>

MPIROUTER_BEGIN

/// Adds to load[i] the number of times that expert i was chosen. experts: T · K ids, all in [0, N), N =
/// load.size(); statuses: T, tokens that these leave out count for nothing (router/mask.hpp), or empty. A
/// place that a closed expert fills counts. Loads of batches, threads and ranks add up. Throws usage_error on
/// sizes and ids, before anything is written.
inline void count_load(std::span<const expert_id> experts, index_t top_k, std::span<const status> statuses,
                       std::span<index_t> load) {
  detail::check_ids("count_load", experts, top_k, statuses, static_cast<index_t>(load.size()));
  detail::expect_apart(
      "count_load", {"the load", detail::addresses_of(load)},
      {{"the expert ids", detail::addresses_of(experts)}, {"the statuses", detail::addresses_of(statuses)}});
  detail::for_entries(experts, top_k, statuses,
                      [&](index_t, index_t expert) { ++load[static_cast<std::size_t>(expert)]; });
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

/// What update_expert_bias does with the mean of the biases.
enum class bias_mean : unsigned char {
  zero,  ///< shifts all biases so that their mean is 0
  free   ///< lets it drift, as the sum of what was added
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// Balancing without a loss (Wang et al. 2024, DeepSeek-V3): bias_i += rate · sign(mean load − load_i), then,
/// unless told otherwise, bias_i −= their mean: a shift that all experts share changes no selection, and
/// without it one hot expert lets the others rise without bound. The mean is taken anew in each call, in
/// double, so that rounding does not add up. Experts that are closed (a bias of −∞), or forced (+∞), take no
/// part: their bias stays, and means are over the others. Nothing changes where nothing was routed.
///
/// Call it once a step with the load of the whole batch, summed over ranks. No gradient: the bias only
/// selects. rate: finite, not negative. Throws usage_error, before anything is written.
template <Accumulator S>
void update_expert_bias(std::span<const index_t> load, std::type_identity_t<S> rate,
                        const vector_view<S>& bias, bias_mean mean = bias_mean::zero) {
  detail::expect(static_cast<index_t>(load.size()) == bias.size(), "update_expert_bias: loads of ",
                 load.size(), " experts, biases of ", bias.size());
  detail::expect(is_finite(rate) && rate >= S{0}, "update_expert_bias: the rate is ", rate,
                 ", not finite and at least 0");
  const auto average = [&bias](const auto& value) {  // of value(i) over the experts that take part
    double sum = 0;
    double count = 0;
    for (index_t i = 0; i < bias.size(); ++i) {
      if (is_finite(bias[i])) {
        sum += static_cast<double>(value(i));
        count += 1;
      }
    }
    return count > 0 ? sum / count : 0.0;
  };
  const auto load_of = [load](index_t i) { return static_cast<double>(load[static_cast<std::size_t>(i)]); };
  const double mean_of_loads = average(load_of);
  const auto moved = [&](index_t i) {
    const double lacking = mean_of_loads - load_of(i);
    return bias[i] + (lacking > 0 ? rate : lacking < 0 ? -rate : S{0});
  };
  const double shift = mean == bias_mean::zero && mean_of_loads > 0 ? average(moved) : 0.0;
  for (index_t i = 0; i < bias.size(); ++i) {
    if (is_finite(bias[i])) {
      bias[i] = static_cast<S>(moved(i) - shift);
    }
  }
}

MPIROUTER_END
