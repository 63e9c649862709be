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
double relative_change(const pair_result& e) {
  return e.change && e.a.sigma_1 > 0 ? e.change->value / e.a.sigma_1 : unknown;
}
double moved_by(double before, double after) { return before > 0 ? std::abs(after / before - 1) : unknown; }

std::string percent(double share, int width) {
  return std::isfinite(share) ? fmt::format("{:>{}.2f} %", 100 * share, width - 2)
                              : fmt::format("{:>{}}", "-", width);
}

/// "blk.0", or "blk.0 and model.layers.0.mlp" where the two are called differently.
std::string name_of(const layer_comparison& pair) {
  const auto shown = [](const moe_layer& layer) {
    return layer.name.empty() ? std::string("(no prefix)") : printable(layer.name);
  };
  return pair.a->name == pair.b->name ? shown(*pair.a) : shown(*pair.a) + " and " + shown(*pair.b);
}

template <class Value>
std::string both(const Value& a, const Value& b) {
  return a == b ? fmt::format("{}", a) : fmt::format("{} and {}", a, b);
}

std::string describe_pair(const layer_comparison& pair, const painter& paint) {
  const auto& a = *pair.a;
  const auto& b = *pair.b;
  return paint.bold(name_of(pair)) +
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
  using mpi_router::certainty;
  const bool is_proven = e.wedin.label == certainty::rigorous || e.wedin.label == certainty::probabilistic;
  const std::string limit = is_proven ? fmt::format("≤{}", angle_cell(e.wedin.angle, 0)) : "-";
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
    width = std::max(width, name_of(pair).size());
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
        summarise(pair.pairs, [](const auto& e) { return moved_by(e.a.sigma_1, e.b.sigma_1); });
    const auto change = summarise(pair.pairs, relative_change);
    const std::string lost =
        pair.stored.lost > 0 ? fmt::format("  {:.2f} % lost", 100 * pair.stored.lost) : "";
    out +=
        fmt::format("{:<{}}  {} {}  {} {}  {} {}  {} {}{}{}\n", name_of(pair), width,
                    paint.cosine(row.mean, cell(row.mean, 8, 5)), paint.cosine(row.low, cell(row.low, 8, 5)),
                    paint.cosine(v.mean, cell(v.mean, 8, 5)), paint.cosine(v.low, cell(v.low, 8, 5)),
                    cell(sigma.high, 9, 5), cell(change.high, 9, 4), percent(pair.stored.flipped, 8),
                    percent(pair.step.flipped, 8), lost,
                    pair.no_share.empty() ? "" : fmt::format("  no flips: {}", pair.no_share));
  }
  return out;
}

}  // namespace

std::string format_not_compared(const comparison_result& result, bool colour) {
  const painter paint{colour};
  std::string out;
  const auto line = [&](const std::string& name, const std::string& reason) {
    out += fmt::format("{}{}: {}\n", paint(fg(fmt::terminal_color::yellow), "not compared: "), name, reason);
  };
  const auto experts = [&](const layer_comparison& pair, const std::vector<index_t>& some, char in,
                           char missing_in) {
    if (!some.empty()) {
      line(name_of(pair),
           fmt::format("expert{} {} of {} {} no counterpart in {}", some.size() == 1 ? "" : "s",
                       mpi_router::ranges_of(some), in, some.size() == 1 ? "has" : "have", missing_in));
    }
  };
  for (const auto& pair : result.layers) {
    if (!pair.problem.empty()) {
      line(name_of(pair), pair.problem);
    }
    experts(pair, pair.only_a, 'A', 'B');
    experts(pair, pair.only_b, 'B', 'A');
  }
  for (const auto* layer : result.only_a) {
    line(printable(layer->name), "a layer of A alone");
  }
  for (const auto* layer : result.only_b) {
    line(printable(layer->name), "a layer of B alone");
  }
  return out + format_unmatched(result.found_a->omissions, colour) +
         format_unmatched(result.found_b->omissions, colour);
}

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
  out += result.top_k
             ? fmt::format("flips: K = {} of {}, {}\n", *result.top_k, result.top_k_from, result.tokens)
             : "flips: none without K, which no config says; --top-k does\n";
  return fmt::format("{}{}{}\n", out, format_not_compared(result, options.colour),
                     describe(coverage_of(result)));
}

}  // namespace verify
