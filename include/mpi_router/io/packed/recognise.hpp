// From the tensors of a checkpoint to the weights that they are: codes and their scales become one.
#pragma once

#include <mpi_router/io/packed/input_major.hpp>
#include <mpi_router/io/packed/named.hpp>
#include <mpi_router/io/shards.hpp>
#include <mpi_router/io/weight.hpp>

#include <unordered_set>

MPIROUTER_BEGIN

namespace detail::packing {

/// By one scheme; what its format refuses, such as a g_idx that leads out of the groups, is this weight's
/// problem and no other's.
template <class Scheme>
[[nodiscard]] std::optional<recognised> read_by(const Scheme& scheme, const parts_list& parts,
                                                const stored_tensor& codes) {
  try {
    return scheme(parts, codes);
  } catch (const usage_error& error) {
    return recognised{
        codes.name(), {}, {}, {&codes}, core::concatenate("'", codes.name(), "': ", error.what())};
  }
}

/// Quark's config is of all modules together: what is FP8 by its type, or MXFP4 where some are, is read so,
/// whatever others are.
[[nodiscard]] inline bool is_told_by_types(const recognised& found, const quantization& said) {
  if (said.method != "quark" || found.matrices.empty()) {
    return false;
  }
  const auto& format = found.matrices.front().format();
  const auto* fp4 = std::get_if<packed::fp4_matrix>(&format);
  return std::holds_alternative<packed::fp8_matrix>(format) ||
         (fp4 != nullptr && said.has_mxfp4 && fp4->group() == 32 &&
          fp4->scales().type() == packed::scale_type::e8m0);
}

/// A packed weight whose codes this tensor holds; nothing where it is no codes of a kind known here.
[[nodiscard]] inline std::optional<recognised> recognise(const parts_list& parts,
                                                         const stored_tensor& codes) {
  if (is_floating(codes.type()) || codes.bytes().empty()) {
    return std::nullopt;
  }
  for (const auto& scheme :
       {as_compressed, as_blocks, as_quantised, as_four_bit, as_eight_bit, as_mlx, as_scaled}) {
    if (auto found = read_by(scheme, parts, codes)) {
      if (const auto* other = decoding_beside(parts, codes, found->parts);
          other != nullptr && found->problem.empty()) {
        found->refuse(core::concatenate("'", codes.name(), "' has '", other->name(),
                                        "' beside it, which no packing known here uses"));
      }
      const auto& said = codes.type() == dtype::u32 ? parts.said.of_mlx() : parts.said;
      if (!said.unknown.empty() && !is_told_by_types(*found, said)) {
        found->refuse(core::concatenate("'", codes.name(), "' is packed by ", said.unknown,
                                        " of config.json, which is not known here"));
      }
      return found;
    }
  }
  return std::nullopt;
}

/// How weights are packed that look so.
[[nodiscard]] inline std::string_view look_of(const stored_tensor& t) {
  return t.name().ends_with("blocks") ? " (as codes of MXFP4 are)"
         : t.type() == dtype::u32     ? " (as MLX packs them)"
                                      : "";
}

/// The norms beside the directions of a weight that torch's weight_norm keeps apart; null if there are none.
[[nodiscard]] inline const stored_tensor* norms_beside(const parts_list& parts, const stored_tensor& t) {
  using two = std::pair<std::string_view, std::string_view>;
  for (const auto& [directions, norms] :
       {two{"weight_v", "weight_g"}, two{"weight.original1", "weight.original0"}}) {
    if (t.name().ends_with(directions)) {
      return parts.find(core::concatenate(without(t.name(), directions), norms));
    }
  }
  return nullptr;
}

/// Whether element i of a tensor of whole bytes is 0, or −0.
[[nodiscard]] inline bool is_zero_at(const stored_tensor& t, index_t i) {
  constexpr std::byte all_but_sign{0x7f};
  const std::size_t size = bits_of(t.type()) / 8;
  const auto element = t.bytes().subspan(static_cast<std::size_t>(i) * size, size);
  const auto is_zero = [](std::byte b) { return b == std::byte{0}; };
  return std::ranges::all_of(element.first(size - 1), is_zero) && is_zero(element.back() & all_but_sign);
}

/// What pruning masks in a weight, beside it, where not all of that is 0 yet; null if there is none.
[[nodiscard]] inline const stored_tensor* mask_beside(const parts_list& parts, const stored_tensor& t) {
  const auto* mask = parts.find(t.name() + "_mask");
  if (mask == nullptr && t.name().ends_with(".weight")) {
    mask = parts.find(without(t.name(), "weight") + "mask");
  }
  if (mask == nullptr || !std::ranges::equal(mask->shape(), t.shape()) || bits_of(mask->type()) % 8 != 0) {
    return mask;
  }
  for (index_t i = 0; i < element_count(t.shape()); ++i) {
    if (is_zero_at(*mask, i) && !is_zero_at(t, i)) {
      return mask;
    }
  }
  return nullptr;
}

/// Why the numbers of a tensor that is no part of a packed weight are not to be read as they are.
[[nodiscard]] inline std::string problem_of(const parts_list& parts, const stored_tensor& t) {
  if (t.bytes().empty()) {
    return core::concatenate("'", t.name(), "' is ", to_string(t.type()), " ", to_string(t.shape()),
                             ": it holds no numbers");
  }
  const bool may_be_packed =
      t.type() == dtype::u8 || t.type() == dtype::i8 || t.type() == dtype::i32 || t.type() == dtype::u32;
  if (may_be_packed && !parts.said.unknown.empty()) {
    return core::concatenate("'", t.name(), "' is stored as ", to_string(t.type()), ", packed by ",
                             parts.said.unknown,
                             " of config.json, which is not known here: write the model out in bf16 first");
  }
  if (!is_floating(t.type())) {
    return core::concatenate(
        "'", t.name(), "' is stored as ", to_string(t.type()), look_of(t),
        ", and no scales of a packing known here are beside it: write the model out in bf16 first, with the "
        "scales multiplied in");
  }
  if (const auto* norms = norms_beside(parts, t)) {
    return core::concatenate("'", t.name(), "' has the directions of a weight whose norms are '",
                             norms->name(),
                             "' (weight_norm): write the model out with the norms multiplied in");
  }
  if (const auto* norms = t.name().ends_with("weight") ? parts.find(t.name() + "_g") : nullptr) {
    return core::concatenate(
        "'", t.name(), "' has '", norms->name(),
        "' beside it, norms of weight_norm, which may or may not be multiplied in: write "
        "the model out without weight_norm");
  }
  if (const auto* mask = mask_beside(parts, t)) {
    return core::concatenate("'", t.name(), "' has the mask '", mask->name(),
                             "' beside it, and is not 0 wherever that is: write the model out with the mask "
                             "multiplied in");
  }
  if (const auto* scale = decoding_beside(parts, t, {})) {
    return core::concatenate("'", t.name(), "' is ", to_string(t.type()), ", but '", scale->name(),
                             "' is beside it: it was cast without its scales, and its numbers are not the "
                             "weights; write the model out again with the scales multiplied in");
  }
  return "";
}

[[nodiscard]] inline weight to_weight(const stored_tensor& codes, recognised&& found) {
  if (found.problem.empty()) {
    return {codes.file(), std::move(found.name), std::move(found.shape), std::move(found.matrices)};
  }
  const auto shape = codes.shape();  // of the codes: what they decode to is not known
  weight out(codes.file(), std::move(found.name), {shape.begin(), shape.end()}, to_string(codes.type()));
  out.set_problem(std::move(found.problem));
  return out;
}

/// What a weight is stored as, and where its tensor has another name, under which: "BF16 in 'a.layers.w'".
[[nodiscard]] inline std::string source_of(const weight& w) {
  const bool renamed = w.plain() != nullptr && w.plain()->name() != w.name();
  return w.stored_as() + (renamed ? core::concatenate(" in '", w.plain()->name(), "'") : "");
}

/// Two weights of one name: neither can be told from the other.
inline void refuse_doubles(std::vector<weight>& weights) {
  const auto is_piece = [](const weight& w) { return is_of_rank(io::path_text(w.file().filename())); };
  for (std::size_t i = 1; i < weights.size(); ++i) {
    if (weights[i].name() == weights[i - 1].name()) {
      for (auto* w : {&weights[i - 1], &weights[i]}) {
        const auto a = source_of(weights[i - 1]);
        const auto b = source_of(weights[i]);
        const bool are_pieces = a == b && is_piece(weights[i - 1]) && is_piece(weights[i]);
        w->set_problem(core::concatenate("'", w->name(), "' is here twice, ",
                                         are_pieces ? "in the files of two processes: perhaps in pieces"
                                                    : core::concatenate("as ", a, " and as ", b)));
      }
    }
  }
}

}  // namespace detail::packing

