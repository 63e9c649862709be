// The gradients that come for the rows, where every rank has tokens of its own: their sums over the ranks.
#pragma once

#include <mpi_router/cuda/detail/finish/launch.cuh>
#include <mpi_router/distributed/rank_message.cuh>
#include <mpi_router/distributed/tokens_of_rows.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Floats that a rank sends where its tokens are its own: the gradients of the rows of all layers.
template <class Layers>
[[nodiscard]] index_t upstream_size(const Layers& layers, tokens_of_rows tokens) {
  index_t floats = 0;
  if (tokens == tokens_of_rows::split_over_ranks) {
    for (const auto& layer : layers) {
      floats += layer.experts.shape().num_experts * rank_message::pitch_of(layer);
    }
  }
  return rank_message::whole_lines(floats);
}

template <class Images, class Layer>
void collect_rows(const context& ctx, const Layer& layer, const Images& images, const any_matrix& out,
                  const status* statuses, const any_matrix& instead) {
  const auto [n, f, d] = layer.experts.shape();
  if (n == 0) return;
  collect(ctx, n, collect_args<Images>{images, out, nullptr, statuses, instead, static_cast<int>(d)});
}

/// The gradients of the rows of each layer, summed over the ranks if there is anything to sum: use(layer,
/// ḡ).
template <class Layers>
class upstream {
 public:
  upstream(const Layers& layers, float* sums, index_t size) : layers_(layers), sums_(sums), size_(size) {}

  template <class Comm>
  void add_up(const context& ctx, const Comm& comm, float* mine, float* all) const {
    if (size_ == 0) return;
    for_each([&](const auto& layer, index_t at, index_t pitch) {
      collect_rows(ctx, layer, matrix_images{any_matrix(layer.grad_rows)}, any_matrix(mine + at, pitch),
                   nullptr, {});
    });
    gather(ctx, comm, mine, all, size_);
    for_each([&](const auto& layer, index_t at, index_t pitch) {
      const rank_images ranks{{all + at, nullptr, nullptr, nullptr, nullptr},
                              size_,
                              static_cast<int>(pitch),
                              static_cast<int>(comm.size())};
      collect_rows(ctx, layer, ranks, any_matrix(sums_ + at, pitch), nullptr, {});
    });
  }
  /// use(ḡ), a [N, D] view of the sums, or of what the layer was given.
  template <class Use>
  void of(const auto& wanted, const Use& use) const {
    if (size_ == 0) return use(wanted.grad_rows);
    for_each([&](const auto& layer, index_t at, index_t pitch) {
      if (&layer != &wanted) return;
      const auto [n, f, d] = layer.experts.shape();
      use(matrix_view<float, device_space>(sums_ + at, n, d, pitch, 1));
    });
  }

 private:
  template <class Use>
  void for_each(const Use& use) const {
    index_t at = 0;
    for (const auto& layer : layers_) {
      const index_t pitch = rank_message::pitch_of(layer);
      use(layer, at, pitch);
      at += layer.experts.shape().num_experts * pitch;
    }
  }

  const Layers& layers_;
  float* sums_;
  index_t size_;
};

MPIROUTER_CUDA_DETAIL_END
