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
template <class Part>
inline constexpr bool is_decoded<decoded_run_shard<Part>> = true;
template <class Experts>
inline constexpr bool is_decoded<decoded_column_shard<Experts>> = true;
template <class>
inline constexpr bool is_columns = false;
template <class T>
inline constexpr bool is_columns<column_shard<T, device_space>> = true;
template <class Experts>
inline constexpr bool is_columns<decoded_column_shard<Experts>> = true;

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
      const index_t same = where.alike(shard.shape(), k);
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
  [[nodiscard]] static expert_batch_view<T, device_space> rows_of(const neuron_shard<T, device_space>& shard,
                                                                  index_t k, index_t count) {
    const auto first = shard[k];
    const expert_shape shape{count, first.rows(), first.cols()};
    return {first.data(), shape, {first.rows() * first.row_stride(), first.row_stride(), first.col_stride()}};
  }

  std::array<neuron_batch<T>, 3> batches_{};
  std::size_t count_ = 0;
};
/// The same of experts that are decoded as they are read, of whose rows here `row` come before.
template <class Experts>
struct decoded_batch {
  Experts experts;
  index_t first = 0;
  index_t slot = 0;
  index_t row = 0;
};
/// The experts of a decoded shard, which are one batch.
template <class Experts>
class neuron_batches<decoded_shard<Experts>> {
 public:
  using batch = decoded_batch<Experts>;
  explicit neuron_batches(const decoded_shard<Experts>& shard)
      : batch_{shard.local(), shard.placement().first_expert},
        count_(shard.placement().num_experts > 0 ? 1 : 0) {}

  [[nodiscard]] const batch* begin() const { return &batch_; }
  [[nodiscard]] const batch* end() const { return &batch_ + count_; }
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] const batch& operator[](index_t) const { return batch_; }

 private:
  batch batch_;
  std::size_t count_;
};
/// Those of a run of decoded rows, up to three batches, each made as it is looked at.
template <class Part>
class neuron_batches<decoded_run_shard<Part>> {
  using shard = decoded_run_shard<Part>;

 public:
  using batch = decoded_batch<typename shard::experts_type>;
  class iterator {
   public:
    iterator(const shard& of, index_t k) : of_(&of), k_(k) {}
    [[nodiscard]] batch operator*() const {
      return {of_->from(k_), of_->placement().first_expert + k_, k_, of_->rows_before(k_)};
    }
    iterator& operator++() {
      k_ += of_->placement().alike(of_->shape(), k_);
      return *this;
    }
    friend bool operator==(const iterator& a, const iterator& b) { return a.k_ == b.k_; }

   private:
    const shard* of_;
    index_t k_;
  };
  explicit neuron_batches(const shard& of) : shard_(of) {}

  [[nodiscard]] iterator begin() const { return {shard_, 0}; }
  [[nodiscard]] iterator end() const { return {shard_, shard_.placement().num_experts}; }

 private:
  const shard& shard_;
};
template <class Experts>
neuron_batches(decoded_shard<Experts>) -> neuron_batches<decoded_shard<Experts>>;
template <class Part>
neuron_batches(decoded_run_shard<Part>) -> neuron_batches<decoded_run_shard<Part>>;
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
