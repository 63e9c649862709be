#include "records.hpp"

#include <mpi_router/core/version.hpp>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cmath>

namespace verify {

nlohmann::ordered_json number(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

namespace {

using json = nlohmann::ordered_json;

json expert_record(const expert_result& e) {
  return {{"expert", e.expert},
          {"sigma1", number(e.sigma_1)},
          {"sigma2", number(e.sigma_2)},
          {"sigma2_from", e.sigma_2_from},
          {"cosine_stored", number(e.cosine_stored)},
          {"cosine_step", number(e.cosine_step)},
          {"lambda_stored", number(e.lambda_stored)},
          {"lambda_step", number(e.lambda_step)},
          {"rayleigh", number(e.rayleigh)},
          {"residual", number(e.residual)},
          {"angle_bound", number(e.angle_bound)},
          {"certificate", e.certificate},
          {"steps", e.steps ? json(*e.steps) : json(nullptr)},
          {"status", to_string(e.state)}};
}

/// What is measured where that is not the gates alone.
json matrices_record(const moe_layer& layer) {
  json out = json::array();
  for (const auto& part : layer.measured) {
    out.push_back({{"part", to_string(part.part)},
                   {"weight", part.weight},
                   {"tensor", part.name},
                   {"dtype", part.blocks.front().tensor->stored_as()},
                   {"layout", to_string(part.layout)},
                   {"layout_known_by", part.layout_known_by}});
  }
  return out;
}

std::string_view kind_of(omission_kind what) {
  switch (what) {
    case omission_kind::set_aside: return "set aside";
    case omission_kind::unseen: return "not looked at";
    case omission_kind::missing: return "missing";
  }
  return "";
}

json coverage_record(const coverage& c) {
  return {{"layers", c.layers},
          {"layers_looked_at", c.layers_seen},
          {"layers_certified", c.layers_certified},
          {"rows", c.rows},
          {"rows_looked_at", c.rows_seen},
          {"rows_certified", c.rows_certified},
          {"layers_not_asked_for", c.layers_skipped},
          {"rows_not_asked_for", c.rows_skipped},
          {"complete", c.is_complete()},
          {"summary", describe_seen(c)}};
}

/// A field of a CSV line, quoted where it must be.
std::string field(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == text.npos) {
    return text;
  }
  std::string out = "\"";
  for (const char c : text) {
    out += c == '"' ? "\"\"" : std::string(1, c);
  }
  return out + "\"";
}

}  // namespace

json layer_record(const std::string& file, const layer_result& result) {
  const auto& layer = *result.layer;
  json experts = json::array();
  for (const auto& e : result.experts) {
    experts.push_back(expert_record(e));
    if (!layer.is_uniform()) {
      experts.back()["ffn_dim"] = layer.gates[static_cast<std::size_t>(e.expert)].ffn_dim;
    }
  }
  json record{{"file", file},
              {"name", layer.name},
              {"family", layer.family},
              {"router", layer.router->name()},
              {"router_layout", to_string(layer.layout_of_router)},
              {"router_dtype", layer.router->stored_as()},
              {"router_rows", layer.router_rows},
              {"gate", layer.gate_name},
              {"part", to_string(layer.part)},
              {"latent", layer.latent == nullptr ? json(nullptr) : json(layer.latent->name())},
              {"selects_by_table", layer.selects_by_table},
              {"layout", to_string(layer.layout)},
              {"layout_known_by", layer.layout_known_by},
              {"dtype", layer.gates.front().tensor->stored_as()},
              {"num_experts", layer.num_experts},
              {"ffn_dim", layer.is_uniform() ? json(layer.ffn_dim) : json(nullptr)},
              {"hidden_dim", layer.hidden_dim},
              {"experts", std::move(experts)}};
  if (layer.first_expert > 0) {
    record["first_expert"] = layer.first_expert;
  }
  if (!layer.measured.empty()) {
    record["of"] = to_string(weights_of(layer));
    record["matrices"] = matrices_record(layer);
  }
  return record;
}

std::string to_json(const std::vector<checkpoint_result>& checkpoints, const analysis_options& options,
                    const coverage& covered) {
  json layers = json::array();
  json others = json::array();
  for (const auto& c : checkpoints) {
    for (const auto& result : c.layers) {
      layers.push_back(layer_record(c.path, result));
    }
    for (const auto& other : c.found->omissions) {
      others.push_back({{"file", c.path},
                        {"name", other.name},
                        {"reason", other.reason},
                        {"what", kind_of(other.kind)},
                        {"layers", other.layers},
                        {"rows", other.rows}});
    }
  }
  json document{{"version", fmt::format("{}.{}.{}", MPIROUTER_VERSION_MAJOR, MPIROUTER_VERSION_MINOR,
                                        MPIROUTER_VERSION_PATCH)},
                {"tolerance", options.tolerance},
                {"max_steps", options.max_steps},
                {"exact", options.spectrum != spectrum_choice::never},
                {"coverage", coverage_record(covered)},
                {"layers", std::move(layers)},
                {"unmatched", std::move(others)}};
  if (options.device != nullptr) {
    document["device"] = options.device->name();
  }
  return document.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

std::string to_csv(const std::vector<checkpoint_result>& checkpoints) {
  std::string out = "file,layer,expert,step,rho,residual,angle\n";
  for (const auto& c : checkpoints) {
    for (const auto& result : c.layers) {
      const std::string place = field(c.path) + "," + field(result.layer->name);
      for (const auto& e : result.experts) {
        for (const auto& at : e.trace) {
          out += fmt::format("{},{},{},{:.17g},{:.17g},{:.17g}\n", place, e.expert, at.step, at.rayleigh,
                             at.residual, at.angle);
        }
      }
    }
  }
  return out;
}

}  // namespace verify
