#include "compare_results.hpp"

#include <fmt/format.h>

namespace verify {

comparison_coverage coverage_of(const comparison_result& result) {
  comparison_coverage out;
  out.layers_skipped = result.layers_skipped;
  out.experts_skipped = result.experts_skipped;
  const auto add = [&](index_t layers, index_t experts) {
    out.layers += layers;
    out.experts += experts;
  };
  for (const auto& pair : result.layers) {
    const auto pairs = static_cast<index_t>(pair.pairs.size());
    if (!pair.problem.empty()) {
      add(1, std::max(pair.a->num_experts, pair.b->num_experts));
      continue;
    }
    add(1, pairs + static_cast<index_t>(pair.only_a.size() + pair.only_b.size()));
    ++out.layers_compared;
    out.experts_compared += pairs;
  }
  for (const auto* some : {&result.only_a, &result.only_b}) {
    for (const auto* layer : *some) {
      add(1, layer->num_experts);
    }
  }
  for (const auto* found : {result.found_a, result.found_b}) {
    for (const auto& other : found->omissions) {
      if (other.kind != omission_kind::set_aside) {
        add(other.layers, other.rows);
      }
    }
  }
  return out;
}

std::string describe(const comparison_coverage& covered) {
  const auto asked = fmt::format("{} of {} layers, {} of {} experts compared", covered.layers_compared,
                                 covered.layers, covered.experts_compared, covered.experts);
  return covered.layers_skipped == 0
             ? asked
             : fmt::format("{}; {} layer{} with {} experts not asked for", asked, covered.layers_skipped,
                           covered.layers_skipped == 1 ? "" : "s", covered.experts_skipped);
}

}  // namespace verify
