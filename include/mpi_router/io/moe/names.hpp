// Names of tensors as text: patterns with marks, numbers in natural order.
#pragma once

#include <mpi_router/core/config.hpp>

#include <algorithm>
#include <charconv>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

MPIROUTER_BEGIN

/// "0-2, 5" of ascending numbers; after `most` runs there are dots.
[[nodiscard]] inline std::string ranges_of(std::span<const index_t> numbers, std::size_t most = 12) {
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

namespace detail::moe {

inline constexpr std::string_view layer_mark = "{layer}";
inline constexpr std::string_view expert_mark = "{expert}";
inline constexpr std::string_view digits = "0123456789";

/// The number that all of `text` is.
[[nodiscard]] inline std::optional<index_t> number_of(std::string_view text) {
  index_t value = 0;
  const auto read = std::from_chars(std::to_address(text.begin()), std::to_address(text.end()), value);
  return !text.empty() && text.find_first_not_of(digits) == text.npos && read.ec == std::errc{}
             ? std::optional(value)
             : std::nullopt;
}

/// The parts between the dots.
[[nodiscard]] inline std::vector<std::string_view> components_of(std::string_view name) {
  std::vector<std::string_view> out;
  for (std::size_t begin = 0; begin <= name.size();) {
    const auto end = std::min(name.find('.', begin), name.size());
    out.push_back(name.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

/// `pattern` with every `mark` replaced.
[[nodiscard]] inline std::string substituted(std::string_view pattern, std::string_view mark,
                                             std::string_view value) {
  std::string out(pattern);
  for (auto at = out.find(mark); at != out.npos; at = out.find(mark, at + value.size())) {
    out.replace(at, mark.size(), value);
  }
  return out;
}

/// What {layer} must stand for so that `pattern` is `name`.
[[nodiscard]] inline std::optional<std::string> match_layer(std::string_view pattern, std::string_view name) {
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

/// The number that {expert} must stand for so that `pattern` is `name`; it may have zeros before it.
[[nodiscard]] inline std::optional<index_t> match_expert(std::string_view pattern, std::string_view name) {
  const auto at = pattern.find(expert_mark);
  if (at == pattern.npos || !name.starts_with(pattern.substr(0, at))) {
    return std::nullopt;
  }
  const auto rest = name.substr(at);
  const auto text = rest.substr(0, rest.find_first_not_of(digits));
  const auto number = number_of(text);
  return number && substituted(pattern, expert_mark, text) == name  // the mark may stand more than once
             ? number
             : std::nullopt;
}

/// The dotted components that both names begin with.
[[nodiscard]] inline std::string shared_prefix(std::string_view a, std::string_view b) {
  std::size_t shared = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()) && a[i] == b[i]; ++i) {
    shared = a[i] == '.' ? i : shared;
  }
  return std::string(a.substr(0, shared));
}

/// Cuts the digits that `text` begins with off it, and gives them without leading zeros.
[[nodiscard]] inline std::string_view take_digits(std::string_view& text) {
  auto run = text.substr(0, text.find_first_not_of(digits));
  text.remove_prefix(run.size());
  run.remove_prefix(std::min(run.find_first_not_of('0'), run.size()));
  return run;
}

/// "layers.2" before "layers.10": runs of digits compare as numbers.
[[nodiscard]] inline bool natural_less(std::string_view a, std::string_view b) {
  const auto whole_a = a;
  const auto whole_b = b;
  while (!a.empty() && !b.empty()) {
    const auto run_a = take_digits(a);
    const auto run_b = take_digits(b);
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

/// Digits of the expert's number in `name`, one of the pattern's, where zeros fill it up; else 0.
[[nodiscard]] inline std::size_t width_of_expert(std::string_view pattern, std::string_view name) {
  const auto text = name.substr(std::min(pattern.find(expert_mark), name.size()));
  return text.starts_with('0') ? std::min(text.find_first_not_of(digits), text.size()) : 0;
}

/// The name of one expert, its number filled up with zeros to so many digits: "experts.003".
[[nodiscard]] inline std::string name_of_expert(std::string_view pattern, index_t expert, std::size_t width) {
  auto number = std::to_string(expert);
  number.insert(0, width > number.size() ? width - number.size() : 0, '0');
  return substituted(pattern, expert_mark, number);
}

}  // namespace detail::moe

MPIROUTER_END
