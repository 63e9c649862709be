// Which parts go in one message: those of all layers; or, where messages go beside the reads, those of a
// layer or, of a large layer, of some of its experts.
#pragma once

#include <mpi_router/cuda/detail/plan/tuning.hpp>
#include <mpi_router/distributed/device_overlap.cuh>
#include <mpi_router/distributed/held.cuh>
#include <mpi_router/distributed/rank_message.cuh>

#include <algorithm>
#include <span>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// The layers of a message: all of the call, or a piece of one.
template <class Layer>
struct message_group {
  using layer = Layer;
  std::span<const Layer> layers;
  rank_message message;
  index_t at = 0;                // floats of a rank's messages before this one
  const Layer* whole = nullptr;  // that the piece is of; null: the layers are whole
  index_t first = 0;             // expert of it

  [[nodiscard]] const Layer& whole_of(const Layer& layer) const { return whole != nullptr ? *whole : layer; }
};

/// Floats of the directions that a rank sends of a layer: the same on every rank, as all that follows.
template <class Layer>
[[nodiscard]] index_t floats_of(const Layer& layer) {
  return rank_message::slots_of(layer) * rank_message::pitch_of(layer);
}

/// Pieces of a layer that go by themselves, of about `each` floats. A shard's stays whole, for its experts
/// have places.
template <class Layer>
[[nodiscard]] index_t pieces_of(const Layer& layer, index_t each) {
  if constexpr (has_place<std::remove_cvref_t<decltype(layer.experts)>>) {
    return 1;
  } else {
    const index_t n = layer.experts.shape().num_experts;
    return std::clamp<index_t>((floats_of(layer) + each / 2) / each, 1, std::max<index_t>(n, 1));
  }
}

/// use(group) for messages of about the same size, layers or pieces of one: at least two, so that one can go
/// while the weights of the other are read.
template <class Layer, class Use>
void for_each_message_apart(std::span<const Layer> layers, const Use& use) {
  index_t total = 0;
  for (const Layer& layer : layers) total += floats_of(layer);
  const index_t each = std::max(total / std::max<index_t>(total / message_floats, 2), least_message_floats);
  index_t at = 0;
  const auto send = [&](std::span<const Layer> some, const Layer* whole, index_t first) {
    const message_group<Layer> group{some, rank_message(some), at, whole, first};
    if (group.message.slots > 0) use(group);
    at += group.message.size;
  };
  for (std::size_t l = 0; l < layers.size();) {
    const index_t pieces = pieces_of(layers[l], each);
    if (pieces > 1) {
      if constexpr (!has_place<std::remove_cvref_t<decltype(layers[l].experts)>>) {
        const index_t n = layers[l].experts.shape().num_experts;
        for (index_t k = 0; k < pieces; ++k) {
          const index_t first = n * k / pieces;
          const Layer piece = layers[l].middle_experts(first, n * (k + 1) / pieces - first);
          send({&piece, 1}, &layers[l], first);
        }
      }
      ++l;
      continue;
    }
    std::size_t end = l;
    for (index_t floats = 0; end < layers.size() && (end == l || floats + floats_of(layers[end]) <= each);) {
      floats += floats_of(layers[end++]);
    }
    send(layers.subspan(l, end - l), nullptr, 0);
    l = end;
  }
}

/// use(group) for each message of a call, one if they do not go beside the reads; none where there are no
/// experts.
template <bool apart, class Layer, class Use>
void for_each_message(std::span<const Layer> layers, const Use& use) {
  if constexpr (apart) {
    for_each_message_apart(layers, use);
  } else {
    const message_group<Layer> group{layers, rank_message(layers)};
    if (group.message.slots > 0) use(group);
  }
}

/// Floats of what a rank sends in a call, in whichever messages.
template <class Layer>
[[nodiscard]] index_t size_of_messages(std::span<const Layer> layers) {
  index_t size = rank_message(layers).size;
  for_each_message<true>(layers,
                         [&](const auto& group) { size = std::max(size, group.at + group.message.size); });
  return size;
}

/// What begins at an expert.
[[nodiscard]] inline saved_step from_expert(const saved_step& saved, index_t first, index_t hidden) {
  const auto from = [](auto* data, index_t offset) { return data == nullptr ? nullptr : data + offset; };
  return {from(saved.direction, first * hidden), from(saved.image_norm, first), from(saved.statuses, first)};
}
[[nodiscard]] inline step_by_products from_expert(step_by_products told, index_t first) {
  const auto from = [first](auto*& data) { data = data == nullptr ? nullptr : data + first; };
  from(told.statuses);
  for (double** const number :
       {&told.rayleigh, &told.cosine, &told.residual, &told.energy, &told.row_norm, &told.image_norm}) {
    from(*number);
  }
  return told;
}

MPIROUTER_CUDA_DETAIL_END
