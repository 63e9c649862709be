#include "selection.hpp"

#include <mpi_router/io/moe/layer_names.hpp>

#include <algorithm>

namespace verify {

std::optional<std::vector<index_t>> numbers_of_list(const std::string& text) {
  using mpi_router::detail::moe::number_of;
  constexpr index_t most = 100'000;
  std::vector<index_t> out;
  for (std::size_t begin = 0; begin <= text.size();) {
    const auto end = std::min(text.find(',', begin), text.size());
    const std::string_view part = std::string_view(text).substr(begin, end - begin);
    const auto dash = part.find('-');
    const auto first = number_of(part.substr(0, dash));
    const auto last = dash == part.npos ? first : number_of(part.substr(dash + 1));
    if (!first || !last || *last < *first || *last >= most) {
      return std::nullopt;
    }
    for (index_t i = *first; i <= *last; ++i) {
      out.push_back(i);
    }
    begin = end + 1;
  }
  std::ranges::sort(out);
  return out;
}

chosen_layers choose(const moe_layers& found, const selection& wanted) {
  chosen_layers out;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const auto place = mpi_router::detail::moe::place_of_layer(found[i].name);
    const index_t number = place ? place->number : static_cast<index_t>(i);
    const bool asked = wanted.layers.empty() || std::ranges::binary_search(wanted.layers, number);
    (asked ? out.asked : out.skipped).push_back(&found[i]);
  }
  return out;
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
