// Which part of the experts a rank has, by name: whole experts, neurons of each, a run of rows of the flat
// [N·F, D], columns of each.
#pragma once

#include <mpi_router/core/concepts.hpp>
#include <mpi_router/core/experts.hpp>

#include <algorithm>
#include <type_traits>
#include <utility>

MPIROUTER_BEGIN_TYPES

/// The neurons [first, end) of an expert.
struct neuron_run {
  index_t first = 0;
  index_t end = 0;
  [[nodiscard]] constexpr index_t size() const noexcept { return end - first; }
};

/// Where in [N, F, D] a rank's part lies: five numbers, which the ranks tell each other. Built by named
/// functions, which throw usage_error on what lies outside.
struct shard_placement {
  /// How the five numbers are read.
  enum class form : unsigned char {
    neurons,  ///< the neurons [first_neuron, end_neuron) of each expert from first_expert on
    rows,     ///< rows of [N·F, D]: from first_neuron of the first expert to end_neuron of the last
    columns   ///< the columns [first_neuron, end_neuron) of every neuron
  };
  index_t first_expert = 0;
  index_t num_experts = 0;  ///< that the rank has a part of; 0 where it has nothing
  index_t first_neuron = 0;
  index_t end_neuron = 0;
  form kind = form::neurons;

  /// `neurons` of each of num_experts experts.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr shard_placement neurons_of(const expert_shape& whole,
                                                                                    index_t first_expert,
                                                                                    index_t num_experts,
                                                                                    index_t first_neuron,
                                                                                    index_t neurons) {
    core::expect(first_expert >= 0 && num_experts >= 0 && first_expert <= whole.num_experts - num_experts,
                 "shard: ", num_experts, " experts from ", first_expert, " on, of ", whole.num_experts);
    core::expect(first_neuron >= 0 && neurons >= 0 && first_neuron <= whole.ffn_dim - neurons,
                 "shard: ", neurons, " neurons from ", first_neuron, " on, of ", whole.ffn_dim);
    return {first_expert, neurons > 0 ? num_experts : 0, first_neuron, first_neuron + neurons, form::neurons};
  }
  /// `count` rows of [N·F, D].
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr shard_placement rows_of(const expert_shape& whole,
                                                                                 index_t first,
                                                                                 index_t count) {
    const auto [n, f, d] = whole;
    core::expect(first >= 0 && count >= 0 && first <= n * f - count, "shard: ", count, " rows from ", first,
                 " on, of ", n * f);
    if (count == 0) return {};
    const index_t expert = first / f;
    const index_t last = (first + count - 1) / f;
    return {expert, last - expert + 1, first % f, first + count - last * f, form::rows};
  }
  /// `count` columns of every neuron.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr shard_placement columns_of(const expert_shape& whole,
                                                                                    index_t first,
                                                                                    index_t count) {
    core::expect(first >= 0 && count >= 0 && first <= whole.hidden_dim - count, "shard: ", count,
                 " columns from ", first, " on, of ", whole.hidden_dim);
    return {0, whole.num_experts, first, first + count, form::columns};
  }

  /// The neurons of an expert that are here; none of an expert that is not.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr neuron_run neurons(const expert_shape& whole,
                                                                     index_t expert) const noexcept {
    const index_t k = expert - first_expert;
    if (k < 0 || k >= num_experts) return {};
    if (kind == form::neurons) return {first_neuron, end_neuron};
    return {k == 0 ? first_neuron : 0, k == num_experts - 1 ? end_neuron : whole.ffn_dim};
  }
  /// How many experts from the k-th of the placement on are here as that is: whole ones, or it alone.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t alike(const expert_shape& whole,
                                                                index_t k) const noexcept {
    const auto is_whole = [&](index_t i) { return neurons(whole, first_expert + i).size() == whole.ffn_dim; };
    index_t end = k + 1;
    while (is_whole(k) && end < num_experts && is_whole(end)) ++end;
    return end - k;
  }
  /// The most neurons of any expert that are here.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t most_neurons(
      const expert_shape& whole) const noexcept {
    index_t most = 0;
    for (index_t i = first_expert; i < first_expert + num_experts; ++i) {
      most = std::max(most, neurons(whole, i).size());
    }
    return most;
  }
  friend constexpr bool operator==(const shard_placement&, const shard_placement&) = default;
};

/// A rank's neurons of dense experts, where they lie, in memory of the host or of a GPU. Build it with the
/// functions below.
template <Scalar T, class Space = host_space>
class neuron_shard {
 public:
  using element_type = T;
  using space = Space;

