#include "report.hpp"

#include "coverage.hpp"

#include <mpi_router/io/file_error.hpp>
#include <mpi_router/verify/null_model.hpp>

#include <fmt/color.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <numbers>
#include <numeric>
#include <span>

namespace verify {

namespace {

using mpi_router::status;
using mpi_router::io::printable;  // for every name: it comes from a file, and this goes to a terminal

constexpr double degrees_per_radian = 180 / std::numbers::pi;

/// Text in a style, where styles are wanted.
struct painter {
  bool colour;

  [[nodiscard]] std::string operator()(const fmt::text_style& style, const std::string& text) const {
    return colour ? fmt::format(style, "{}", text) : text;
  }
  [[nodiscard]] std::string bold(const std::string& text) const { return (*this)(fmt::emphasis::bold, text); }
  [[nodiscard]] std::string faint(const std::string& text) const {
    return (*this)(fmt::emphasis::faint, text);
  }
  /// Green where the row is nearly there, yellow half way, red where it points elsewhere.
  [[nodiscard]] std::string cosine(double value, const std::string& text) const {
    return (*this)(fg(value >= 0.95  ? fmt::terminal_color::green
                      : value >= 0.6 ? fmt::terminal_color::yellow
                                     : fmt::terminal_color::red),
                   text);
  }
};

/// A number of the given width, or a dash.
std::string cell(double value, int width, int digits) {
  return std::isfinite(value) ? fmt::format("{:>{}.{}f}", value, width, digits)
                              : fmt::format("{:>{}}", "-", width);
}
std::string scientific(double value, int width) {
  return std::isfinite(value) ? fmt::format("{:>{}.2e}", value, width) : fmt::format("{:>{}}", "-", width);
}
/// An angle, in degrees down to a hundredth and in radians below.
std::string angle_cell(double radians, int width) {
  const double degrees = radians * degrees_per_radian;
  return !std::isfinite(radians)           ? fmt::format("{:>{}}", "-", width)
         : degrees >= 0.01 || radians == 0 ? fmt::format("{:>{}}", fmt::format("{:.2f}°", degrees), width)
                                           : fmt::format("{:>{}}", fmt::format("{:.0e} rad", radians), width);
}

std::string steps_cell(const expert_report& e, const report_options& options) {
  return e.steps                 ? fmt::format("{}", *e.steps)
         : e.state == status::ok ? fmt::format("> {}", options.max_steps)
                                 : std::string("-");
}

/// What the values of one column are over the experts of a layer, without the unknown ones.
struct column {
  double mean = unknown;
  double low = unknown;
  double high = unknown;
};

template <class Value>
column summarise(const layer_report& layer, Value value) {
  column result;
  double sum = 0;
  double count = 0;
  for (const auto& e : layer.experts) {
    const double x = value(e);
    if (std::isfinite(x)) {
      sum += x;
      result.low = count == 0 ? x : std::min(result.low, x);
      result.high = count == 0 ? x : std::max(result.high, x);
      ++count;
    }
  }
  result.mean = sum / count;
  return result;
}

double gap_of(const expert_report& e) { return e.sigma_1 > 0 ? e.sigma_2 / e.sigma_1 : unknown; }

/// "8 – 12" where experts differ.
std::string describe_ffn_dim(const moe_layer& layer) {
  const auto least = std::ranges::min(layer.gates, {}, &gate_block::ffn_dim).ffn_dim;
  return least == layer.ffn_dim ? fmt::format("{}", least) : fmt::format("{} to {}", least, layer.ffn_dim);
}

/// The name of a layer's tensor without what the layer itself is called.
std::string_view within(const moe_layer& layer, std::string_view tensor) {
  const bool inside = !layer.name.empty() && tensor.starts_with(layer.name + ".");
  return inside ? tensor.substr(layer.name.size() + 1) : tensor;
}

/// What was found, and how it was read.
std::string describe_layer(const moe_layer& layer, const painter& paint) {
  const auto& gate = layer.gates.front();
  const bool one_each = layer.gate_name.find(expert_mark) != layer.gate_name.npos;
  const bool flat = !one_each && gate.tensor->rank() == 2 && layer.num_experts > 1;
  const std::string stored = one_each || !flat ? std::string(meaning_of(layer.how)) : "flattened to [N·F, D]";
  const std::string turned = layer.router_how == router_layout::dn ? " [D, N]" : "";
  return paint.bold(layer.name.empty() ? "(no prefix)" : printable(layer.name)) + ": " +
         fmt::format("{} expert{}, F = {}, D = {}", layer.num_experts, layer.num_experts == 1 ? "" : "s",
                     describe_ffn_dim(layer), layer.hidden_dim) +
         paint.faint(fmt::format("; names as in {}; router {} {}{}, gates {} {} {}{} by {}", layer.family,
                                 printable(within(layer, layer.router->name())),
                                 to_string(layer.router->type()), turned,
                                 printable(within(layer, layer.gate_name)), to_string(gate.tensor->type()),
                                 stored, one_each ? ", one tensor an expert," : "", layer.how_known));
}

/// λ after one step, and before, for random rows and matrices of these shapes: the mean over the experts.
mpi_router::null_alignment null_of(const moe_layer& layer) {
  mpi_router::null_alignment sum{};
  for (const auto& gate : layer.gates) {
    const auto null = mpi_router::null_model(gate.ffn_dim, gate.hidden_dim);
    sum.stored += null.stored;
    sum.one_step += null.one_step;
  }
  const auto count = static_cast<double>(layer.gates.size());
  sum.stored /= count;
  sum.one_step /= count;
  return sum;
}

std::vector<std::size_t> order_of(const layer_report& layer, bool worst_first) {
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

std::string format_layer(const layer_report& report, const report_options& options, const painter& paint) {
  const auto null = null_of(*report.layer);
  const double null_cosine =
      std::sqrt(2 / (std::numbers::pi * static_cast<double>(report.layer->hidden_dim)));
  std::string out = describe_layer(*report.layer, paint) + "\n";
  out += paint.faint(
      fmt::format("  {:>6}  {:>6}  {:>6} {:>6}  {:>9}  {:>6} {:>6}  {:>9}  {:>9}  {:<23}  {:>7}", "expert",
                  "σ₂/σ₁", "cosine", "+1", "angle", "λ", "+1", "ρ", "residual", "proven angle", "steps"));
  out += '\n';
  for (const auto i : order_of(report, options.worst_first)) {
    const auto& e = report.experts[i];
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

std::string legend(const report_options& options, const painter& paint) {
  std::string out =
      "Each row of a Mixture-of-Experts router should point where its expert responds most: along the\n"
      "principal right singular direction of the expert's gate matrix. A step of Manifold Power\n"
      "Iteration turns the row towards it. For every expert:\n";
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

/// "; 3 degenerate: 4 zero_row, 6-7 non_finite; no certificate: 2": experts by their numbers.
std::string exceptions_of(const layer_report& layer) {
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
    out += fmt::format("{} {} {}", out.ends_with(':') ? "" : ",", ranges_of(numbers), state);
  }
  return out + (unproven.empty() ? "" : "; no certificate: " + ranges_of(unproven));
}

std::string glance(const std::vector<checkpoint_report>& checkpoints, const report_options& options,
                   const painter& paint) {
  std::size_t width = 5;
  const auto label = [](const checkpoint_report& c, const layer_report& layer) {
    const std::filesystem::path path(c.path);
    const auto last = path.has_filename() ? path.filename() : path.parent_path().filename();  // "folder/"
    return printable(last.string() + " " + layer.layer->name);
  };
  for (const auto& c : checkpoints) {
    for (const auto& layer : c.layers) {
      width = std::max(width, label(c, layer).size());
    }
  }
  std::string out = paint.faint(fmt::format("{:<{}}  {:>6} {:>7} {:>7}  {:>15}  {:>11}  {}", "layer (means)",
                                            width, "cosine", "+1", "λ +1", "(null)", "steps", "proven"));
  out += '\n';
  for (const auto& c : checkpoints) {
    for (const auto& layer : c.layers) {
      const auto null = null_of(*layer.layer);
      const auto before =
          summarise(layer, [](const auto& e) { return has_direction(e) ? e.cosine_stored : unknown; });
      const auto after =
          summarise(layer, [](const auto& e) { return has_direction(e) ? e.cosine_step : unknown; });
      const auto lambda = summarise(layer, [](const auto& e) { return e.lambda_step; });
      const auto steps =
          summarise(layer, [](const auto& e) { return e.steps ? static_cast<double>(*e.steps) : unknown; });
      const auto count = [&](auto condition) {
        return std::count_if(layer.experts.begin(), layer.experts.end(), condition);
      };
      const auto unfinished = count([](const auto& e) { return e.state == status::ok && !e.steps; });
      const auto rigorous = count([](const auto& e) { return e.certificate == "rigorous"; });
      const auto probable = count([](const auto& e) { return e.certificate == "probabilistic"; });
      std::string range = std::isfinite(steps.low) ? fmt::format("{}–{}", steps.low, steps.high) : "-";
      if (unfinished > 0) {
        range = fmt::format("{}, {} > {}", range, unfinished, options.max_steps);
      }
      out += fmt::format(
          "{:<{}}  {} {}  {}  {:>15}  {:>11}  {} of {}{}{}\n", label(c, layer), width,
          paint.cosine(before.mean, cell(before.mean, 6, 3)),
          paint.cosine(after.mean, cell(after.mean, 7, 3)), cell(lambda.mean, 6, 3),
          fmt::format("({:.3f})", null.one_step), range, rigorous + probable, layer.experts.size(),
          probable > 0 ? fmt::format(" ({} probabilistic)", probable) : "", exceptions_of(layer));
    }
  }
  return out;
}

}  // namespace

bool has_direction(const expert_report& e) { return e.state == status::ok && e.certificate != "none"; }

bool is_certified(const expert_report& e, double angle) {
  return (e.certificate == "rigorous" || e.certificate == "probabilistic") && e.angle_bound <= angle;
}

std::string format_unmatched(const std::vector<unmatched>& others, bool colour) {
  const painter paint{colour};
  std::string out;
  for (const auto& other : others) {
    const char* label = other.what == fate::missing ? "missing: " : "not used: ";
    out += fmt::format("{}{}: {}\n", paint(fg(fmt::terminal_color::yellow), label), printable(other.name),
                       printable(other.reason, 1000));
  }
  return out;
}

std::string format_report(const std::vector<checkpoint_report>& checkpoints, const report_options& options) {
  const painter paint{options.colour};
  std::string out = options.experts ? legend(options, paint) : "";
  for (const auto& c : checkpoints) {
    out += fmt::format("{}{}\n", out.empty() ? "" : "\n", paint.bold(printable(c.path, 4096)));
    for (const auto& layer : c.layers) {
      out += options.experts ? fmt::format("\n{}", format_layer(layer, options, paint))
                             : fmt::format("{}\n", describe_layer(*layer.layer, paint));
    }
    out += format_unmatched(c.found->others, options.colour);
  }
  return fmt::format("{}\n{}{}\n", out, glance(checkpoints, options, paint),
                     printable(describe_seen(coverage_of(checkpoints)), 4096));
}

}  // namespace verify
