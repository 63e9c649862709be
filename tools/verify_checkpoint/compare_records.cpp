#include "compare_records.hpp"

#include "records.hpp"

#include <mpi_router/core/version.hpp>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cmath>

namespace verify {

namespace {

using json = nlohmann::ordered_json;

json version_record(const version_result& v) {
  return {{"expert", v.expert},
          {"ffn_dim", v.ffn_dim},
          {"cosine_stored", number(v.cosine_stored)},
          {"sigma1", number(v.sigma_1)},
          {"sigma2", number(v.sigma_2)},
          {"sigma2_from", v.sigma_2_from}};
}

json pair_record(const pair_result& e) {
  const bool is_bounded = e.wedin.label != mpi_router::certainty::none;
  const bool has_norm = e.change && e.change->state != mpi_router::status::non_finite;
  return {
      {"a", version_record(e.a)},
      {"b", version_record(e.b)},
      {"row_cosine", number(e.row.cosine)},
      {"row_angle", number(e.row.angle)},
      {"direction_cosine", number(e.direction.cosine)},
      {"direction_angle", number(e.direction.angle)},
      {"direction_uncertainty", number(std::isfinite(e.direction.angle) ? e.direction.uncertainty : unknown)},
      {"change_norm", has_norm ? number(e.change->value) : json(nullptr)},
      {"change_norm_bound", has_norm ? number(e.change->high) : json(nullptr)},
      {"wedin_angle", is_bounded ? number(e.wedin.angle) : json(nullptr)},
      {"wedin_certificate", to_string(e.wedin.label)}};
}

json layer_record(const layer_comparison& pair) {
  json experts = json::array();
  for (const auto& e : pair.pairs) {
    experts.push_back(pair_record(e));
  }
  return {{"a", pair.a->name},
          {"b", pair.b->name},
          {"problem", pair.problem},
          {"hidden_dim", {pair.a->hidden_dim, pair.b->hidden_dim}},
          {"num_experts", {pair.a->num_experts, pair.b->num_experts}},
          {"matched_by", pair.by_number ? "number" : "likeness"},
          {"only_a", pair.only_a},
          {"only_b", pair.only_b},
          {"flips_stored", number(pair.stored.flipped)},
          {"flips_step", number(pair.step.flipped)},
          {"flips_lost", number(pair.stored.lost)},
          {"experts", std::move(experts)}};
}

json names_of(const std::vector<const moe_layer*>& layers) {
  json names = json::array();
  for (const auto* layer : layers) {
    names.push_back(layer->name);
  }
  return names;
}

json omission_records(const moe_layers& found) {
  json out = json::array();
  for (const auto& other : found.omissions) {
    out.push_back({{"name", other.name}, {"reason", other.reason}});
  }
  return out;
}

}  // namespace

std::string to_json(const comparison_result& result) {
  json layers = json::array();
  for (const auto& pair : result.layers) {
    layers.push_back(layer_record(pair));
  }
  const auto covered = coverage_of(result);
  json document{{"version", fmt::format("{}.{}.{}", MPIROUTER_VERSION_MAJOR, MPIROUTER_VERSION_MINOR,
                                        MPIROUTER_VERSION_PATCH)},
                {"a", result.path_a},
                {"b", result.path_b},
                {"tokens", result.tokens},
                {"top_k", result.top_k ? json(*result.top_k) : json(nullptr)},
                {"coverage",
                 {{"layers", covered.layers},
                  {"layers_compared", covered.layers_compared},
                  {"experts", covered.experts},
                  {"experts_compared", covered.experts_compared},
                  {"layers_not_asked_for", covered.layers_skipped},
                  {"experts_not_asked_for", covered.experts_skipped},
                  {"complete", covered.is_complete()},
                  {"summary", describe(covered)}}},
                {"layers", std::move(layers)},
                {"only_a", names_of(result.only_a)},
                {"only_b", names_of(result.only_b)},
                {"unmatched_a", omission_records(*result.found_a)},
                {"unmatched_b", omission_records(*result.found_b)}};
  if (!result.device.empty()) {
    document["device"] = result.device;
  }
  return document.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace verify
