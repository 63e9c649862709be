// The stored tensors that a packed weight is made of, looked up by name and cut into matrices.
#pragma once

#include <mpi_router/io/moe/roles.hpp>
#include <mpi_router/io/packed/any_matrix.hpp>
#include <mpi_router/io/packed/quantization.hpp>
#include <mpi_router/io/path_names.hpp>
#include <mpi_router/io/stored_tensor.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

MPIROUTER_BEGIN

namespace detail::packing {

/// All tensors of a checkpoint, in the order of their names, and what its config says.
struct parts_list {
  std::span<const stored_tensor* const> all;
  const quantization& said;

  [[nodiscard]] const stored_tensor* find(std::string_view name) const {
    const auto it =
        std::ranges::lower_bound(all, name, {}, [](const auto* t) { return std::string_view(t->name()); });
    return it != all.end() && (*it)->name() == name ? *it : nullptr;
  }
  /// The first tensor of a name that begins so; null if there is none.
  [[nodiscard]] const stored_tensor* find_first(std::string_view prefix) const {
    const auto it =
        std::ranges::lower_bound(all, prefix, {}, [](const auto* t) { return std::string_view(t->name()); });
    return it != all.end() && (*it)->name().starts_with(prefix) ? *it : nullptr;
  }
  /// The tensors whose names begin so.
  [[nodiscard]] std::span<const stored_tensor* const> with_prefix(std::string_view prefix) const {
    const auto begin =
        std::ranges::lower_bound(all, prefix, {}, [](const auto* t) { return std::string_view(t->name()); });
    const auto end =
        std::find_if_not(begin, all.end(), [&](const auto* t) { return t->name().starts_with(prefix); });
    return {begin, end};
  }
  /// The first of these that is there.
  [[nodiscard]] const stored_tensor* find_any(const std::vector<std::string>& names) const {
    for (const auto& name : names) {
      if (const auto* t = find(name)) {
        return t;
      }
    }
    return nullptr;
  }
};

/// A packed weight that was made out among the tensors, or why it cannot be decoded.
struct recognised {
  std::string name;
  std::vector<index_t> shape;  ///< of the decoded numbers
  std::vector<packed::any_matrix> matrices;
  std::vector<const stored_tensor*> parts;  ///< all that belong to it, the codes first
  std::string problem;

