#include "names.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <span>

namespace verify {

namespace {

constexpr std::string_view digits = "0123456789";

std::optional<index_t> number_of(std::string_view text) {
  index_t value = 0;
  const auto* const end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, value);
  return !text.empty() && text.find_first_not_of(digits) == text.npos && read.ec == std::errc{}
             ? std::optional(value)
             : std::nullopt;
}

std::vector<std::string_view> components_of(std::string_view name) {
  std::vector<std::string_view> out;
  for (std::size_t begin = 0; begin <= name.size();) {
    const auto end = std::min(name.find('.', begin), name.size());
    out.push_back(name.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

template <std::size_t N>
bool is_one_of(std::string_view text, const std::array<std::string_view, N>& words) {
  return std::ranges::find(words, text) != words.end();
}

bool is_optimizer_word(std::string_view c) {
  constexpr std::array<std::string_view, 10> words{
      "optimizer", "optim",      "optimizer_state", "opt_state", "adam",
      "adamw",     "square_avg", "acc_delta",       "exp_inf",   "optimizer_states"};
  return is_one_of(c, words) || c.starts_with("exp_avg") || c.starts_with("max_exp_avg") ||
         c.starts_with("momentum");
}

bool is_adapter_word(std::string_view c) { return c == "lora" || c.starts_with("lora_"); }

/// "experts", "local_experts", "expert_3", "switch_mlp"; not "shared_experts", "expert_bias",
/// "per_expert_scale".
bool is_expert_word(std::string_view c) {
  constexpr std::array<std::string_view, 4> words{"switch_mlp", "mlp1_weight", "input_linear",
                                                  "output_linear"};
  if (is_one_of(c, words) || c.ends_with("_exps")) {
    return true;
  }
  return contains(c, "expert") && !contains(c, "shared") && !contains(c, "per_expert") &&
         !c.starts_with("routed_expert_") && !c.starts_with("num_") && !c.ends_with("_bias") &&
         c != "expert_gate";
}

/// Scales, zero points, biases and the like: they say how an expert's weights are to be read.
bool is_auxiliary(std::string_view leaf) {
  constexpr std::array<std::string_view, 11> parts{"scale",       "zero",   "g_idx",  "shape",
                                                   "bias",        "absmax", "nested", "quant_map",
                                                   "quant_state", "norm",   "qzeros"};
  return std::ranges::any_of(parts, [&](auto part) { return contains(leaf, part); });
}

/// How many components from the end make a router's name; 0 where it is none. `plain` if only "gate" says it.
std::size_t router_suffix(std::span<const std::string_view> c, bool& plain) {
  constexpr std::array<std::string_view, 6> leaves{"weight",        "kernel", "qweight",
                                                   "weight_packed", "w",      "weights"};
  constexpr std::array<std::string_view, 3> bare{"router", "router_weight", "router_weights"};
  constexpr std::array<std::string_view, 8> inner{"layer", "gate",  "classifier", "linear",
                                                  "proj",  "dense", "wg",         "router"};
  constexpr std::array<std::string_view, 5> words{"router", "ffn_gate_inp", "moe_gate", "gating",
                                                  "router_gate"};
  plain = false;
  if (is_one_of(c.back(), bare)) {
    return 1;
  }
  if (c.size() < 2 || !is_one_of(c.back(), leaves)) {
    return 0;
  }
  const auto last = c[c.size() - 2];
  const auto before = c.size() > 2 ? c[c.size() - 3] : std::string_view();
  if (is_one_of(last, inner) && (before == "router" || (before == "gate" && last != "proj"))) {
    return 3;
  }
  plain = last == "gate";
  return plain || is_one_of(last, words) ? 2 : 0;
}

std::string joined(std::span<const std::string_view> c) {
  std::string out;
  for (const auto part : c) {
    out += std::string(part) + ".";
  }
  return out;
}

/// The number of the expert: a component of its own, or the digits that one ends with ("expert_3",
/// "weight3").
std::optional<index_t> expert_number(std::span<const std::string_view> c) {
  for (const auto part : c) {
    if (const auto number = number_of(part)) {
      return number;
    }
  }
  for (const auto part : c) {
    const auto at = part.find_last_not_of(digits) + 1;
    const bool named = part.substr(0, at) == "expert_" || part.substr(0, at) == "weight";
    if (const auto number = number_of(part.substr(at)); named && number) {
      return number;
    }
  }
  return std::nullopt;
}

}  // namespace

std::string replace(std::string pattern, std::string_view mark, std::string_view value) {
  for (auto at = pattern.find(mark); at != pattern.npos; at = pattern.find(mark, at + value.size())) {
    pattern.replace(at, mark.size(), value);
  }
  return pattern;
}

std::optional<std::string> match_layer(std::string_view pattern, std::string_view name) {
  const auto at = pattern.find(layer_mark);
  if (at == pattern.npos) {
    return pattern == name ? std::optional<std::string>("") : std::nullopt;
  }
  const auto before = pattern.substr(0, at);
  const auto after = pattern.substr(at + layer_mark.size());
  if (name.size() < before.size() + after.size() || !name.starts_with(before) || !name.ends_with(after)) {
    return std::nullopt;
  }
  return std::string(name.substr(before.size(), name.size() - before.size() - after.size()));
}

std::optional<index_t> match_expert(std::string_view pattern, std::string_view name) {
  const auto at = pattern.find(expert_mark);
  if (at == pattern.npos || !name.starts_with(pattern.substr(0, at))) {
    return std::nullopt;
  }
  const auto rest = name.substr(at);
  const auto end = std::min(rest.find_first_not_of(digits), rest.size());
  const auto number = number_of(rest.substr(0, end));
  // The mark may stand more than once, and "007" is another name than "7".
  return number && replace(std::string(pattern), expert_mark, std::to_string(*number)) == name ? number
                                                                                               : std::nullopt;
}

std::string shared_prefix(std::string_view a, std::string_view b) {
  std::size_t shared = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()) && a[i] == b[i]; ++i) {
    shared = a[i] == '.' ? i : shared;
  }
  return std::string(a.substr(0, shared));
}

bool natural_less(std::string_view a, std::string_view b) {
  const auto run_of_digits = [](std::string_view& text) {
    const auto end = std::min(text.find_first_not_of(digits), text.size());
    auto run = text.substr(0, end);
    text.remove_prefix(end);
    run.remove_prefix(std::min(run.find_first_not_of('0'), run.size()));
    return run;
  };
  const auto whole_a = a;
  const auto whole_b = b;
  while (!a.empty() && !b.empty()) {
    const auto run_a = run_of_digits(a);
    const auto run_b = run_of_digits(b);
    if (run_a != run_b) {
      return run_a.size() != run_b.size() ? run_a.size() < run_b.size() : run_a < run_b;
    }
    if (a.empty() || b.empty() || a[0] != b[0]) {
      break;
    }
    a.remove_prefix(1);
    b.remove_prefix(1);
  }
  return a.empty() != b.empty() ? a.empty() : a != b ? a < b : whole_a < whole_b;
}

std::string with_stars(std::string_view name) {
  std::string out;
  for (const auto part : components_of(name)) {
    out += "." + std::string(number_of(part) ? "*" : part);
  }
  return out.substr(1);
}

std::string ranges_of(const std::vector<index_t>& numbers, std::size_t most) {
  std::string out;
  std::size_t runs = 0;
  for (std::size_t i = 0; i < numbers.size(); ++runs) {
    if (runs == most) {
      return out + ", …";
    }
    std::size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) {
      ++last;
    }
    out += (out.empty() ? "" : ", ") + std::to_string(numbers[i]) +
           (last > i ? "-" + std::to_string(numbers[last]) : "");
    i = last + 1;
  }
  return out;
}

