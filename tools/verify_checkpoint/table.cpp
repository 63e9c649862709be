#include "table.hpp"

#include "coverage.hpp"
#include "glance.hpp"
#include "hints.hpp"
#include "table_style.hpp"

#include <mpi_router/io/file_error.hpp>

#include <algorithm>
#include <numeric>

namespace verify {

namespace {

using mpi_router::status;
using mpi_router::io::printable;  // for every name: it comes from a file, and this goes to a terminal

std::string steps_cell(const expert_result& e, const table_options& options) {
  return e.steps                 ? fmt::format("{}", *e.steps)
         : e.state == status::ok ? fmt::format("> {}", options.max_steps)
                                 : std::string("-");
}

double gap_of(const expert_result& e) { return e.sigma_1 > 0 ? e.sigma_2 / e.sigma_1 : unknown; }

/// "8 – 12" where experts differ.
std::string describe_ffn_dim(const moe_layer& layer) {
  const auto least = std::ranges::min(layer.gates, {}, &mpi_router::gate_block::ffn_dim).ffn_dim;
  return least == layer.ffn_dim ? fmt::format("{}", least) : fmt::format("{} to {}", least, layer.ffn_dim);
}

/// The name of a layer's tensor without what the layer itself is called.
std::string_view within(const moe_layer& layer, std::string_view tensor) {
  const bool inside = !layer.name.empty() && tensor.starts_with(layer.name + ".");
  return inside ? tensor.substr(layer.name.size() + 1) : tensor;
}

/// What is not as in the paper.
std::string notes_of(const moe_layer& layer) {
  std::string out;
  if (layer.part == mpi_router::expert_part::up && layer.measured.empty()) {
    out += "; no gates: the up projections take their place";
  }
  if (layer.latent != nullptr) {
    out += fmt::format("; experts see P x of {} dimensions, A P is measured, P = {}", layer.gate_dim(),
                       printable(within(layer, layer.latent->name())));
  }
  if (layer.selects_by_table) {
    out += "; selection not by rows: a table of token ids chooses the experts";
  }
  if (layer.first_expert > 0) {
    out += fmt::format("; a group of its own: expert 0 is what names call {}", layer.first_expert);
  }
  if (!layer.measured.empty()) {
    out += fmt::format("; of {}:", to_string(weights_of(layer)));
    for (const auto& part : layer.measured) {
      const auto& block = part.blocks.front();
      out += fmt::format(
          "{} {} {} {} {}{} by {}", &part == &layer.measured.front() ? "" : ",", to_string(part.part),
          printable(within(layer, part.name)), block.tensor->stored_as(), meaning_of(part.layout),
          block.half == mpi_router::fused_half::up ? ", the up half" : "", part.layout_known_by);
    }
  }
  return out;
}

/// What was found, and how it was read.
std::string describe_layer(const moe_layer& layer, const painter& paint) {
  const auto& gate = layer.gates.front();
  const bool one_each = layer.has_one_tensor_each();
  const bool flat = !one_each && gate.tensor->rank() == 2 && layer.num_experts > 1;
  const std::string stored =
      one_each || !flat ? std::string(meaning_of(layer.layout)) : "flattened to [N·F, D]";
  const std::string turned = layer.layout_of_router == mpi_router::router_layout::dn ? " [D, N]" : "";
  const std::string notes = notes_of(layer);
  return paint.bold(layer.name.empty() ? "(no prefix)" : printable(layer.name)) + ": " +
         fmt::format("{} expert{}, F = {}, D = {}", layer.num_experts, layer.num_experts == 1 ? "" : "s",
                     describe_ffn_dim(layer), layer.hidden_dim) +
         notes +
         paint.faint(fmt::format("; names as in {}; router {} {}{}, gates {} {} {}{} by {}", layer.family,
                                 printable(within(layer, layer.router->name())), layer.router->stored_as(),
                                 turned, printable(within(layer, layer.gate_name)), gate.tensor->stored_as(),
                                 stored, one_each ? ", one tensor an expert," : "", layer.layout_known_by));
}

std::vector<std::size_t> order_of(const layer_result& layer, bool worst_first) {
  std::vector<std::size_t> order(layer.experts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (worst_first) {
    const auto badness = [&](std::size_t i) {  // rows without a direction come first
      const auto& e = layer.experts[i];
      return e.state != status::ok ? 2 : 1 - e.cosine_step;
    };
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return badness(a) > badness(b); });
  }
  return order;
}

std::string format_layer(const layer_result& result, const table_options& options, const painter& paint) {
  const auto null = null_of(*result.layer);
  const double null_cosine =
      std::sqrt(2 / (std::numbers::pi * static_cast<double>(result.layer->hidden_dim)));
  std::string out = describe_layer(*result.layer, paint) + "\n";
  out += paint.faint(
      fmt::format("  {:>6}  {:>6}  {:>6} {:>6}  {:>9}  {:>6} {:>6}  {:>9}  {:>9}  {:<23}  {:>7}", "expert",
                  "σ₂/σ₁", "cosine", "+1", "angle", "λ", "+1", "ρ", "residual", "proven angle", "steps"));
  out += '\n';
  for (const auto i : order_of(result, options.worst_first)) {
    const auto& e = result.experts[i];
    const std::string proof = e.state != status::ok ? std::string(to_string(e.state))
                              : e.certificate == "none"
                                  ? "none"
                                  : fmt::format("≤{} {}", angle_cell(e.angle_bound, 0), e.certificate);
    const char* mark = std::isfinite(e.cosine_stored) && !has_direction(e) ? "?" : " ";
    out += fmt::format("  {:>6}  {}  {}{}{}{} {}  {} {}  {}  {}  {:<23}  {:>7}\n", e.expert,
                       cell(gap_of(e), 6, 3), paint.cosine(e.cosine_stored, cell(e.cosine_stored, 6, 3)),
                       mark, paint.cosine(e.cosine_step, cell(e.cosine_step, 6, 3)), mark,
                       angle_cell(e.angle, 9), cell(e.lambda_stored, 6, 3), cell(e.lambda_step, 6, 3),
                       scientific(e.rayleigh, 9), scientific(e.residual, 9), proof, steps_cell(e, options));
  }
  out +=
      paint.faint(fmt::format("  {:>6}  {:>6}  {} {:>6}  {:>9}  {} {}", "null", "", cell(null_cosine, 6, 3),
                              "", "", cell(null.stored, 6, 3), cell(null.one_step, 6, 3)));
  return out + "\n";
}

std::string legend(const std::string& measured, const table_options& options, const painter& paint) {
  std::string out = fmt::format(
      "Each row of a Mixture-of-Experts router should point where its expert responds most: along the\n"
      "principal right singular direction of the expert's {}. A step of Manifold Power\n"
      "Iteration turns the row towards it. For every expert:\n",
      measured);
  const auto line = [&](const char* word, const std::string& meaning) {
    out += fmt::format("  {}{}\n", paint.bold(fmt::format("{:<15}", word)), meaning);
  };
  line("cosine, angle", options.exact
                            ? "between the stored row and that direction, by an SVD; +1: after one step"
                            : "between the stored row and the direction that was found; +1: after one step");
  line("σ₂/σ₁", "second to first singular value: the smaller, the fewer steps are needed");
  line("λ", "response of the expert to the row, of the strongest there is: ‖rW‖ / (‖r‖ σ₁)");
  line("ρ, residual", "Rayleigh quotient of the row and its distance from being stationary");
  line("proven angle",
       "what is certain of the angle without an SVD: a rigorous bound, or one with a failure");
  out += fmt::format("  {:<15}probability of at most 1e-6 (probabilistic)\n", "");
  line("steps",
       fmt::format("from the stored row until the sine of the angle is at most {:g}", options.tolerance));
  line("?", "no certificate, perhaps no one such direction: the cosines enter no mean");
  line("null", "the same numbers for random rows and matrices: λ says little unless it is well above");
  return out;
}

/// The command lines that name layers which were found without a family's names.
std::string format_names(const checkpoint_result& c, const std::vector<std::string>& again) {
  std::vector<std::string> commands;
  for (const auto& result : c.layers) {
    const auto command = command_for(again, c.path, *result.layer);
    if (!command.empty() && std::ranges::find(commands, command) == commands.end()) {
      commands.push_back(command);
    }
  }
  std::string out;
  for (const auto& command : commands) {
    out += fmt::format("found by what names look like and by shapes; to name it: {}\n",
                       printable(command, 8192));
  }
  return out;
}

}  // namespace

