#include "coverage.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numbers>

namespace verify {

namespace {

std::string counted(index_t count, const char* what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

/// What the answer leaves out, each part after a semicolon.
std::string describe_gaps(const coverage& c) {
  std::string out;
  if (c.rows_skipped > 0) {
    out += c.layers_skipped > 0 ? fmt::format("; {} (", counted(c.layers_skipped, "layer")) : "; ";
    out += fmt::format("{}{} not asked for", counted(c.rows_skipped, "row"),
                       c.layers_skipped > 0 ? " in all)" : "");
  }
  if (c.layers_unseen > 0 || c.rows_unseen > 0) {
    out += c.layers_unseen > 0
               ? fmt::format("; {} ({})", counted(c.layers_unseen, "layer"), counted(c.rows_unseen, "row"))
               : fmt::format("; {}", counted(c.rows_unseen, "row"));
    out += (c.layers_unseen > 0 ? c.layers_unseen : c.rows_unseen) == 1 ? " was not looked at"
                                                                        : " were not looked at";
  }
  for (const auto& one : c.missing) {
    out += "; " + one;
  }
  return out;
}

void add_layer(const layer_result& result, double angle, coverage& out) {
  const auto rows = static_cast<index_t>(result.experts.size());
  const index_t skipped = result.layer->num_experts - rows;
  const auto certified = static_cast<index_t>(
      std::ranges::count_if(result.experts, [&](const auto& e) { return is_certified(e, angle); }));
  ++out.layers;
  ++out.layers_seen;
  out.layers_certified += certified == rows ? 1 : 0;
  out.rows += rows + skipped;
  out.rows_skipped += skipped;
  out.rows_seen += rows;
  out.rows_certified += certified;
}

void add_other(const omission& other, coverage& out) {
  if (other.kind == omission_kind::set_aside) {
    return;
  }
  out.layers += other.layers;
  out.rows += other.rows;
  if (other.kind == omission_kind::unseen) {
    out.layers_unseen += other.layers;
    out.rows_unseen += other.rows;
  } else {
    out.missing.push_back(other.name + ": " + other.reason);
  }
}

}  // namespace

bool coverage::is_complete() const {
  return layers_seen + layers_skipped == layers && rows_seen + rows_skipped == rows && layers_unseen == 0 &&
         rows_unseen == 0 && missing.empty();
}

coverage coverage_of(const std::vector<checkpoint_result>& checkpoints, std::optional<double> angle) {
  coverage out;
  for (const auto& c : checkpoints) {
    for (const auto& result : c.layers) {
      add_layer(result, angle.value_or(std::numbers::pi / 2), out);
    }
    for (const auto& other : c.found->omissions) {
      add_other(other, out);
    }
    for (const auto* layer : c.skipped) {
      ++out.layers;
      ++out.layers_skipped;
      out.rows += layer->num_experts;
      out.rows_skipped += layer->num_experts;
    }
  }
  return out;
}

std::string describe_seen(const coverage& c) {
  return fmt::format("{} of {} layers, {} of {} rows were looked at{}", c.layers_seen, c.layers, c.rows_seen,
                     c.rows, describe_gaps(c));
}

std::string describe_certified(const coverage& c, double angle) {
  return fmt::format(
      "{} of {} layers, {} of {} rows are certified to be within {:g} rad of the principal direction{}",
      c.layers_certified, c.layers, c.rows_certified, c.rows, angle, describe_gaps(c));
}

}  // namespace verify
