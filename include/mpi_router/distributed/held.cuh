// What a rank on a GPU has of a layer's experts: neurons of all of them, or a shard by name, as batches that
// a step can take at once.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/cuda/types.hpp>
#include <mpi_router/distributed/decoded_shard.hpp>
#include <mpi_router/distributed/shards.hpp>

#include <array>

MPIROUTER_CUDA_DETAIL_BEGIN

/// What is given for the experts of a layer: a shard, or where T is a storage type a view of neurons of all
/// of them.
template <class T>
struct held {
  using type = T;
  using element = typename T::element_type;
};
template <Scalar T>
struct held<T> {
  using type = expert_batch_view<T, device_space>;
  using element = T;
};
template <class T>
using held_t = typename held<T>::type;

/// Of a backward whose weights are decoded as they are read: the gradient to them in factors.
template <>
struct held<gradient_factors> {
  using type = gradient_factors;
};

template <class>
inline constexpr bool is_decoded = false;
template <class Experts>
inline constexpr bool is_decoded<decoded_shard<Experts>> = true;
template <class>
inline constexpr bool is_columns = false;
template <class T>
inline constexpr bool is_columns<column_shard<T, device_space>> = true;

/// Extents of the experts of all ranks together (F of a view: that of this rank), and N of C′/√N.
template <class Held>
[[nodiscard]] const expert_shape& shape_of(const Held& experts) {
  return experts.shape();
}
template <class Held>
[[nodiscard]] index_t total_experts(const Held& experts) {
  if constexpr (requires { experts.total_experts(); }) {
    return experts.total_experts();
  } else {
    return experts.shape().num_experts;
  }
}

/// Which experts, or columns, a rank has a part of. Ranks send it with their parts.
struct rank_place {
  int first;
  int count;
};
static_assert(sizeof(rank_place) == sizeof(double));

/// A view of neurons says nothing of where they lie: every rank has a part of every expert.
template <class Held>
inline constexpr bool has_place = !requires(const Held& experts) { experts.total_experts(); };

template <class Held>
[[nodiscard]] rank_place place_of(const Held& experts) {
  if constexpr (!has_place<Held>) {
    return {0, static_cast<int>(experts.num_experts())};
  } else {
    const shard_placement& p = experts.placement();
    return p.kind == shard_placement::form::columns
               ? rank_place{static_cast<int>(p.first_neuron), static_cast<int>(p.end_neuron - p.first_neuron)}
               : rank_place{static_cast<int>(p.first_expert), static_cast<int>(p.num_experts)};
  }
}

/// Neurons, equally many of each expert from `first` of the layer on, which is the `slot`th that the rank has
/// a part of.
template <class T>
struct neuron_batch {
  expert_batch_view<T, device_space> experts;
  index_t first = 0;
  index_t slot = 0;
};

/// All that a rank has: one batch; of a run of rows up to three, a part of an expert, whole ones, a part.
template <class T>
class neuron_batches {
 public:
  explicit neuron_batches(const expert_batch_view<T, device_space>& experts) { add(experts, 0, 0); }
  explicit neuron_batches(const neuron_shard<T, device_space>& shard) {
    const shard_placement& where = shard.placement();
    if (where.kind == shard_placement::form::neurons) {
      if (where.num_experts > 0) add(shard.local(), where.first_expert, 0);
      return;
    }
    for (index_t k = 0; k < where.num_experts;) {
      const index_t same = alike(shard, k);
      add(rows_of(shard, k, same), where.first_expert + k, k);
      k += same;
    }
  }

  [[nodiscard]] const neuron_batch<T>* begin() const { return batches_.data(); }
  [[nodiscard]] const neuron_batch<T>* end() const { return batches_.data() + count_; }
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] const neuron_batch<T>& operator[](index_t i) const {
    return batches_[static_cast<std::size_t>(i)];
  }

 private:
  void add(const expert_batch_view<T, device_space>& experts, index_t first, index_t slot) {
    batches_[count_++] = {experts, first, slot};
  }
  /// How many experts from the k-th on are here as the k-th is: whole, or it alone.
  [[nodiscard]] static index_t alike(const neuron_shard<T, device_space>& shard, index_t k) {
    const shard_placement& where = shard.placement();
    const auto is_whole = [&](index_t i) {
      return where.neurons(shard.shape(), where.first_expert + i).size() == shard.shape().ffn_dim;
    };
    index_t end = k + 1;
    while (is_whole(k) && end < where.num_experts && is_whole(end)) ++end;
    return end - k;
  }
  [[nodiscard]] static expert_batch_view<T, device_space> rows_of(const neuron_shard<T, device_space>& shard,
                                                                  index_t k, index_t count) {
    const auto first = shard[k];
    const expert_shape shape{count, first.rows(), first.cols()};
    return {first.data(), shape, {first.rows() * first.row_stride(), first.row_stride(), first.col_stride()}};
  }

  std::array<neuron_batch<T>, 3> batches_{};
  std::size_t count_ = 0;
};
/// The experts of a decoded shard, which are one batch.
template <class Experts>
class neuron_batches<decoded_shard<Experts>> {
 public:
  struct batch {
    Experts experts;
    index_t first;
    index_t slot;
  };
  explicit neuron_batches(const decoded_shard<Experts>& shard)
      : batch_{shard.local(), shard.placement().first_expert, 0},
        count_(shard.placement().num_experts > 0 ? 1 : 0) {}

  [[nodiscard]] const batch* begin() const { return &batch_; }
  [[nodiscard]] const batch* end() const { return &batch_ + count_; }
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] const batch& operator[](index_t) const { return batch_; }

 private:
  batch batch_;
  std::size_t count_;
};
template <class Experts>
neuron_batches(decoded_shard<Experts>) -> neuron_batches<decoded_shard<Experts>>;
template <class T>
neuron_batches(expert_batch_view<T, device_space>) -> neuron_batches<T>;
template <class T>
neuron_batches(neuron_shard<T, device_space>) -> neuron_batches<T>;

/// use(view) for what lies in memory at once.
template <class Held, class Use>
void for_each_view(const Held& experts, const Use& use) {
  if constexpr (is_columns<Held>) {
    use(experts.local());
  } else {
    for (const auto& batch : neuron_batches(experts)) {
      use(batch.experts);
    }
  }
}

MPIROUTER_CUDA_DETAIL_END