tensor_part part_of(std::string_view name) {
  const auto c = components_of(name);
  const std::span all(c);
  if (std::ranges::any_of(c, is_optimizer_word)) {
    return {tensor_role::optimizer};
  }
  if (std::ranges::any_of(c, is_adapter_word)) {
    return {tensor_role::adapter};
  }
  const auto expert = static_cast<std::size_t>(std::ranges::find_if(c, is_expert_word) - c.begin());
  bool plain = false;
  if (const auto suffix = router_suffix(all, plain); suffix > 0) {
    const auto before = all.first(c.size() - suffix);
    const bool elsewhere = std::ranges::any_of(before, [](auto part) {
      return contains(part, "shared") || contains(part, "attn") || contains(part, "attention");
    });
    const bool of_an_expert = expert < before.size() && (plain || expert_number(before.subspan(expert)));
    if (!of_an_expert && !(plain && elsewhere)) {
      return {tensor_role::router, joined(all.first(std::min(expert, before.size()))), {}, plain};
    }
  }
  const auto shared = [](auto part) { return contains(part, "shared"); };
  if (expert == c.size() || is_auxiliary(c.back()) || std::ranges::any_of(all.first(expert), shared)) {
    return {};
  }
  return {tensor_role::expert, joined(all.first(expert)), expert_number(all.subspan(expert))};
}

bool looks_like_gate(std::string_view name) {
  constexpr std::array<std::string_view, 7> parts{"gate",         "w1",   "fc1",    "wi",
                                                  "input_linear", "mlp1", "up_gate"};
  return std::ranges::any_of(parts, [&](auto part) { return contains(name, part); });
}

std::optional<layer_place> place_of_layer(std::string_view block) {
  std::string series;
  for (const auto part : components_of(block)) {
    if (const auto number = number_of(part)) {
      return layer_place{series, *number};
    }
    series += std::string(part) + ".";
  }
  return std::nullopt;
}

}  // namespace verify
