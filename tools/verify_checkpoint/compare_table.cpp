#include "compare_table.hpp"

#include "table.hpp"
#include "table_style.hpp"

#include <mpi_router/io/file_error.hpp>
#include <mpi_router/io/moe/names.hpp>

#include <algorithm>

namespace verify {

namespace {

using mpi_router::io::printable;  // for every name: it comes from a file, and this goes to a terminal

/// "+1.234 %" of how far a singular value moved.
std::string moved(double before, double after, int width) {
  const double by = 100 * (after / before - 1);
  return std::isfinite(by) ? fmt::format("{:>+{}.3f} %", by + 0.0, width - 2)
                           : fmt::format("{:>{}}", "-", width);
}
std::string percent(double share, int width) {
  return std::isfinite(share) ? fmt::format("{:>{}.2f} %", 100 * share, width - 2)
                              : fmt::format("{:>{}}", "-", width);
}

std::string printable_name(const layer_comparison& pair) { return printable(name_of(pair), 410); }

template <class Value>
std::string both(const Value& a, const Value& b) {
  return a == b ? fmt::format("{}", a) : fmt::format("{} and {}", a, b);
}

std::string describe_pair(const layer_comparison& pair, const painter& paint) {
  const auto& a = *pair.a;
  const auto& b = *pair.b;
  return paint.bold(printable_name(pair)) +
         fmt::format(": {} experts, F = {}, D = {}", both(a.num_experts, b.num_experts),
                     both(a.ffn_dim, b.ffn_dim), both(a.hidden_dim, b.hidden_dim)) +
         paint.faint(fmt::format(
             "; gates {}, routers {}; experts matched by {}",
             both(a.gates.front().tensor->stored_as(), b.gates.front().tensor->stored_as()),
             both(a.router->stored_as(), b.router->stored_as()), pair.by_number ? "number" : "likeness"));
}

std::string expert_line(const pair_result& e, const painter& paint) {
  const std::string who = e.a.expert == e.b.expert ? fmt::format("{}", e.a.expert)
                                                   : fmt::format("{} → {}", e.a.expert, e.b.expert);
  const std::string limit = is_proven(e.wedin) ? fmt::format("≤{}", angle_cell(e.wedin.angle, 0)) : "-";
  return fmt::format("  {:>9}  {} {}  {} {:>9}  {} {}  {} {}  {} {}\n", who,
                     paint.cosine(e.row.cosine, cell(e.row.cosine, 8, 5)),
                     paint.cosine(e.direction.cosine, cell(e.direction.cosine, 8, 5)),
                     angle_cell(e.direction.angle, 9), limit, scientific(e.a.sigma_1, 9),
                     moved(e.a.sigma_1, e.b.sigma_1, 11), scientific(e.a.sigma_2, 9),
                     moved(e.a.sigma_2, e.b.sigma_2, 11), scientific(e.change ? e.change->value : unknown, 9),
                     cell(relative_change(e), 7, 4));
}

std::string format_layer(const layer_comparison& pair, const painter& paint) {
  std::string out = describe_pair(pair, paint) + "\n";
  out += paint.faint(fmt::format("  {:>9}  {:>8} {:>8}  {:>9} {:>9}  {:>9} {:>11}  {:>9} {:>11}  {:>9} {:>7}",
                                 "expert", "row", "v₁", "angle", "Wedin", "σ₁", "moved", "σ₂", "moved",
                                 "‖ΔA‖", "/σ₁"));
  out += '\n';
  for (const auto& e : pair.pairs) {
    out += expert_line(e, paint);
  }
  return out;
}

std::string legend(const comparison_result& result, const painter& paint) {
  std::string out = "Each expert of A beside its counterpart in B:\n";
  const auto line = [&](const char* word, const std::string& meaning) {
    out += fmt::format("  {}{}\n", paint.bold(fmt::format("{:<15}", word)), meaning);
  };
  line("row, v₁", "cosine of the two router rows, and of the two principal right singular directions");
  line("angle, Wedin", "between these directions, and the most that ‖ΔA‖ allows it where a gap is proven");
  line("σ₁, σ₂, moved", "singular values of A, and how far those of B are from them");
  line("‖ΔA‖", "largest singular value of B − A: no σ moves by more (Weyl). It compares neuron by neuron,");
  out += fmt::format("  {:<15}so that neurons in another order change it, and nothing else here\n", "");
  line("flips", fmt::format("of {}, choices of A that B does not make: with the stored rows, and after",
                            result.tokens));
  out += fmt::format(
      "  {:<15}one step (+1). By x · r alone: no bias, no groups. Lost: of experts without a\n", "");
  out += fmt::format("  {:<15}counterpart\n", "");
  return out;
}

std::string glance(const comparison_result& result, const painter& paint) {
  std::size_t width = 5;
  for (const auto& pair : result.layers) {
    width = std::max(width, printable_name(pair).size());
  }
  std::string out =
      paint.faint(fmt::format("{:<{}}  {:>8} {:>8}  {:>8} {:>8}  {:>9} {:>9}  {:>8} {:>8}", "layer", width,
                              "row mean", "least", "v₁ mean", "least", "|Δσ₁|/σ₁", "‖ΔA‖/σ₁", "flips", "+1"));
  out += '\n';
  for (const auto& pair : result.layers) {
    if (!pair.problem.empty()) {
      continue;
    }
    const auto row = summarise(pair.pairs, [](const auto& e) { return e.row.cosine; });
    const auto v = summarise(pair.pairs, [](const auto& e) { return e.direction.cosine; });
    const auto sigma =
        summarise(pair.pairs, [](const auto& e) { return moved_by(e.a.sigma_1, e.b.sigma_1, e.a.sigma_1); });
    const auto change = summarise(pair.pairs, relative_change);
    const std::string lost =
        pair.stored.lost > 0 ? fmt::format("  {:.2f} % lost", 100 * pair.stored.lost) : "";
    out +=
        fmt::format("{:<{}}  {} {}  {} {}  {} {}  {} {}{}{}\n", printable_name(pair), width,
                    paint.cosine(row.mean, cell(row.mean, 8, 5)), paint.cosine(row.low, cell(row.low, 8, 5)),
                    paint.cosine(v.mean, cell(v.mean, 8, 5)), paint.cosine(v.low, cell(v.low, 8, 5)),
                    cell(sigma.high, 9, 5), cell(change.high, 9, 4), percent(pair.stored.flipped, 8),
                    percent(pair.step.flipped, 8), lost,
                    pair.no_share.empty() ? "" : fmt::format("  no flips: {}", pair.no_share));
  }
  return out;
}

}  // namespace

std::string format_comparison(const comparison_result& result, const compare_table_options& options) {
  const painter paint{options.colour};
  std::string out = options.experts ? legend(result, paint) + "\n" : "";
  out += fmt::format("A: {}\nB: {}\n", paint.bold(printable(result.path_a, 4096)),
                     paint.bold(printable(result.path_b, 4096)));
  for (const auto& pair : result.layers) {
    if (pair.problem.empty()) {
      out += options.experts ? fmt::format("\n{}", format_layer(pair, paint))
                             : fmt::format("{}\n", describe_pair(pair, paint));
    }
  }
  out += fmt::format("\n{}", glance(result, paint));
  return fmt::format("{}flips: {}\n{}{}\n", out, describe_flips(result),
                     format_left_out(result.others, options.colour), describe(coverage_of(result)));
}

}  // namespace verify
