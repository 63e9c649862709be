// How routers and gate matrices lie in their tensors. Named, never guessed.
#pragma once

#include <mpi_router/core/experts.hpp>

#include <array>
#include <optional>
#include <span>
#include <string_view>

MPIROUTER_BEGIN_TYPES

/// How the gate matrices of a layer are stored; one named function of core/experts.hpp makes a view of each.
enum class gate_layout : unsigned char {
  nfd,                ///< experts_nfd
  ndf,                ///< experts_ndf
  n2fd_concatenated,  ///< experts_n2fd_concatenated
  n2fd_interleaved,   ///< experts_n2fd_interleaved
  nd2f_concatenated,  ///< experts_nd2f_concatenated
  nd2f_interleaved,   ///< experts_nd2f_interleaved
  n2fd_up_first,      ///< experts_n2fd_concatenated, the halves exchanged
  nd2f_up_first       ///< experts_nd2f_concatenated, the halves exchanged
};

/// What a layout is called, and what that means, for people.
struct gate_layout_entry {
  gate_layout value;
  std::string_view name;
  std::string_view meaning;
};

/// All of them, in the order of the enumeration.
inline constexpr std::array<gate_layout_entry, 8> gate_layout_table{{
    {gate_layout::nfd, "nfd", "[N, F, D]"},
    {gate_layout::ndf, "ndf", "[N, D, F]"},
    {gate_layout::n2fd_concatenated, "n2fd-concatenated", "[N, 2F, D], gate before up"},
    {gate_layout::n2fd_interleaved, "n2fd-interleaved", "[N, 2F, D], gate and up in turn"},
    {gate_layout::nd2f_concatenated, "nd2f-concatenated", "[N, D, 2F], gate before up"},
    {gate_layout::nd2f_interleaved, "nd2f-interleaved", "[N, D, 2F], gate and up in turn"},
    {gate_layout::n2fd_up_first, "n2fd-up-first", "[N, 2F, D], up before gate"},
    {gate_layout::nd2f_up_first, "nd2f-up-first", "[N, D, 2F], up before gate"},
}};

/// Whether a router is stored as [N, D], a row for each expert, or transposed, a column for each.
enum class router_layout : unsigned char { nd, dn };

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

namespace detail::moe {

/// Throws usage_error for what is none of the layouts.
[[nodiscard]] constexpr const gate_layout_entry& entry_of(gate_layout layout) {
  if (static_cast<std::size_t>(layout) >= gate_layout_table.size()) {
    core::unknown_value("gate_layout", layout);
  }
  return gate_layout_table[static_cast<std::size_t>(layout)];
}

}  // namespace detail::moe

/// The name of a layout, "n2fd-concatenated".
[[nodiscard]] constexpr std::string_view to_string(gate_layout layout) {
  return detail::moe::entry_of(layout).name;
}

/// The axes that a layout names, "[N, 2F, D], gate before up".
[[nodiscard]] constexpr std::string_view meaning_of(gate_layout layout) {
  return detail::moe::entry_of(layout).meaning;
}

/// The layout of that name, if there is one.
[[nodiscard]] constexpr std::optional<gate_layout> gate_layout_from_string(std::string_view name) noexcept {
  for (const auto& entry : gate_layout_table) {
    if (entry.name == name) {
      return entry.value;
    }
  }
  return std::nullopt;
}

/// "nd" or "dn".
[[nodiscard]] constexpr std::string_view to_string(router_layout layout) {
  switch (layout) {
    case router_layout::nd: return "nd";
    case router_layout::dn: return "dn";
  }
  core::unknown_value("router_layout", layout);
}

