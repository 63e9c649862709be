// Parts of experts as ranks hold them, in memory of their own.
#pragma once

#include <mpi_router/distributed/shards.hpp>

#include <support/random.hpp>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace test_support {

using mpi_router::expert_shape;
using mpi_router::neuron_shard;

/// How the whole is cut into `ranks` parts: evenly; anywhere, some parts empty; all of it on the last rank.
enum class cut_kind : unsigned char { even, uneven, one };

[[nodiscard]] inline std::vector<index_t> cuts(cut_kind kind, index_t size, index_t ranks) {
  std::vector<index_t> at;
  random_source random(97);
  for (index_t rank = 0; rank <= ranks; ++rank) {
    const index_t even = size * rank / ranks;
    at.push_back(kind == cut_kind::even  ? even
                 : kind == cut_kind::one ? (rank == ranks ? size : 0)
                                         : random.integer(0, size));
  }
  if (kind == cut_kind::uneven) {
    at.front() = 0;
    at.back() = size;
    std::sort(at.begin(), at.end());
  }
  return at;
}

/// Kinds of shards of neurons.
enum class part_kind : unsigned char {
  experts,
  neurons,
  neurons_by_columns,
  fused_neurons,
  fused_rows,
  experts_and_neurons,
  flat_rows
};
inline constexpr part_kind all_part_kinds[] = {
    part_kind::experts,       part_kind::neurons,    part_kind::neurons_by_columns,
    part_kind::fused_neurons, part_kind::fused_rows, part_kind::experts_and_neurons,
    part_kind::flat_rows};

[[nodiscard]] inline std::string to_string(part_kind kind) {
  constexpr const char* names[] = {"experts",       "neurons",    "neurons_by_columns",
                                   "fused_neurons", "fused_rows", "experts_and_neurons",
                                   "flat_rows"};
  return names[static_cast<int>(kind)];
}

/// One rank's part of [N, F, D] in memory of its own. What is no weight of it is 7.
template <class T>
class owned_part {
 public:
  owned_part(part_kind kind, cut_kind cut, const expert_shape& whole, index_t rank, index_t ranks)
      : shard_(made(kind, cut, whole, rank, ranks)) {}
  owned_part(const owned_part&) = delete;
  owned_part& operator=(const owned_part&) = delete;

  [[nodiscard]] const neuron_shard<T>& shard() const { return shard_; }

  /// f(element, its place in [N, F, D]) for all that is here.
  template <class F>
  void for_each(const F& f) const {
    const auto& placement = shard_.placement();
    const auto [n, ffn_dim, d] = shard_.shape();
    for (index_t k = 0; k < placement.num_experts; ++k) {
      const index_t i = placement.first_expert + k;
      const auto run = placement.neurons(shard_.shape(), i);
      for (index_t row = 0; row < run.size(); ++row) {
        for (index_t c = 0; c < d; ++c) f(shard_[k](row, c), (i * ffn_dim + run.first + row) * d + c);
      }
    }
  }
  void fill_from(const std::vector<T>& whole) const {
    for_each([&](T& element, index_t at) { element = whole[static_cast<std::size_t>(at)]; });
  }

 private:
  T* memory(index_t size) {
    memory_.assign(static_cast<std::size_t>(size), mpi_router::narrow<T>(mpi_router::accumulator_t<T>{7}));
    return memory_.data();
  }
  neuron_shard<T> made(part_kind kind, cut_kind cut, const expert_shape& whole, index_t rank, index_t ranks) {
    const auto [n, f, d] = whole;
    const auto slice = [&](index_t size, index_t of, index_t among) {
      const auto at = cuts(cut, size, among);
      return std::pair(at[static_cast<std::size_t>(of)], at[static_cast<std::size_t>(of + 1)]);
    };
    switch (kind) {
      case part_kind::experts: {
        const auto [first, end] = slice(n, rank, ranks);
        const expert_shape local{end - first, f, d};
        return shard_of_experts(experts_nfd(memory((end - first) * f * d), local), first, n);
      }
      case part_kind::neurons: {
        const auto [first, end] = slice(f, rank, ranks);
        const expert_shape local{n, end - first, d};
        return shard_of_neurons(experts_nfd(memory(n * (end - first) * d), local), first, f);
      }
      case part_kind::neurons_by_columns: {
        const auto [first, end] = slice(f, rank, ranks);
        const expert_shape local{n, end - first, d};
        return shard_of_neurons(experts_ndf(memory(n * (end - first) * d), local), first, f);
      }
      case part_kind::fused_neurons: {
        const auto [first, end] = slice(f, rank, ranks);
        const expert_shape local{n, end - first, d};
        return shard_of_neurons(experts_n2fd_concatenated(memory(2 * n * (end - first) * d), local), first,
                                f);
      }
      case part_kind::fused_rows: {
        const auto [first, end] = slice(2 * f, rank, ranks);
        return shard_of_fused_rows(memory(n * (end - first) * d), first, end - first, whole,
                                   mpi_router::fused_half::up);
      }
      case part_kind::experts_and_neurons: {
        const index_t pairs = ranks % 2 == 0 ? 2 : 1;
        const auto [first, end] = slice(n, rank / pairs, ranks / pairs);
        const auto [from, to] = slice(f, rank % pairs, pairs);
        const expert_shape local{end - first, to - from, d};
        return shard_of_experts_and_neurons(experts_nfd(memory((end - first) * (to - from) * d), local),
                                            first, from, whole);
      }
      case part_kind::flat_rows: break;
    }
    const auto [first, end] = slice(n * f, rank, ranks);
    return shard_of_rows(mpi_router::row_major(memory((end - first) * d), end - first, d), first, whole);
  }

  std::vector<T> memory_;
  neuron_shard<T> shard_;
};

}  // namespace test_support
