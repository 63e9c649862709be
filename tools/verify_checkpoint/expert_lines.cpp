#include "expert_lines.hpp"

#include <mpi_router/verify/certificate.hpp>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdlib>
#include <stdexcept>

namespace verify {

namespace {

using json = nlohmann::ordered_json;
using mpi_router::certainty;
using mpi_router::status;

/// Calls visit(name, number) for each number that may be unknown.
template <class Result, class Visit>
void each_number(Result& e, Visit visit) {
  // A new member breaks this line: it wants its place in the visits, or in the two functions at the end.
  auto& [expert, state, sigma_1, sigma_2, sigma_2_from, cosine_stored, cosine_step, lambda_stored,
         lambda_step, rayleigh, residual, angle, angle_bound, certificate, steps, trace] = e;
  visit("sigma1", sigma_1);
  visit("sigma2", sigma_2);
  visit("cosine_stored", cosine_stored);
  visit("cosine_step", cosine_step);
  visit("lambda_stored", lambda_stored);
  visit("lambda_step", lambda_step);
  visit("rayleigh", rayleigh);
  visit("residual", residual);
  visit("angle", angle);
  visit("angle_bound", angle_bound);
}

/// JSON has no infinity and no NaN with a sign, and a table or CSV would show them.
json exact(double value) {
  if (std::isfinite(value)) {
    return value;
  }
  return std::isnan(value) && !std::signbit(value) ? json(nullptr) : json(fmt::format("{}", value));
}

double exact(const json& value) {
  if (value.is_null()) {
    return unknown;
  }
  if (!value.is_string()) {
    return value.get<double>();
  }
  const auto& word = value.get_ref<const std::string&>();
  for (const double other :
       {HUGE_VAL, -HUGE_VAL, std::copysign(std::numeric_limits<double>::quiet_NaN(), -1.0)}) {
    if (word == fmt::format("{}", other)) {
      return other;
    }
  }
  throw std::invalid_argument(word);
}

index_t whole(const json& value) {
  if (!value.is_number_integer() || value < 0) {
    throw std::invalid_argument(value.dump());
  }
  return value.get<index_t>();
}

/// The one of `values` whose name this is.
template <class Value>
Value named(const json& name, std::initializer_list<Value> values) {
  for (const auto value : values) {
    if constexpr (std::is_same_v<Value, std::string_view>) {
      if (name == value) {
        return value;
      }
    } else if (name == to_string(value)) {
      return value;
    }
  }
  throw std::invalid_argument(name.dump());
}

}  // namespace

std::string to_line(const placed_result& one) {
  const auto& e = one.result;
  json line{{"layer", one.layer},
            {"expert", e.expert},
            {"status", to_string(e.state)},
            {"certificate", e.certificate},
            {"sigma2_from", e.sigma_2_from},
            {"steps", e.steps ? json(*e.steps) : json(nullptr)}};
  each_number(e, [&](const char* name, double value) { line[name] = exact(value); });
  for (const auto& at : e.trace) {
    line["trace"].push_back({at.step, exact(at.rayleigh), exact(at.residual), exact(at.angle)});
  }
  return line.dump();
}

std::optional<placed_result> from_line(std::string_view text) {
  try {
    const auto line = json::parse(text);
    placed_result one{static_cast<std::size_t>(whole(line.at("layer"))), {}};
    auto& e = one.result;
    e.expert = whole(line.at("expert"));
    e.state = named(line.at("status"), {status::ok, status::zero_row, status::zero_image, status::non_finite,
                                        status::masked, status::closed_expert});
    e.certificate = to_string(named(line.at("certificate"), {certainty::none, certainty::heuristic,
                                                             certainty::probabilistic, certainty::rigorous}));
    e.sigma_2_from = named<std::string_view>(line.at("sigma2_from"), {"none", "svd", "ritz (estimate)"});
    if (const auto& steps = line.at("steps"); !steps.is_null()) {
      e.steps = whole(steps);
    }
    each_number(e, [&](const char* name, double& value) { value = exact(line.at(name)); });
    for (const auto& at : line.value("trace", json::array())) {
      e.trace.push_back({whole(at.at(0)), exact(at.at(1)), exact(at.at(2)), exact(at.at(3))});
    }
    return one;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

}  // namespace verify
