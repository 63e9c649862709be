#include "selection.hpp"

#include <mpi_router/io/moe/layer_names.hpp>

#include <algorithm>

namespace verify {

namespace {

using mpi_router::detail::moe::number_of;

/// The parts of a list between its commas.
std::vector<std::string_view> parts_of(std::string_view text) {
  std::vector<std::string_view> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const auto end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

/// As its name says, or its place.
index_t number_of_layer(const moe_layers& found, std::size_t i) {
  const auto place = mpi_router::detail::moe::place_of_layer(found[i].name);
  return place ? place->number : static_cast<index_t>(i);
}

}  // namespace

std::optional<std::vector<index_t>> numbers_of_list(const std::string& text) {
  constexpr index_t most = 100'000;
  std::vector<index_t> out;
  for (const std::string_view part : parts_of(text)) {
    const auto dash = part.find('-');
    const auto first = number_of(part.substr(0, dash));
    const auto last = dash == part.npos ? first : number_of(part.substr(dash + 1));
    if (!first || !last || *last < *first || *last >= most) {
      return std::nullopt;
    }
    for (index_t i = *first; i <= *last; ++i) {
      out.push_back(i);
    }
  }
  std::ranges::sort(out);
  return out;
}

chosen_layers choose(const moe_layers& found, const selection& wanted) {
  chosen_layers out;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const bool asked =
        wanted.layers.empty() || std::ranges::binary_search(wanted.layers, number_of_layer(found, i));
    (asked ? out.asked : out.skipped).push_back(&found[i]);
  }
  return out;
}

std::vector<index_t> lone_numbers(const std::string& list) {
  std::vector<index_t> out;
  for (const std::string_view part : parts_of(list)) {
    if (const auto number = number_of(part)) {
      out.push_back(*number);
    }
  }
  return out;
}

bool has_number(const moe_layers& found, index_t number) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (number_of_layer(found, i) == number) {
      return true;
    }
  }
  return false;
}

std::vector<index_t> experts_of(const moe_layer& layer, std::optional<index_t> sample) {
  const index_t all = layer.num_experts;
  const index_t count = std::min(sample.value_or(all), all);
  std::vector<index_t> out;
  for (index_t i = 0; i < count; ++i) {
    out.push_back((2 * i + 1) * all / (2 * count));
  }
  return out;
}

}  // namespace verify
