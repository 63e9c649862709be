// What names say of an expert's matrices: gate, up, down, or gate and up in one. The words that models have
// for them, for all who ask.
#pragma once

#include <mpi_router/io/moe/expert_part.hpp>
#include <mpi_router/io/moe/roles.hpp>

#include <cctype>

MPIROUTER_BEGIN

namespace detail::moe {

/// What a name says of an expert's matrix.
enum class matrix_kind : unsigned char { gate, gate_and_up, up, down, unclear };

/// Whether a text has this word, and no digit after it: "w1" is not in "w12".
[[nodiscard]] inline bool has_numbered(std::string_view text, std::string_view word) {
  for (auto at = text.find(word); at != text.npos; at = text.find(word, at + 1)) {
    const auto end = at + word.size();
    if (end == text.size() || digits.find(text[end]) == digits.npos) {
      return true;
    }
  }
  return false;
}

/// What one component of a name says.
[[nodiscard]] inline matrix_kind kind_of_component(std::string_view c) {
  const auto has = [&](auto... parts) { return (contains(c, parts) || ...); };
  const auto numbered = [&](auto... parts) { return (has_numbered(c, parts) || ...); };
  const auto is = [&](auto... words) { return ((c == words) || ...); };
  if (has("gate_up", "up_gate", "gate_and_up", "w13", "w1w3", "w12", "fused", "input_linear", "mlp1")) {
    return matrix_kind::gate_and_up;
  }
  if (has("down", "output", "mlp2", "out_proj") || numbered("fc2") ||
      is("w2", "wo", "w_out", "c_proj", "dense_4h_to_h", "h4toh")) {
    return matrix_kind::down;
  }
  if (has("gate", "wi_0") || numbered("w1") || is("wg")) {
    return matrix_kind::gate;
  }
  if (has("up_proj", "input", "wi_1", "up_exps") || numbered("fc1", "w3") ||
      is("up", "v1", "w_in", "wi", "c_fc", "dense_h_to_4h", "htoh4")) {
    return matrix_kind::up;
  }
  return matrix_kind::unclear;
}

/// What the end of a name says, "…experts.{expert}.gate_proj.weight": the last component that says anything.
[[nodiscard]] inline matrix_kind kind_of(std::string_view name) {
  auto c = components_of(name);
  for (std::size_t i = 0; i < 3 && !c.empty(); c.pop_back()) {
    const auto kind = kind_of_component(c.back());
    if (kind != matrix_kind::unclear || contains(c.back(), "expert")) {
      return kind;
    }
    i += number_of(c.back()) || c.back() == expert_mark ? 0U : 1U;
  }
  return matrix_kind::unclear;
}

/// Whether an expert's tensor looks like its gate, not like its up or down projection.
[[nodiscard]] inline bool looks_like_gate(std::string_view name) {
  constexpr std::array<std::string_view, 7> parts{"gate",         "w1",   "fc1",    "wi",
                                                  "input_linear", "mlp1", "up_gate"};
  return std::ranges::any_of(parts, [&](auto part) { return contains(name, part); });
}

/// Whether a tensor holds the gates of experts whose up projections have names of their own, "up_proj" or
/// "w3".
[[nodiscard]] inline bool holds_gates(std::string_view name) {
  constexpr std::array<std::string_view, 5> parts{"gate_proj", "gate_up", "w1", "gate_exps", "wi_0"};
  return std::ranges::any_of(parts, [&](auto part) { return contains(name, part); });
}

/// How the names of one model tell the matrices of an expert apart.
struct part_words {
  std::string_view own;                  ///< of what the layer's `gates` hold
  std::array<std::string_view, 2> up{};  ///< empty where `own` holds it too
  std::string_view down;
};

/// The longer words first, for they hold the others.
inline constexpr std::array<part_words, 19> part_words_table{{
    {"gate_and_up", {}, "down"},
    {"gate_up", {}, "down"},
    {"up_gate", {}, "down"},
    {"gate", {"up"}, "down"},
    {"up", {}, "down"},
    {"w1w3", {}, "w2"},
    {"w13", {}, "w2"},
    {"w12", {}, "w3"},
    {"w1", {"w3", "v1"}, "w2"},
    {"wi_0", {"wi_1"}, "wo"},
    {"wi", {}, "wo"},
    {"fc1", {}, "fc2"},
    {"fc_1", {"fc_2"}, "proj"},
    {"htoh4", {}, "h4toh"},
    {"mlp1", {}, "mlp2"},
    {"input", {}, "output"},
    {"w_in", {}, "w_out"},
    {"c_fc", {}, "c_proj"},
    {"dense_h_to_4h", {}, "dense_4h_to_h"},
}};

/// Where a word stands alone, "_" being no letter; the last such place from `first` on.
[[nodiscard]] inline std::size_t place_of_word(std::string_view name, std::size_t first,
                                               std::string_view word) {
  const auto is_letter = [&](std::size_t at) {
    return at < name.size() && std::isalnum(static_cast<unsigned char>(name[at])) != 0;
  };
  for (auto at = name.rfind(word); at != name.npos && at >= first; at = name.rfind(word, at - 1)) {
    if ((at == 0 || !is_letter(at - 1)) && !is_letter(at + word.size())) {
      return at;
    }
    if (at == 0) {
      break;
    }
  }
  return name.npos;
}

/// Whether a name is one that up projections have beside gates, "up_proj" or "w3", not one of experts that
/// have no gate, such as "fc1" or "wi".
[[nodiscard]] inline bool is_beside_gate(std::string_view name) {
  const auto c = components_of(name);
  return std::ranges::any_of(c, [](auto part) {
    return kind_of_component(part) == matrix_kind::up &&
           std::ranges::any_of(part_words_table, [&](const auto& words) {
             return std::ranges::any_of(
                 words.up, [&](auto up) { return !up.empty() && place_of_word(part, 0, up) != part.npos; });
           });
  });
}

/// The names that the matrices of a part would have, from that of the gates; its word is sought from `first`
/// on.
[[nodiscard]] inline std::vector<std::string> names_of_part(std::string_view name, std::size_t first,
                                                            expert_part part) {
  for (const auto& words : part_words_table) {
    const auto at = place_of_word(name, first, words.own);
    if (at == name.npos) {
      continue;
    }
    std::vector<std::string> out;
    for (const auto other : part == expert_part::up ? words.up : std::array{words.down, std::string_view()}) {
      if (!other.empty()) {
        out.push_back(core::concatenate(name.substr(0, at), other, name.substr(at + words.own.size())));
      }
    }
    return out;
  }
  return {};
}

}  // namespace detail::moe

MPIROUTER_END
