// What names say of an expert's matrices: gate, up, down, or gate and up in one. The words that models have
// for them, in one list for all who ask.
#pragma once

#include <mpi_router/io/moe/expert_part.hpp>
#include <mpi_router/io/moe/roles.hpp>

#include <cctype>

MPIROUTER_BEGIN

namespace detail::moe {

/// What a name says of an expert's matrix.
enum class matrix_kind : unsigned char { gate, gate_and_up, up, down, unclear };

/// How the names of one model tell the matrices of an expert apart.
struct part_words {
  std::string_view own;  ///< of the matrix that the others go with
  matrix_kind kind;      ///< what that is: up, where there is no gate; unclear, where only the others tell
  std::array<std::string_view, 2> up{};  ///< beside gates
  std::string_view down{};
};

/// The list. Words that hold others stand before them.
inline constexpr std::array<part_words, 34> part_words_table{{
    {"gate_and_up", matrix_kind::gate_and_up, {}, "down"},
    {"gate_up", matrix_kind::gate_and_up, {}, "down"},
    {"up_gate", matrix_kind::gate_and_up, {}, "down"},
    {"gateup", matrix_kind::gate_and_up, {}, "down"},
    {"fused", matrix_kind::gate_and_up},
    {"w1w3", matrix_kind::gate_and_up, {}, "w2"},
    {"w1_w3", matrix_kind::gate_and_up, {}, "w2"},
    {"w13", matrix_kind::gate_and_up, {}, "w2"},
    {"w12", matrix_kind::gate_and_up, {}, "w3"},
    {"w3w1", matrix_kind::gate_and_up, {}, "w2"},
    {"w3_w1", matrix_kind::gate_and_up, {}, "w2"},
    {"w31", matrix_kind::gate_and_up, {}, "w2"},
    {"gating_einsum", matrix_kind::gate_and_up},
    {"mlp1", matrix_kind::gate_and_up, {}, "mlp2"},
    {"input_linear", matrix_kind::gate_and_up, {}, "output_linear"},
    {"gate", matrix_kind::gate, {"up"}, "down"},
    {"wgate", matrix_kind::gate, {"wup"}, "wdown"},
    {"wg", matrix_kind::gate, {"wu"}, "wd"},
    {"w1", matrix_kind::gate, {"w3", "v1"}, "w2"},
    {"moe_w_in_eD_F", matrix_kind::gate, {"moe_w_swiglu_eD_F"}, "moe_w_out_eF_D"},
    {"wi_0", matrix_kind::gate, {"wi_1"}, "wo"},
    {"up", matrix_kind::up, {}, "down"},
    {"wi", matrix_kind::up, {}, "wo"},
    {"fc1", matrix_kind::up, {}, "fc2"},
    {"htoh4", matrix_kind::up, {}, "h4toh"},
    {"input", matrix_kind::up, {}, "output"},
    {"in_proj", matrix_kind::up, {}, "out_proj"},
    {"w_in", matrix_kind::up, {}, "w_out"},
    {"c_fc", matrix_kind::up, {}, "c_proj"},
    {"Dense_0", matrix_kind::up, {}, "Dense_1"},
    {"dense_h_to_4h", matrix_kind::up, {}, "dense_4h_to_h"},
    {"fc_1", matrix_kind::unclear, {"fc_2"}, "proj"},
    {"fc", matrix_kind::unclear, {}, "proj"},
    {"linear", matrix_kind::unclear, {"linear_v"}, "linear_1"},
}};

/// Where a word stands by itself, the last such place from `first` on: between letters that are none of its
/// own there is a "_" or a dot, "proj" or a capital; a number that ends it is whole, so that "w1" is not in
/// "w12". A component may end with its plural, "gates"; "inputs" and "outputs" are no matrices.
[[nodiscard]] inline std::size_t place_of_word(std::string_view name, std::size_t first,
                                               std::string_view word) {
  const auto at_is = [&](std::size_t at, auto classify) {
    return at < name.size() && classify(static_cast<unsigned char>(name[at])) != 0;
  };
  const auto is_free = [&](std::size_t begin, std::size_t end) {
    const bool is_number = std::isdigit(static_cast<unsigned char>(word.back())) != 0;
    const auto rest = name.substr(end);
    const bool is_plural = (rest == "s" || rest.starts_with("s.")) && !word.ends_with("put");
    const bool glued =
        at_is(end, [](int c) { return std::islower(c); }) && !rest.starts_with("proj") && !is_plural;
    const bool begins = begin == 0 || !at_is(begin - 1, [](int c) { return std::isalnum(c); });
    const bool is_longer = is_number && at_is(end, [](int c) { return std::isdigit(c); });
    return begins && !glued && !is_longer;
  };
  for (auto at = name.rfind(word); at != name.npos && at >= first; at = name.rfind(word, at - 1)) {
    if (is_free(at, at + word.size())) {
      return at;
    }
    if (at == 0) {
      break;
    }
  }
  return name.npos;
}

/// What one component of a name says: first what any model calls the matrix that the others go with.
[[nodiscard]] inline matrix_kind kind_of_component(std::string_view c) {
  const auto any = [&](auto words_of) {
    return std::ranges::find_if(part_words_table, [&](const part_words& words) {
      return words.kind != matrix_kind::unclear && std::ranges::any_of(words_of(words), [&](auto word) {
               return !word.empty() && place_of_word(c, 0, word) != c.npos;
             });
    });
  };
  const auto own = any([](const part_words& words) { return std::array{words.own}; });
  if (own != part_words_table.end()) {
    return own->kind;
  }
  if (any([](const part_words& words) { return words.up; }) != part_words_table.end()) {
    return matrix_kind::up;
  }
  return any([](const part_words& words) { return std::array{words.down}; }) != part_words_table.end()
             ? matrix_kind::down
             : matrix_kind::unclear;
}

/// What the end of a name says, "…experts.{expert}.gate_proj.weight": the last component that says anything.
[[nodiscard]] inline matrix_kind kind_of(std::string_view name) {
  auto c = components_of(name);
  for (std::size_t i = 0; i < 3 && !c.empty(); c.pop_back()) {
    const auto kind = kind_of_component(c.back());
    const bool is_number = number_of(c.back()) || c.back() == expert_mark;  // "gate_up_projs.{expert}.weight"
    const bool is_of_expert = contains(substituted(c.back(), expert_mark, ""), "expert");
    if (kind != matrix_kind::unclear || (!is_number && is_of_expert)) {
      return kind;
    }
    i += is_number ? 0U : 1U;
  }
  return matrix_kind::unclear;
}

/// Whether a name is of gates, alone or with up projections.
[[nodiscard]] inline bool holds_gates(std::string_view name) {
  const auto kind = kind_of(name);
  return kind == matrix_kind::gate || kind == matrix_kind::gate_and_up;
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
    if (at == name.npos || (words.up[0].empty() && words.down.empty())) {  // "fused" of "fused_w13"
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