/// The weights of a checkpoint, in the order of their names: its tensors, but codes, scales and what else
/// belongs to a packed weight are one weight, under the name that the model's code gives it. `tensors` are in
/// the order of their names. What cannot be decoded is there too and says why. Reads headers, and of weights
/// what is needed to know a format: O(n log n).
[[nodiscard]] inline std::vector<weight> weights_of(std::span<const stored_tensor* const> tensors,
                                                    const quantization& said) {
  using namespace detail::packing;
  const parts_list parts{tensors, said};
  std::vector<std::pair<const stored_tensor*, recognised>> packed;
  std::unordered_set<const stored_tensor*> used;
  for (const auto* t : tensors) {
    if (auto found = recognise(parts, *t)) {
      used.insert(found->parts.begin(), found->parts.end());
      packed.emplace_back(t, std::move(*found));
    }
  }
  std::vector<weight> weights;
  weights.reserve(tensors.size());
  for (auto& [codes, found] : packed) {
    weights.push_back(to_weight(*codes, std::move(found)));
  }
  for (const auto* t : tensors) {
    if (!used.contains(t)) {
      weights.emplace_back(*t).set_problem(problem_of(parts, *t));
    }
  }
  std::ranges::sort(weights, {}, &weight::name);
  refuse_doubles(weights);
  return weights;
}

MPIROUTER_END