  /// Not decoded, for this reason.
  recognised& refuse(std::string reason) {
    problem = std::move(reason);
    matrices.clear();
    return *this;
  }
};

/// Whether `rest`, a name without that of its module, is of what a router learned to multiply its weights, or
/// the noise of its training, by, and `of` is a router's: it says nothing of how they are packed.
[[nodiscard]] inline bool is_learned_scale(std::string_view rest, const stored_tensor& of) {
  constexpr std::array<std::string_view, 8> names{"global_scale", "route_scale", "router_scale",
                                                  "expert_scale", "logit_scale", "per_expert_scale",
                                                  "logits_scale", "noise_scale"};
  return std::ranges::find(names, rest) != names.end() &&
         moe::part_of(dotted(of.name())).role == moe::tensor_role::router;
}

/// Whether all bytes are 0: offsets that take nothing away.
[[nodiscard]] inline bool is_all_zero(const stored_tensor& t) {
  return std::ranges::all_of(t.bytes(), [](std::byte b) { return b == std::byte{0}; });
}

/// A tensor beside `t`, and none of `known`, that says how numbers are to be read: scales, zero points,
/// offsets, what SVDQuant adds. Those of activations do not count, nor, beside floating point, what a router
/// learned. Null if there is none.
[[nodiscard]] inline const stored_tensor* decoding_beside(const parts_list& parts, const stored_tensor& t,
                                                          std::span<const stored_tensor* const> known) {
  std::string_view stem = t.name();
  for (const std::string_view end : {"weight_packed", "qweight", "weight"}) {
    if (stem.ends_with(end)) {
      stem.remove_suffix(end.size());
      break;
    }
  }
  const bool is_plain = is_floating(t.type());
  for (const auto* other : parts.with_prefix(stem)) {
    std::string_view rest = std::string_view(other->name()).substr(stem.size());
    rest.remove_prefix(std::min(rest.find_first_not_of("._"), rest.size()));
    const auto begins = [&](auto... words) { return (rest.starts_with(words) || ...); };
    const auto has = [&](auto... words) { return ((rest.find(words) != rest.npos) || ...); };
    if (other != &t && std::ranges::find(known, other) == known.end() &&
        (has("scale", "absmax", "zero_point", "qzeros", "svdquant") ||
         (rest == "weight_offset" && !is_all_zero(*other))) &&
        !begins("input", "output", "act", "qscale_act", "k_", "v_") &&
        !(is_plain && is_learned_scale(rest, t))) {
      return other;
    }
  }
  return nullptr;
}

/// "X.weight" without the end of its name.
[[nodiscard]] inline std::string without(std::string_view name, std::string_view end) {
  return std::string(name.substr(0, name.size() - end.size()));
}

/// Piece i of n equal ones of a tensor's bytes.
[[nodiscard]] inline std::span<const std::byte> piece(const stored_tensor& t, index_t i, index_t n) {
  const std::size_t each = t.bytes().size() / static_cast<std::size_t>(n);
  return t.bytes().subspan(static_cast<std::size_t>(i) * each, each);
}

/// The numbers of a small tensor of any type that scales or sizes have.
[[nodiscard]] inline std::optional<packed::scale_type> scale_type_of(dtype type) {
  switch (type) {
    case dtype::f32: return packed::scale_type::f32;
    case dtype::bf16: return packed::scale_type::bf16;
    case dtype::f16: return packed::scale_type::f16;
    case dtype::f8_e4m3: return packed::scale_type::e4m3;
    case dtype::f8_e8m0:
    case dtype::u8: return packed::scale_type::e8m0;
    default: return std::nullopt;
  }
}

/// Piece i of n of a tensor of scales, as a grid [rows, cols].
[[nodiscard]] inline packed::scales grid(const stored_tensor& t, packed::scale_type type, index_t i,
                                         index_t n, index_t rows, index_t cols) {
  return {type, piece(t, i, n), rows, cols};
}

template <class T>
[[nodiscard]] T number_at(const stored_tensor& t, std::size_t i) {
  T value;
  std::memcpy(&value, t.bytes().data() + i * sizeof(T), sizeof(T));
  return value;
}

/// The extents that a tensor of integers names, `weight_shape`: two, positive.
[[nodiscard]] inline std::optional<std::vector<index_t>> named_shape(const stored_tensor& t) {
  if (element_count(t.shape()) != 2 || (t.type() != dtype::i32 && t.type() != dtype::i64)) {
    return std::nullopt;
  }
  std::vector<index_t> shape;
  shape.reserve(2);
  for (std::size_t i = 0; i < 2; ++i) {
    shape.push_back(t.type() == dtype::i32 ? number_at<std::int32_t>(t, i) : number_at<std::int64_t>(t, i));
  }
  constexpr index_t most = index_t{1} << 31;
  return shape[0] > 0 && shape[1] > 0 && shape[0] < most && shape[1] < most ? std::optional(shape)
                                                                            : std::nullopt;
}

/// "'X.weight_packed' is U8 [4, 8], but its scales 'X.weight_scale' are F32 [3]".
[[nodiscard]] inline std::string misfit(const stored_tensor& codes, const stored_tensor& other,
                                        std::string_view what = "scales") {
  return core::concatenate("'", codes.name(), "' is ", to_string(codes.type()), " ", to_string(codes.shape()),
                           ", but its ", what, " '", other.name(), "' are ", to_string(other.type()), " ",
                           to_string(other.shape()), ": no packing known here has these");
}

[[nodiscard]] inline std::string lacks(const stored_tensor& codes, std::string_view what) {
  return core::concatenate("'", codes.name(), "' is ", to_string(codes.type()),
                           ", packed weights, and has no ", what, " beside it");
}

/// The extents but the last two; those, as rows and columns.
struct stack_shape {
  std::vector<index_t> lead;
  index_t count = 1;  ///< matrices
  index_t rows = 0;
  index_t cols = 0;

  explicit stack_shape(std::span<const index_t> shape) {
    if (shape.size() >= 2) {
      lead.assign(shape.begin(), shape.end() - 2);
      count = element_count(lead);
      rows = shape[shape.size() - 2];
      cols = shape[shape.size() - 1];
    }
  }
  [[nodiscard]] bool is_matrix() const { return rows > 0 && cols > 0 && count > 0; }
  [[nodiscard]] std::vector<index_t> with(index_t new_rows, index_t new_cols) const {
    auto shape = lead;
    shape.push_back(new_rows);
    shape.push_back(new_cols);
    return shape;
  }
};

/// Columns of a group, where `groups` of them make a row of `cols`: the size that config.json names, whose
/// last group may be partial; else cols / groups. Nothing where there is no telling: a usual size with a
/// partial last group would make as many.
[[nodiscard]] inline std::optional<index_t> columns_of_group(const quantization& said, index_t cols,
                                                             index_t groups) {
  if (groups <= 0 || cols <= 0) {
    return std::nullopt;
  }
  for (const index_t size : said.groups) {
    if (packed::parts_of(cols, size) == groups) {
      return size;
    }
  }
  const bool even = cols % groups == 0;
  for (const index_t usual : {16, 32, 64, 128, 256}) {
    const bool as_many = groups > 1 && packed::parts_of(cols, usual) == groups;
    if (as_many && (!even || usual != cols / groups)) {
      return std::nullopt;
    }
  }
  return even ? std::optional(cols / groups) : std::nullopt;
}

/// Elements of `t` for each of `count` matrices; 0 where they do not divide.
[[nodiscard]] inline index_t each_of(const stored_tensor& t, index_t count) {
  const index_t size = element_count(t.shape());
  return size % count == 0 ? size / count : 0;
}

}  // namespace detail::packing

MPIROUTER_END
