#include "compare_report.hpp"

#include "compare_figures.hpp"
#include "report_page.hpp"

#include <fmt/format.h>

namespace verify {

namespace {

std::string percent(double share) { return number(100 * share, 2); }

/// "12", or "12 → 8" where the two differ.
template <class Value>
std::string before_and_after(const Value& a, const Value& b) {
  return a == b ? fmt::format("{}", a) : fmt::format("{} → {}", a, b);
}

std::string layers_table(const std::vector<const layer_comparison*>& layers) {
  std::string out = table_head({{"layer"},
                                {"name", true},
                                {"experts"},
                                {"F"},
                                {"D"},
                                {"matched by", true},
                                {"rows: cosine (mean)"},
                                {"least"},
                                {"directions: cosine (mean)"},
                                {"least"},
                                {"|Δσ₁|/σ₁ (largest)"},
                                {"‖ΔA‖/σ₁ (largest)"},
                                {"flips (%)"},
                                {"after one step (%)"},
                                {"lost (%)"}});
  const auto numbers = numbers_of(layers);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto& pair = *layers[l];
    const auto row = summarise(pair.pairs, [](const auto& e) { return e.row.cosine; });
    const auto v = summarise(pair.pairs, [](const auto& e) { return e.direction.cosine; });
    const auto sigma =
        summarise(pair.pairs, [](const auto& e) { return moved_by(e.a.sigma_1, e.b.sigma_1, e.a.sigma_1); });
    out += fmt::format(
        "<tr><td>{}<td class=word>{}<td>{}<td>{}<td>{}<td class=word>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}"
        "<td>{}<td>{}<td>{}\n",
        numbers[l], escaped(name_of(pair)), before_and_after(pair.a->num_experts, pair.b->num_experts),
        before_and_after(pair.a->ffn_dim, pair.b->ffn_dim), pair.a->hidden_dim,
        pair.by_number ? "number" : "likeness", number(row.mean, 5), number(row.low, 5), number(v.mean, 5),
        number(v.low, 5), number(sigma.high, 5), number(summarise(pair.pairs, relative_change).high, 4),
        percent(pair.stored.flipped), percent(pair.step.flipped), percent(pair.stored.lost));
  }
  return out + std::string(table_tail);
}

std::string experts_table(const layer_comparison& pair) {
  std::string out = table_head({{"expert"},
                                {"rows: cosine"},
                                {"directions: cosine"},
                                {"angle (degrees)"},
                                {"allowed (degrees)"},
                                {"certificate", true},
                                {"σ₁"},
                                {"moved (%)"},
                                {"σ₂"},
                                {"moved (%)"},
                                {"‖ΔA‖"},
                                {"‖ΔA‖ at most"},
                                {"‖ΔA‖/σ₁"}});
  for (const auto& e : pair.pairs) {
    out += fmt::format(
        "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td class=word>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}\n",
        before_and_after(e.a.expert, e.b.expert), number(e.row.cosine, 5), number(e.direction.cosine, 5),
        small_number(e.direction.angle * degrees_per_radian),
        is_proven(e.wedin) ? small_number(e.wedin.angle * degrees_per_radian) : "–", to_string(e.wedin.label),
        small_number(e.a.sigma_1), number(100 * (e.b.sigma_1 / e.a.sigma_1 - 1), 3),
        small_number(e.a.sigma_2), number(100 * (e.b.sigma_2 / e.a.sigma_2 - 1), 3),
        small_number(e.change ? e.change->value : unknown), small_number(e.change ? e.change->high : unknown),
        number(relative_change(e), 4));
  }
  return out + std::string(table_tail);
}

std::string sections_of(const std::vector<const layer_comparison*>& layers, const report_figures& drawn,
                        const comparison_result& result) {
  std::string out = "<section>\n" + figures_section(drawn, 0) + "<h3>Layers</h3>\n" + layers_table(layers);
  const auto numbers = numbers_of(layers);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    out += fmt::format("<details{}><summary>Experts of layer {}: {}</summary>\n{}</details>\n",
                       layers.size() <= 2 ? " open" : "", numbers[l], escaped(name_of(*layers[l])),
                       experts_table(*layers[l]));
  }
  return out + left_out_section("Left out", result.others) + "</section>\n";
}

}  // namespace

std::string write_comparison(mpi_router::atomic_file& page, const std::filesystem::path& data,
                             const comparison_result& result, const std::string& command) {
  std::vector<const layer_comparison*> layers;
  for (const auto& pair : result.layers) {
    if (pair.problem.empty()) {
      layers.push_back(&pair);
    }
  }
  const auto drawn = draw_comparison(data, layers, result);
  page.write(format_page(
      {.title = "Two checkpoints compared",
       .heading = "How far the experts moved between two checkpoints",
       .introduction = fmt::format(
           "<p>Each expert of A beside its counterpart in B: whether its router row, its principal right "
           "singular\n"
           "direction and its largest singular values are where they were, and how many choices of experts "
           "change.</p>\n<p>A: {}<br>\nB: {}</p>\n",
           escaped(result.path_a), escaped(result.path_b)),
       .command = command,
       .legend = fmt::format(
           R"html(<li>rows, directions: cosine of the two router rows, and of the two principal directions.
<li>angle, allowed: between these directions, and the most that ‖ΔA‖ allows where a gap is proven (Wedin), for what
its certificate is worth.
<li>σ₁, σ₂, moved: singular values of A, and how far those of B are from them.
<li>‖ΔA‖: largest singular value of B − A; no σ moves by more (Weyl). It compares neuron by neuron: neurons in another
order change it, and nothing else here. “At most” fails with a probability of at most 1e-6.
<li>flips: {}. Choices of A that B does not make, with the stored rows and with those after one step; by x · r
alone, without biases and groups. Lost: of experts without a counterpart.
)html",
           escaped(describe_flips(result))),
       .covered = describe(coverage_of(result)),
       .sections = sections_of(layers, drawn, result)}));
  return drawn.problem;
}

}  // namespace verify
