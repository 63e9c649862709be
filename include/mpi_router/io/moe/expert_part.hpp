// Which matrices of an expert are looked at: its gate, its up and down projections, or their sum.
#pragma once

#include <mpi_router/core/error.hpp>

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>

MPIROUTER_BEGIN_TYPES

/// A matrix of an expert.
enum class expert_part : unsigned char {
  gate,  ///< the gate projection A, [F, D], as in the paper
  up,    ///< the up projection U, [F, D]; it stands for experts that have no gate (Nemotron, Switch)
  down   ///< the down projection W, [D, F], looked at as Wᵀ, [F, D]
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// All of them, in order.
inline constexpr std::array expert_parts{expert_part::gate, expert_part::up, expert_part::down};

/// "gate", "up" or "down".
[[nodiscard]] constexpr std::string_view to_string(expert_part part) {
  switch (part) {
    case expert_part::gate: return "gate";
    case expert_part::up: return "up";
    case expert_part::down: return "down";
  }
  core::unknown_value("expert_part", part);
}

/// The weights of M = α AᵀA + β UᵀU + γ W Wᵀ; 0 for what is not part of it.
struct part_weights {
  double gate = 1;
  double up = 0;
  double down = 0;

  [[nodiscard]] constexpr double of(expert_part part) const {
    return part == expert_part::gate ? gate : part == expert_part::up ? up : down;
  }
  /// AᵀA, as in the paper.
  [[nodiscard]] constexpr bool is_gate_alone() const { return gate == 1 && up == 0 && down == 0; }
};

/// "gate+0.5*up".
[[nodiscard]] inline std::string to_string(const part_weights& weights) {
  std::string out;
  for (const auto part : expert_parts) {
    if (const double weight = weights.of(part); weight != 0) {
      std::array<char, 32> digits{};
      std::snprintf(digits.data(), digits.size(), "%.12g*", weight);
      out += out.empty() ? "" : "+";
      out += weight == 1 ? "" : digits.data();
      out += to_string(part);
    }
  }
  return out;
}

namespace detail::moe {

/// "up" or "0.5*up"; false for what is neither, or is there already.
[[nodiscard]] inline bool add_term(std::string_view term, part_weights& weights) {
  double weight = 1;
  if (const auto star = term.find('*'); star != term.npos) {
    const auto number = term.substr(0, star);
    const auto read = std::from_chars(number.data(), number.data() + number.size(), weight);
    if (read.ec != std::errc{} || read.ptr != number.data() + number.size() || !std::isfinite(weight) ||
        !(weight > 0)) {
      return false;
    }
    term.remove_prefix(star + 1);
  }
  double& to = term == "gate" ? weights.gate : term == "up" ? weights.up : weights.down;
  if ((term != "gate" && term != "up" && term != "down") || to != 0) {
    return false;
  }
  to = weight;
  return true;
}

}  // namespace detail::moe

/// The weights that "gate+up+down" or "gate+0.5*up" names; nothing for what is no such sum.
[[nodiscard]] inline std::optional<part_weights> part_weights_from_string(std::string_view sum) {
  part_weights weights{0, 0, 0};
  for (bool more = true; more;) {
    const auto plus = sum.find('+');
    if (!detail::moe::add_term(sum.substr(0, plus), weights)) {
      return std::nullopt;
    }
    more = plus != sum.npos;
    sum.remove_prefix(more ? plus + 1 : 0);
  }
  return weights;
}

MPIROUTER_END
