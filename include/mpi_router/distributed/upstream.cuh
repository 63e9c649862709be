// The gradients that come for the rows, where every rank has tokens of its own: their sums over the ranks.
#pragma once

#include <mpi_router/distributed/device_sums.cuh>
#include <mpi_router/distributed/finish_layers.cuh>
#include <mpi_router/distributed/message_groups.cuh>
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

/// Sums of a layer's rows, to be written.
template <class Images, class Layer>
[[nodiscard]] layer_to_collect<Images> rows_to_collect(const Layer& layer, const Images& images,
                                                       const any_matrix& out, const status* statuses,
                                                       const any_matrix& instead) {
  const int hidden = static_cast<int>(layer.experts.shape().hidden_dim);
  return {{images, out, nullptr, statuses, instead, hidden}};
}

/// What rows without a step are given, if they pass it on.
[[nodiscard]] any_matrix passed_on(const auto& grad_rows, const step_options& options) {
  return options.degenerate == degenerate_row::keep ? any_matrix(grad_rows) : any_matrix();
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
    float* const given = sums_by_backend<Comm> ? sums_ : mine;
    layers_finisher<layer_to_collect<matrix_images>> own(ctx);
    for_each([&](const auto& layer, index_t at, index_t pitch) {
      own.add(rows_to_collect(layer, matrix_images{any_matrix(layer.grad_rows)},
                              any_matrix(given + at, pitch), nullptr, {}),
              layer.experts.shape().num_experts);
    });
    own.finish();
    if constexpr (sums_by_backend<Comm>) {
      add_by_backend(ctx, comm, sums_, floats());
    } else {
      gather(ctx, comm, mine, all, size_);
      add_ranks(ctx, comm, all);
    }
  }
  /// use(ḡ) of a layer of a message, a piece of a layer maybe.
  template <class Layer, class Use>
  void of(const message_group<Layer>& group, const Layer& piece, const Use& use) const {
    of(group.whole_of(piece), [&](const auto& grad_rows) {
      use(grad_rows.middle_rows(group.first, piece.experts.shape().num_experts));
    });
  }
  /// use(std::type_identity<U>()) for the type of ḡ.
  template <class Layer, class Use>
  void with_type(const Layer& layer, const Use& use) const {
    if (size_ > 0) return use(std::type_identity<float>());
    use(std::type_identity<std::remove_const_t<std::remove_pointer_t<decltype(layer.grad_rows.data())>>>());
  }
  /// use(ḡ), a [N, D] view of the sums, or of what the layer was given.
  template <class Use>
  void of(const auto& wanted, const Use& use) const {
    if (size_ == 0) return use(wanted.grad_rows);
    bool found = false;
    for_each([&](const auto& layer, index_t at, index_t pitch) {
      if (&layer != &wanted) return;
      found = true;
      const auto [n, f, d] = layer.experts.shape();
      use(matrix_view<float, device_space>(sums_ + at, n, d, pitch, 1));
    });
    expect(found, "sharded_router_rows_vjp: a layer that is none of the call's");
  }

 private:
  /// The sums of what the ranks were given, in their order.
  template <class Comm>
  void add_ranks(const context& ctx, const Comm& comm, float* all) const {
    layers_finisher<layer_to_collect<rank_images>> sums(ctx);
    for_each([&](const auto& layer, index_t at, index_t pitch) {
      const rank_images ranks{{all + at, nullptr, nullptr, nullptr, nullptr},
                              size_,
                              static_cast<int>(pitch),
                              static_cast<int>(comm.size())};
      sums.add(rows_to_collect(layer, ranks, any_matrix(sums_ + at, pitch), nullptr, {}),
               layer.experts.shape().num_experts);
    });
    sums.finish();
  }
  /// Without what fills up the last line.
  [[nodiscard]] index_t floats() const {
    index_t end = 0;
    for_each([&](const auto& layer, index_t at, index_t pitch) {
      end = at + layer.experts.shape().num_experts * pitch;
    });
    return end;
  }
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