  MPIROUTER_ALWAYS_INLINE constexpr neuron_shard(const expert_batch_view<T, Space>& local,
                                                 const expert_shape& whole, const shard_placement& placement)
      : whole_(whole), placement_(placement), local_(local) {}
  MPIROUTER_ALWAYS_INLINE constexpr neuron_shard(const matrix_view<T, Space>& rows, const expert_shape& whole,
                                                 const shard_placement& placement)
      : whole_(whole), placement_(placement), rows_(rows) {}
  /// A view of const elements from one of mutable elements.
  template <class U>
    requires(std::is_const_v<T> && std::same_as<U, std::remove_const_t<T>>)
  MPIROUTER_ALWAYS_INLINE constexpr neuron_shard(const neuron_shard<U, Space>& other)
      : whole_(other.shape()), placement_(other.placement()), local_(other.local()), rows_(other.rows()) {}

  /// Extents of the experts of all ranks together.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr const expert_shape& shape() const noexcept {
    return whole_;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr const shard_placement& placement() const noexcept {
    return placement_;
  }
  /// What is here of the k-th expert that something is here of, [its neurons here, D].
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr matrix_view<T, Space> operator[](index_t k) const {
    if (placement_.kind == shard_placement::form::neurons) return local_[k];
    const neuron_run here = placement_.neurons(whole_, placement_.first_expert + k);
    const index_t before = k * whole_.ffn_dim - (k == 0 ? 0 : placement_.first_neuron);
    return rows_.middle_rows(before, here.size());
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr const expert_batch_view<T, Space>& local() const noexcept {
    return local_;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr const matrix_view<T, Space>& rows() const noexcept {
    return rows_;
  }

 private:
  expert_shape whole_;
  shard_placement placement_;
  expert_batch_view<T, Space> local_;
  matrix_view<T, Space> rows_;
};

/// Expert parallelism: `local` are the experts first … of `num_experts` in all. None is allowed.
template <Scalar T, class Space>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr neuron_shard<T, Space> shard_of_experts(
    const expert_batch_view<T, Space>& local, index_t first, index_t num_experts) {
  const auto [n, f, d] = local.shape();
  const expert_shape whole{num_experts, f, d};
  return {local, whole, shard_placement::neurons_of(whole, first, n, 0, f)};
}

/// Tensor parallelism: `local` [N, F of this rank, D] are the neurons first … of each expert, which has
/// `ffn_dim` in all. Where gate and up are fused on each rank, [gate_s; up_s], as in Megatron-Core, the view
/// of the gate half is the local one, experts_n2fd_concatenated(data, {N, F of this rank, D}).
template <Scalar T, class Space>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr neuron_shard<T, Space> shard_of_neurons(
    const expert_batch_view<T, Space>& local, index_t first, index_t ffn_dim) {
  const auto [n, f, d] = local.shape();
  const expert_shape whole{n, ffn_dim, d};
  return {local, whole, shard_placement::neurons_of(whole, 0, n, first, f)};
}

/// Both at once (ETP): the neurons first_neuron … of the experts first_expert …, of [N, F, D] = whole.
template <Scalar T, class Space>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr neuron_shard<T, Space> shard_of_experts_and_neurons(
    const expert_batch_view<T, Space>& local, index_t first_expert, index_t first_neuron,
    const expert_shape& whole) {
  const auto [n, f, d] = local.shape();
  core::expect(d == whole.hidden_dim, "shard: experts with D = ", d,
               ", of a whole with D = ", whole.hidden_dim);
  return {local, whole, shard_placement::neurons_of(whole, first_expert, n, first_neuron, f)};
}

/// A slice of the 2F rows of each expert of [N, 2F, D], gate rows before up rows, cut without regard to where
/// the gate rows end: `data` holds the rows first … first + count of each of the N experts. Some ranks have
/// none of a half. `whole` is [N, F, D].
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr neuron_shard<T, Space> shard_of_fused_rows(
    T* data, index_t first, index_t count, const expert_shape& whole, fused_half half = fused_half::gate) {
  const auto [n, f, d] = whole;
  core::expect(first >= 0 && count >= 0 && first <= 2 * f - count, "shard: ", count, " rows from ", first,
               " on, of 2F = ", 2 * f);
  const index_t start = core::start_of(half, f);
  const index_t from = std::clamp(first, start, start + f);
  const index_t to = std::clamp(first + count, start, start + f);
  T* const at = data == nullptr || to == from ? data : data + (from - first) * d;
  const expert_batch_view<T, Space> local(at, {n, to - from, d},
                                          {.expert = count * d, .ffn = d, .hidden = 1});
  return {local, whole, shard_placement::neurons_of(whole, 0, n, from - start, to - from)};
}

/// A run of rows of the flat [N·F, D] that begins and ends anywhere (FSDP, MegaBlocks): `rows` are those from
/// `first` on.
template <Scalar T, class Space>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr neuron_shard<T, Space> shard_of_rows(
    const matrix_view<T, Space>& rows, index_t first, const expert_shape& whole) {
  core::expect(rows.rows() == 0 || rows.cols() == whole.hidden_dim, "shard: rows of ", rows.cols(),
               " elements, of a whole with D = ", whole.hidden_dim);
  shard_placement placement = shard_placement::rows_of(whole, first, rows.rows());
  placement.kind = shard_placement::form::rows;
  return {rows, whole, placement};
}

/// A rank's neurons of experts that are operators of any kind: operators(k) is what is here of the k-th
/// expert of the placement. Build it with operator_shard().
template <GramOperators Operators>
struct operators_shard {
  Operators operators;
  expert_shape whole;
  shard_placement where;
  [[nodiscard]] constexpr const expert_shape& shape() const noexcept { return whole; }
  [[nodiscard]] constexpr const shard_placement& placement() const noexcept { return where; }
};

/// The neurons that `where` says, by operators in place of a view.
template <GramOperators Operators>
[[nodiscard]] constexpr operators_shard<Operators> operator_shard(Operators operators,
                                                                  const shard_placement& where,
                                                                  const expert_shape& whole) {
  core::expect(where.kind != shard_placement::form::columns, "operator_shard: columns are column_shard()'s");
  return {std::move(operators), whole, where};
}

/// A rank's columns of all experts. Build it with shard_of_columns().
template <Scalar T, class Space = host_space>
class column_shard {
 public:
  using element_type = T;
  using space = Space;
  MPIROUTER_ALWAYS_INLINE constexpr column_shard(const expert_batch_view<T, Space>& local, index_t first,
                                                 index_t hidden_dim)
      : whole_{local.num_experts(), local.ffn_dim(), hidden_dim},
        placement_(shard_placement::columns_of(whole_, first, local.hidden_dim())),
        local_(local) {}
  /// A view of const elements from one of mutable elements.
  template <class U>
    requires(std::is_const_v<T> && std::same_as<U, std::remove_const_t<T>>)
  MPIROUTER_ALWAYS_INLINE constexpr column_shard(const column_shard<U, Space>& other)
      : whole_(other.shape()), placement_(other.placement()), local_(other.local()) {}

  /// Extents of the experts of all ranks together.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr const expert_shape& shape() const noexcept {
    return whole_;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr const shard_placement& placement() const noexcept {
    return placement_;
  }
  /// The columns of expert i that are here, [F, columns].
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr matrix_view<T, Space> operator[](index_t i) const {
    return local_[i];
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr const expert_batch_view<T, Space>& local() const noexcept {
    return local_;
  }

 private:
  expert_shape whole_;
  shard_placement placement_;
  expert_batch_view<T, Space> local_;
};

/// Sharding of the hidden dimension: `local` [N, F, columns of this rank] are the columns first … of
/// `hidden_dim`.
template <Scalar T, class Space>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr column_shard<T, Space> shard_of_columns(
    const expert_batch_view<T, Space>& local, index_t first, index_t hidden_dim) {
  return {local, first, hidden_dim};
}

/// A rank's columns of experts that are operators: operators(i) has as many dimensions as there are columns
/// here, and shows its factor. Build it with operator_columns().
template <FactoredGramOperators Operators>
struct operators_columns {
  Operators operators;
  expert_shape whole;
  shard_placement where;
  [[nodiscard]] constexpr const expert_shape& shape() const noexcept { return whole; }
  [[nodiscard]] constexpr const shard_placement& placement() const noexcept { return where; }
};

/// The columns first … first + count, by operators that show their factor in place of a view.
template <FactoredGramOperators Operators>
[[nodiscard]] constexpr operators_columns<Operators> operator_columns(Operators operators, index_t first,
                                                                      index_t count,
                                                                      const expert_shape& whole) {
  return {std::move(operators), whole, shard_placement::columns_of(whole, first, count)};
}

MPIROUTER_END_TYPES
