#include "records.hpp"

#include <mpi_router/core/version.hpp>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cmath>

namespace verify {

namespace {

using json = nlohmann::ordered_json;

json number(double value) { return std::isfinite(value) ? json(value) : json(nullptr); }

json expert_record(const expert_report& e) {
  return {{"expert", e.expert},
          {"sigma1", number(e.sigma_1)},
          {"sigma2", number(e.sigma_2)},
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

std::string to_json(const std::vector<checkpoint_report>& checkpoints, const analysis_options& options) {
  json layers = json::array();
  json others = json::array();
  for (const auto& c : checkpoints) {
    for (const auto& report : c.layers) {
      json experts = json::array();
      for (const auto& e : report.experts) {
        experts.push_back(expert_record(e));
      }
      layers.push_back({{"file", c.path},
                        {"name", report.layer->name},
                        {"num_experts", report.layer->num_experts},
                        {"ffn_dim", report.layer->ffn_dim},
                        {"hidden_dim", report.layer->hidden_dim},
                        {"experts", std::move(experts)}});
    }
    for (const auto& other : c.found->others) {
      others.push_back({{"file", c.path}, {"name", other.name}, {"reason", other.reason}});
    }
  }
  const json document{{"version", fmt::format("{}.{}.{}", MPIROUTER_VERSION_MAJOR, MPIROUTER_VERSION_MINOR,
                                              MPIROUTER_VERSION_PATCH)},
                      {"tolerance", options.tolerance},
                      {"max_steps", options.max_steps},
                      {"exact", options.exact},
                      {"layers", std::move(layers)},
                      {"unmatched", std::move(others)}};
  return document.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

std::string to_csv(const std::vector<checkpoint_report>& checkpoints) {
  std::string out = "file,layer,expert,step,rho,residual,angle\n";
  for (const auto& c : checkpoints) {
    for (const auto& report : c.layers) {
      const std::string place = field(c.path) + "," + field(report.layer->name);
      for (const auto& e : report.experts) {
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