namespace detail::moe {

[[nodiscard]] constexpr bool is_fused(gate_layout layout) {
  return layout != gate_layout::nfd && layout != gate_layout::ndf;
}

[[nodiscard]] constexpr bool ffn_comes_first(gate_layout layout) {
  return layout == gate_layout::nfd || layout == gate_layout::n2fd_concatenated ||
         layout == gate_layout::n2fd_interleaved || layout == gate_layout::n2fd_up_first;
}

/// Whether gate and up are one after the other.
[[nodiscard]] constexpr bool has_halves(gate_layout layout) {
  return is_fused(layout) && layout != gate_layout::n2fd_interleaved &&
         layout != gate_layout::nd2f_interleaved;
}

/// The layout with the two axes of an expert exchanged: a square tensor may be either.
[[nodiscard]] constexpr gate_layout transposed(gate_layout layout) {
  switch (layout) {
    case gate_layout::nfd: return gate_layout::ndf;
    case gate_layout::ndf: return gate_layout::nfd;
    case gate_layout::n2fd_concatenated: return gate_layout::nd2f_concatenated;
    case gate_layout::n2fd_interleaved: return gate_layout::nd2f_interleaved;
    case gate_layout::nd2f_concatenated: return gate_layout::n2fd_concatenated;
    case gate_layout::nd2f_interleaved: return gate_layout::n2fd_interleaved;
    case gate_layout::n2fd_up_first: return gate_layout::nd2f_up_first;
    case gate_layout::nd2f_up_first: return gate_layout::n2fd_up_first;
  }
  core::unknown_value("gate_layout", layout);
}

/// F, if a tensor of this shape can hold the gates of `experts` experts of hidden dimension D so; nothing
/// otherwise. The first axis may be flattened into the second, [N·F, D], a tensor of one expert may lack it,
/// [F, D], and gate and up may have an axis of their own, [N, 2, F, D].
[[nodiscard]] constexpr std::optional<index_t> ffn_dim_of(gate_layout layout, std::span<const index_t> shape,
                                                          index_t experts, index_t hidden_dim) {
  index_t slow = 0;  // the two axes of one expert
  index_t fast = 0;
  if (shape.size() == 3 && shape[0] == experts) {
    slow = shape[1];
    fast = shape[2];
  } else if (shape.size() == 4 && shape[0] == experts && shape[1] == 2 && has_halves(layout) &&
             ffn_comes_first(layout)) {
    slow = 2 * shape[2];
    fast = shape[3];
  } else if (shape.size() == 2 && experts > 0 && shape[0] % experts == 0) {
    slow = shape[0] / experts;
    fast = shape[1];
  } else {
    return std::nullopt;
  }
  const index_t hidden = ffn_comes_first(layout) ? fast : slow;
  const index_t ffn = ffn_comes_first(layout) ? slow : fast;
  if (hidden != hidden_dim || ffn == 0 || (is_fused(layout) && ffn % 2 != 0)) {
    return std::nullopt;
  }
  return is_fused(layout) ? ffn / 2 : ffn;
}

/// The half that is stored where other layouts have this one.
[[nodiscard]] constexpr fused_half exchanged(fused_half half) {
  return half == fused_half::gate ? fused_half::up : fused_half::gate;
}

/// The experts that lie so from `data` on; of a fused layout, this half of them.
template <class T>
[[nodiscard]] expert_batch_view<const T> experts_stored(gate_layout layout, const T* data,
                                                        const expert_shape& shape,
                                                        fused_half half = fused_half::gate) {
  switch (layout) {
    case gate_layout::nfd: return experts_nfd(data, shape);
    case gate_layout::ndf: return experts_ndf(data, shape);
    case gate_layout::n2fd_concatenated: return experts_n2fd_concatenated(data, shape, half);
    case gate_layout::n2fd_interleaved: return experts_n2fd_interleaved(data, shape, half);
    case gate_layout::nd2f_concatenated: return experts_nd2f_concatenated(data, shape, half);
    case gate_layout::nd2f_interleaved: return experts_nd2f_interleaved(data, shape, half);
    case gate_layout::n2fd_up_first: return experts_n2fd_concatenated(data, shape, exchanged(half));
    case gate_layout::nd2f_up_first: return experts_nd2f_concatenated(data, shape, exchanged(half));
  }
  core::unknown_value("gate_layout", layout);
}

}  // namespace detail::moe

MPIROUTER_END
