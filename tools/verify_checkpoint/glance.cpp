#include "glance.hpp"

#include <mpi_router/io/file_error.hpp>
#include <mpi_router/io/moe/names.hpp>

#include <algorithm>
#include <filesystem>
#include <map>

namespace verify {

namespace {

using mpi_router::status;
using mpi_router::io::printable;  // for every name: it comes from a file, and this goes to a terminal

/// "; 3 degenerate: 4 zero_row, 6-7 non_finite; no certificate: 2": experts by their numbers.
std::string exceptions_of(const layer_result& layer) {
  std::map<std::string_view, std::vector<index_t>> by_state;
  std::vector<index_t> unproven;
  std::size_t degenerate = 0;
  for (const auto& e : layer.experts) {
    if (e.state != status::ok) {
      by_state[to_string(e.state)].push_back(e.expert);
      ++degenerate;
    } else if (!has_direction(e)) {
      unproven.push_back(e.expert);
    }
  }
  std::string out = degenerate > 0 ? fmt::format("; {} degenerate:", degenerate) : "";
  for (const auto& [state, numbers] : by_state) {
    out += fmt::format("{} {} {}", out.ends_with(':') ? "" : ",", mpi_router::ranges_of(numbers), state);
  }
  return out + (unproven.empty() ? "" : "; no certificate: " + mpi_router::ranges_of(unproven));
}

/// "FILE NAME" of a layer.
std::string label_of(const checkpoint_result& c, const layer_result& layer) {
  const std::filesystem::path path(c.path);
  const auto last = path.has_filename() ? path.filename() : path.parent_path().filename();  // "folder/"
  return printable(last.string() + " " + layer.layer->name);
}

/// The fewest and the most steps, and how many rows have not arrived.
std::string range_of_steps(const layer_result& layer, index_t max_steps) {
  const auto steps = summarise(
      layer.experts, [](const auto& e) { return e.steps ? static_cast<double>(*e.steps) : unknown; });
  const auto unfinished =
      std::ranges::count_if(layer.experts, [](const auto& e) { return e.state == status::ok && !e.steps; });
  const std::string range = std::isfinite(steps.low) ? fmt::format("{}–{}", steps.low, steps.high) : "-";
  return unfinished > 0 ? fmt::format("{}, {} > {}", range, unfinished, max_steps) : range;
}

std::string glance_line(const layer_result& layer, const std::string& label, std::size_t width,
                        index_t max_steps, const painter& paint) {
  const auto before =
      summarise(layer.experts, [](const auto& e) { return has_direction(e) ? e.cosine_stored : unknown; });
  const auto after =
      summarise(layer.experts, [](const auto& e) { return has_direction(e) ? e.cosine_step : unknown; });
  const auto lambda = summarise(layer.experts, [](const auto& e) { return e.lambda_step; });
  const auto rigorous =
      std::ranges::count(layer.experts, std::string_view("rigorous"), &expert_result::certificate);
  const auto probable =
      std::ranges::count(layer.experts, std::string_view("probabilistic"), &expert_result::certificate);
  return fmt::format("{:<{}}  {} {}  {}  {:>15}  {:>11}  {} of {}{}{}\n", label, width,
                     paint.cosine(before.mean, cell(before.mean, 6, 3)),
                     paint.cosine(after.mean, cell(after.mean, 7, 3)), cell(lambda.mean, 6, 3),
                     fmt::format("({:.3f})", null_of(*layer.layer).one_step),
                     range_of_steps(layer, max_steps), rigorous + probable, layer.experts.size(),
                     probable > 0 ? fmt::format(" ({} probabilistic)", probable) : "", exceptions_of(layer));
}

}  // namespace

std::string glance(const std::vector<checkpoint_result>& checkpoints, const table_options& options,
                   const painter& paint) {
  std::size_t width = 5;
  for (const auto& c : checkpoints) {
    for (const auto& layer : c.layers) {
      width = std::max(width, label_of(c, layer).size());
    }
  }
  std::string out = paint.faint(fmt::format("{:<{}}  {:>6} {:>7} {:>7}  {:>15}  {:>11}  {}", "layer (means)",
                                            width, "cosine", "+1", "λ +1", "(null)", "steps", "proven"));
  out += '\n';
  for (const auto& c : checkpoints) {
    for (const auto& layer : c.layers) {
      out += glance_line(layer, label_of(c, layer), width, options.max_steps, paint);
    }
  }
  return out;
}

}  // namespace verify
