// What a rank has of experts that its GPU decodes as they are read.
#pragma once

#include <mpi_router/core/error.hpp>
#include <mpi_router/distributed/shards.hpp>

#include <utility>

MPIROUTER_BEGIN_TYPES
namespace cuda {

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
/// packed experts of which a part begins within rows that share scales.
///
///   cuda::decoded_neurons(cuda::packed_experts(mine, 16, bytes, scale_bytes), 16 * rank, 0, {64, 768, 2048})
template <class Experts>
[[nodiscard]] decoded_shard<Experts> decoded_neurons(Experts local, index_t first_expert,
                                                     index_t first_neuron, const expert_shape& whole) {
  const auto [n, f, d] = local.shape();
  core::expect(d == whole.hidden_dim, "cuda::decoded_neurons: experts with D = ", d,
               ", of a whole with D = ", whole.hidden_dim);
  if constexpr (requires { local.rows().block_rows(); }) {
    const index_t together = local.rows().block_rows();
    core::expect(f == 0 || together >= whole.ffn_dim || first_neuron % together == 0,
                 "cuda::decoded_neurons: neurons from ", first_neuron, " on, where each ", together,
                 " share scales");
  }
  return {std::move(local), shard_placement::neurons_of(whole, first_expert, n, first_neuron, f), whole};
}

}  // namespace cuda
MPIROUTER_END_TYPES
