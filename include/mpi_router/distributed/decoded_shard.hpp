// What a rank has of experts that its GPU decodes as they are read.
#pragma once

#include <mpi_router/core/error.hpp>
#include <mpi_router/distributed/shards.hpp>

#include <type_traits>
#include <utility>

MPIROUTER_BEGIN_TYPES
namespace cuda {

namespace detail {

/// Throws usage_error where a part of `count` neurons, or columns, begins within a block of `together` that
/// share scales and goes beyond it: its own blocks would be others.
inline void expect_whole_blocks(const char* name, const char* what, index_t first, index_t count,
                                index_t together) {
  const index_t within = together > 0 ? first % together : 0;
  core::expect(count == 0 || within == 0 || within + count <= together, name, ": ", count, " ", what,
               " from ", first, " on, where each ", together, " share scales");
}

}  // namespace detail

/// A rank's neurons of experts that are decoded as they are read (cuda/decoded_experts.cuh). Build it with
/// decoded_neurons().
template <class Experts>
class decoded_shard {
 public:
  using element_type = const float;  // what they are decoded to

  decoded_shard(Experts local, const shard_placement& where, const expert_shape& whole)
      : local_(std::move(local)), where_(where), whole_(whole) {}
  /// Extents of the experts of all ranks together.
  [[nodiscard]] const expert_shape& shape() const noexcept { return whole_; }
  [[nodiscard]] const shard_placement& placement() const noexcept { return where_; }
  /// What is here: [experts of the placement, their neurons here, D].
  [[nodiscard]] const Experts& local() const noexcept { return local_; }

 private:
  Experts local_;
  shard_placement where_;
  expert_shape whole_;
};

/// Whole experts, slices of neurons, or both: `local` are the neurons first_neuron … of the experts
/// first_expert …, of [N, F, D] = whole. None is allowed. Throws usage_error on what lies outside, and on
/// packed experts of which a part begins within rows that share scales and goes beyond them.
///
///   cuda::decoded_neurons(cuda::packed_experts(mine, 16, bytes, scale_bytes), 16 * rank, 0, {64, 768, 2048})
template <class Experts>
[[nodiscard]] decoded_shard<Experts> decoded_neurons(Experts local, index_t first_expert,
                                                     index_t first_neuron, const expert_shape& whole) {
  const auto [n, f, d] = local.shape();
  core::expect(d == whole.hidden_dim, "cuda::decoded_neurons: experts with D = ", d,
               ", of a whole with D = ", whole.hidden_dim);
  if constexpr (requires { local.rows().block_rows(); }) {
    detail::expect_whole_blocks("cuda::decoded_neurons", "neurons", first_neuron, f,
                                local.rows().block_rows());
  }
  return {std::move(local), shard_placement::neurons_of(whole, first_expert, n, first_neuron, f), whole};
}

/// A rank's run of rows of the flat [N·F, D] of such experts. Build it with decoded_row_run().
template <class Part>
class decoded_run_shard {
 public:
  using element_type = const float;
  using experts_type = std::invoke_result_t<const Part&, index_t, const expert_shape&>;

  decoded_run_shard(Part part, const shard_placement& where, const expert_shape& whole)
      : part_(std::move(part)), where_(where), whole_(whole) {}
  /// Extents of the experts of all ranks together.
  [[nodiscard]] const expert_shape& shape() const noexcept { return whole_; }
  [[nodiscard]] const shard_placement& placement() const noexcept { return where_; }
  /// What is here of the k-th expert that something is here of, and of those after it that are whole as it
  /// is.
  [[nodiscard]] experts_type from(index_t k) const {
    const expert_shape here{where_.alike(whole_, k), where_.neurons(whole_, where_.first_expert + k).size(),
                            whole_.hidden_dim};
    experts_type experts = part_(k, here);
    const auto [n, f, d] = experts.shape();
    core::expect(experts.shape() == here, "cuda::decoded_row_run: experts [", n, ", ", f, ", ", d, "] from ",
                 k, " on, where [", here.num_experts, ", ", here.ffn_dim, ", ", here.hidden_dim,
                 "] are here");
    return experts;
  }
  /// Rows of the run before it.
  [[nodiscard]] index_t rows_before(index_t k) const noexcept {
    return k * whole_.ffn_dim - (k == 0 ? 0 : where_.first_neuron);
  }

 private:
  Part part_;
  shard_placement where_;
  expert_shape whole_;
};

/// `count` rows of the flat [N·F, D] from `first` on, which begin and end anywhere (FSDP, MegaBlocks), of
/// experts of any kind: part(k, {n, f, D}) are n of them, decoded_experts, from the k-th that something is
/// here of on, f neurons of each, the first that are here. It is called on the host, up to three times a call
/// of the step: for the rest of an expert, whole ones, and the beginning of one. None is allowed. Throws
/// usage_error on what lies outside. Packed rows: packed_row_run() of distributed/packed_run.cuh.
template <class Part>
[[nodiscard]] decoded_run_shard<Part> decoded_row_run(Part part, index_t first, index_t count,
                                                      const expert_shape& whole) {
  shard_placement where = shard_placement::rows_of(whole, first, count);
  where.kind = shard_placement::form::rows;
  return {std::move(part), where, whole};
}

/// A rank's columns of all of such experts. Build it with decoded_column_slice().
template <class Experts>
class decoded_column_shard {
 public:
  using element_type = const float;

  decoded_column_shard(Experts local, index_t first, index_t hidden_dim)
      : local_(std::move(local)),
        whole_{local_.num_experts(), local_.ffn_dim(), hidden_dim},
        where_(shard_placement::columns_of(whole_, first, local_.hidden_dim())) {}
  /// Extents of the experts of all ranks together.
  [[nodiscard]] const expert_shape& shape() const noexcept { return whole_; }
  [[nodiscard]] const shard_placement& placement() const noexcept { return where_; }
  /// What is here: [N, F, columns here].
  [[nodiscard]] const Experts& local() const noexcept { return local_; }

 private:
  Experts local_;
  expert_shape whole_;
  shard_placement where_;
};

/// Sharding of the hidden dimension: `local` [N, F, columns of this rank] are the columns first … of
/// `hidden_dim`. None is allowed. Throws usage_error on what lies outside, and on packed experts of which a
/// part begins within columns that share scales (FP8: block_cols, that of the whole; 32 of MXFP4 and Q8_0,
/// 256 of Q4_K) and goes beyond them.
template <class Experts>
[[nodiscard]] decoded_column_shard<Experts> decoded_column_slice(Experts local, index_t first,
                                                                 index_t hidden_dim) {
  if constexpr (requires { local.rows().block_cols(); }) {
    detail::expect_whole_blocks("cuda::decoded_column_slice", "columns", first, local.hidden_dim(),
                                local.rows().block_cols());
  }
  return {std::move(local), first, hidden_dim};
}

}  // namespace cuda
MPIROUTER_END_TYPES