std::string format_left_out(const std::vector<left_out>& all, bool colour) {
  const painter paint{colour};
  std::string out;
  for (const auto& one : all) {
    out += fmt::format("{} {}: {}\n", paint(fg(fmt::terminal_color::yellow), one.what + ":"),
                       printable(one.name), printable(one.reason, 1000));
    for (const auto& command : one.commands) {
      out += fmt::format("  if it is so: {}\n", printable(command, 8192));
    }
  }
  return out;
}

std::string format_unmatched(const std::vector<omission>& omissions, bool colour,
                             const std::vector<std::string>& again, const std::string& path) {
  std::vector<left_out> all;
  for (const auto& other : omissions) {
    all.push_back({std::string(word_for(other.kind)), other.name, other.reason,
                   again.empty() ? std::vector<std::string>() : commands_for(again, path, other)});
  }
  return format_left_out(all, colour);
}

std::string format_table(const std::vector<checkpoint_result>& checkpoints, const table_options& options) {
  const painter paint{options.colour};
  std::string out =
      options.experts && !checkpoints.empty() ? legend(measured_of(checkpoints.front()), options, paint) : "";
  for (const auto& c : checkpoints) {
    out += fmt::format("{}{}\n", out.empty() ? "" : "\n", paint.bold(printable(c.path, 4096)));
    for (const auto& layer : c.layers) {
      out += options.experts ? fmt::format("\n{}", format_layer(layer, options, paint))
                             : fmt::format("{}\n", describe_layer(*layer.layer, paint));
    }
    out += format_unmatched(c.found->omissions, options.colour, options.again, c.path) +
           format_names(c, options.again);
  }
  return fmt::format("{}\n{}{}\n", out, glance(checkpoints, options, paint),
                     printable(describe_seen(coverage_of(checkpoints)), 4096));
}

std::string format_list(const std::vector<checkpoint_result>& checkpoints, bool colour,
                        const std::vector<std::string>& again) {
  const painter paint{colour};
  std::string out;
  index_t layers = 0;
  index_t rows = 0;
  for (const auto& c : checkpoints) {
    out += fmt::format("{}\n", paint.bold(printable(c.path, 4096)));
    for (const auto& result : c.layers) {
      out += describe_layer(*result.layer, paint) + "\n";
      ++layers;
      rows += result.layer->num_experts;
    }
    out += format_unmatched(c.found->omissions, colour, again, c.path) + format_names(c, again);
  }
  return out + fmt::format("{} layer{}, {} rows would be looked at\n", layers, layers == 1 ? "" : "s", rows);
}

}  // namespace verify
