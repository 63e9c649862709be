#include "compare_results.hpp"

#include <mpi_router/io/moe/names.hpp>

#include <fmt/format.h>

#include <algorithm>

namespace verify {

namespace {

std::string shown(const moe_layer& layer) { return layer.name.empty() ? "(no prefix)" : layer.name; }

/// Without what the other checkpoint has as a layer, which counts there.
void add(const omission* one, const std::vector<const moe_layer*>& there, common_omission& out) {
  if (one == nullptr || one->kind == omission_kind::set_aside) {
    return;
  }
  const auto same =
      std::ranges::find_if(there, [&](const auto* l) { return l->router->name() == one->name; });
  const bool counted = same != there.end();
  out.layers = std::max(out.layers, one->layers - (counted ? 1 : 0));
  out.rows = std::max(out.rows, one->rows - (counted ? (*same)->num_experts : 0));
}

/// The experts of one that have no counterpart in the other.
void add_experts(const layer_comparison& pair, const std::vector<index_t>& some, char in, char missing_in,
                 std::vector<left_out>& out) {
  if (!some.empty()) {
    const bool one = some.size() == 1;
    out.push_back({"not compared", name_of(pair),
                   fmt::format("expert{} {} of {} {} no counterpart in {}", one ? "" : "s",
                               mpi_router::ranges_of(some), in, one ? "has" : "have", missing_in)});
  }
}

}  // namespace

std::vector<common_omission> omissions_of(const comparison_result& result) {
  std::vector<common_omission> all;
  for (const auto& one : result.found_a->omissions) {
    all.push_back({&one, nullptr});
  }
  for (const auto& one : result.found_b->omissions) {
    const auto same = std::ranges::find_if(
        all, [&](const auto& o) { return o.a != nullptr && o.b == nullptr && o.a->name == one.name; });
    if (same != all.end()) {
      same->b = &one;
    } else {
      all.push_back({nullptr, &one});
    }
  }
  for (auto& each : all) {
    add(each.a, result.only_b, each);
    add(each.b, result.only_a, each);
  }
  return all;
}

std::vector<left_out> left_out_of(const comparison_result& result,
                                  const std::function<std::vector<std::string>(const omission&)>& commands) {
  std::vector<left_out> out;
  for (const auto& pair : result.layers) {
    if (!pair.problem.empty()) {
      out.push_back({"not compared", name_of(pair), pair.problem});
    }
    add_experts(pair, pair.only_a, 'A', 'B', out);
    add_experts(pair, pair.only_b, 'B', 'A', out);
  }
  for (const auto* layer : result.only_a) {
    out.push_back({"not compared", shown(*layer), "a layer of A alone"});
  }
  for (const auto* layer : result.only_b) {
    out.push_back({"not compared", shown(*layer), "a layer of B alone"});
  }
  const auto add_omission = [&](const omission& one, const char* where) {
    out.push_back({fmt::format("{} in {}", word_for(one.kind), where), one.name, one.reason, commands(one)});
  };
  for (const auto& [a, b, layers, rows] : omissions_of(result)) {
    const bool alike = a != nullptr && b != nullptr && a->reason == b->reason && a->kind == b->kind;
    if (a != nullptr) {
      add_omission(*a, alike ? "A and B" : "A");
    }
    if (b != nullptr && !alike) {
      add_omission(*b, "B");
    }
  }
  return out;
}

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
  for (const auto& other : omissions_of(result)) {
    add(other.layers, other.rows);
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

std::string name_of(const layer_comparison& pair) {
  return pair.a->name == pair.b->name ? shown(*pair.a) : shown(*pair.a) + " and " + shown(*pair.b);
}

std::string describe_flips(const comparison_result& result) {
  return result.top_k ? fmt::format("K = {} of {}, {}", *result.top_k, result.top_k_from, result.tokens)
                      : "none without K, which no config says; --top-k does";
}

double relative_change(const pair_result& e) {
  return e.change && e.a.sigma_1 > 0 ? e.change->value / e.a.sigma_1 : unknown;
}

}  // namespace verify
