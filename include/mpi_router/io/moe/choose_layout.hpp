// The tensors that hold the gates of a layer, and the layout that they must have.
#pragma once

#include <mpi_router/io/checkpoint.hpp>
#include <mpi_router/io/moe/layer.hpp>
#include <mpi_router/io/moe/names.hpp>
#include <mpi_router/io/moe/search_options.hpp>

#include <map>

MPIROUTER_BEGIN

namespace detail::moe {

/// The gates to look for, and what is known of them beforehand.
struct gate_search {
  std::string family;
  std::string pattern;                       ///< a name, or one with {expert}
  std::vector<gate_layout> layouts;          ///< that the family has, or the one that is asked for
  bool asked = false;                        ///< the caller names the layout
  std::vector<gate_layout> of_architecture;  ///< config.json names it
  std::vector<gate_layout> unnamed;          ///< of these names, where config.json names no architecture
  std::optional<gate_layout> in_mxfp4;       ///< of MXFP4, where nothing else tells
  router_layout layout_of_router = router_layout::nd;
  bool router_asked = false;  ///< the caller names the router's layout
  expert_part part = expert_part::gate;
  std::optional<index_t> num_experts;  ///< config.json names it
  bool groups_in_order = false;        ///< config.json names an architecture that numbers experts through
  search_words words{};
};

/// The tensors that hold the gates: one for all experts, or one for each, by its number.
struct gate_tensors {
  std::map<index_t, const weight*> tensors;
  bool one_each = false;
  const weight* twice = nullptr;  ///< another of a number that is there, "experts.07" beside "experts.7"

  [[nodiscard]] const weight& first() const { return *tensors.begin()->second; }
  /// Experts that one of these tensors holds, if the layer has so many.
  [[nodiscard]] index_t held_by_one(index_t experts) const { return one_each ? 1 : experts; }
  /// Experts that they hold, as far as their number and shapes tell; 0 where they do not: [N·F, D].
  [[nodiscard]] index_t held() const {
    return one_each ? static_cast<index_t>(tensors.size()) : first().rank() >= 3 ? first().shape()[0] : 0;
  }
};

[[nodiscard]] inline gate_tensors find_gates(const checkpoint& model, const std::string& pattern) {
  gate_tensors found;
  found.one_each = pattern.find(expert_mark) != pattern.npos;
  if (!found.one_each) {
    if (const auto* w = model.find_weight(pattern)) {
      found.tensors.emplace(0, w);
    }
    return found;
  }
  for (const auto& w : model.weights_with(std::string_view(pattern).substr(0, pattern.find(expert_mark)))) {
    if (const auto number = match_expert(pattern, w.name())) {
      if (!found.tensors.emplace(*number, &w).second) {
        found.twice = &w;
      }
    }
  }
  return found;
}

/// Whether every gate can be stored so.
[[nodiscard]] inline bool fits(gate_layout layout, const gate_tensors& gates, index_t experts,
                               index_t hidden_dim) {
  return std::ranges::all_of(gates.tensors, [&](const auto& each) {
    return ffn_dim_of(layout, each.second->shape(), gates.held_by_one(experts), hidden_dim).has_value();
  });
}

[[nodiscard]] inline bool fits_any(const std::vector<gate_layout>& layouts, const gate_tensors& gates,
                                   index_t experts, index_t hidden_dim) {
  return std::ranges::any_of(layouts, [&](auto how) { return fits(how, gates, experts, hidden_dim); });
}

/// Torch's Linear keeps [out, in], so that a square weight of its own is no question.
[[nodiscard]] inline bool is_linear(const gate_tensors& gates, const std::string& pattern) {
  return gates.one_each && gates.first().rank() == 2 && pattern.ends_with(".weight");
}

/// A layout and what says so, or a question.
struct layout_choice {
  std::optional<gate_layout> layout;
  std::string known_by;
  std::string reason;
  std::vector<gate_layout> possible = {};  ///< where it is a question
};

[[nodiscard]] inline std::string list_of(const std::vector<gate_layout>& layouts, const search_words& words) {
  std::string out;
  for (const gate_layout layout : layouts) {
    out += core::concatenate(out.empty() ? "" : " or ", meaning_of(layout), " (", words.layout, " ",
                             to_string(layout), ")");
  }
  return out;
}

/// Why no layout of the family fits: the first tensor that has the wrong shape.
[[nodiscard]] inline std::string wrong_shape(const gate_search& wanted, const gate_tensors& gates,
                                             index_t experts, index_t hidden_dim) {
  const auto odd = std::ranges::find_if(gates.tensors, [&](const auto& each) {
    return !fits_any(wanted.layouts, {{each}, gates.one_each}, experts, hidden_dim);
  });
  const auto& shown = odd == gates.tensors.end() ? gates.first() : *odd->second;
  return core::concatenate("'", shown.name(), "' has shape ", to_string(shown.shape()), ", which is not ",
                           list_of(wanted.layouts, wanted.words), " with the router's N = ", experts,
                           ", D = ", hidden_dim);
}

/// The first of `wanted` that is among `fitting`.
[[nodiscard]] inline std::optional<gate_layout> first_of(const std::vector<gate_layout>& wanted,
                                                         const std::vector<gate_layout>& fitting) {
  const auto found = std::ranges::find_first_of(wanted, fitting);
  return found == wanted.end() ? std::nullopt : std::optional(*found);
}

/// The layouts that have such shapes: those that fit, and with the axes of an expert exchanged.
[[nodiscard]] inline std::vector<gate_layout> possible_of(const std::vector<gate_layout>& fitting,
                                                          const gate_tensors& gates, index_t experts,
                                                          index_t hidden_dim) {
  std::vector<gate_layout> possible;
  for (const gate_layout layout : fitting) {
    for (const gate_layout other : {layout, transposed(layout)}) {
      if (fits(other, gates, experts, hidden_dim) && std::ranges::find(possible, other) == possible.end()) {
        possible.push_back(other);
      }
    }
  }
  return possible;
}

/// The caller must say which.
[[nodiscard]] inline layout_choice ask_which(const gate_tensors& gates, std::vector<gate_layout> possible,
                                             const search_words& words) {
  const auto& shown = gates.first();
  auto reason = core::concatenate("'", shown.name(), "' of shape ", to_string(shown.shape()), " may be ",
                                  list_of(possible, words), ": say which");
  return {{}, "", std::move(reason), std::move(possible)};
}

/// Whether gate and up have an axis of their own, and each may be [F, D] or [D, F].
[[nodiscard]] inline bool is_square_beside_axis(const gate_tensors& gates) {
  const auto shape = gates.first().shape();
  return shape.size() == 4 && shape[2] == shape[3] && !gates.first().is_grouped();
}

/// One rule for all families: a layout is taken if no other that the family has, and none with the axes of an
/// expert exchanged, has such shapes; if groups of packed numbers, which run along D, or ggml, whose rows do,
/// leave but one; if config.json names an architecture that has but the one; if the family has but one in
/// MXFP4, or under its names where no architecture is named; if torch's Linear leaves no choice; or if the
/// caller says so.
[[nodiscard]] inline layout_choice choose_layout(const gate_search& wanted, const gate_tensors& gates,
                                                 index_t experts, index_t hidden_dim) {
  auto fitting = wanted.layouts;
  std::erase_if(fitting, [&](gate_layout how) { return !fits(how, gates, experts, hidden_dim); });
  if (fitting.empty()) {
    return {{}, "", wrong_shape(wanted, gates, experts, hidden_dim)};
  }
  const auto possible = possible_of(fitting, gates, experts, hidden_dim);
  if (wanted.asked) {
    return {fitting[0], std::string(wanted.words.layout), ""};
  }
  if (is_square_beside_axis(gates)) {
    auto question = ask_which(gates, possible, wanted.words);
    question.reason += ", or [N, 2, D, F], for which there is no layout";
    return question;
  }
  if (possible.size() == 1) {
    return {fitting[0], "its shape", ""};
  }
  const auto& first = gates.first();
  if (const bool by_rows = first.is_grouped_by_rows(); by_rows || first.is_grouped() || first.is_of_ggml()) {
    std::erase_if(fitting, [&](gate_layout layout) { return ffn_comes_first(layout) == by_rows; });
    if (fitting.size() == 1) {
      return {fitting[0], by_rows || first.is_grouped() ? "its packing" : "GGUF", ""};
    }
  }
  if (const auto named = first_of(wanted.of_architecture, fitting)) {
    return {named, "config.json", ""};
  }
  if (gates.first().is_mxfp4() && wanted.in_mxfp4 && std::ranges::count(fitting, *wanted.in_mxfp4) > 0) {
    return {wanted.in_mxfp4, "its packing", ""};
  }
  if (const auto usual = first_of(wanted.unnamed, fitting);
      usual && std::ranges::all_of(possible, [&](gate_layout other) {
        return ffn_comes_first(other) == ffn_comes_first(*usual);  // its axes are no question
      })) {
    return {usual, "its names", ""};
  }
  if (fitting.size() == 1 && is_linear(gates, wanted.pattern)) {
    return {fitting[0], "torch's Linear", ""};
  }
  return ask_which(gates, possible, wanted.words);
}

}  // namespace detail::moe

MPIROUTER_END
