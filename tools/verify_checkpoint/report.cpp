#include "report.hpp"

#include "coverage.hpp"
#include "layer_numbers.hpp"
#include "report_figures.hpp"
#include "report_page.hpp"
#include "text.hpp"

#include <mpi_router/verify/null_model.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>

namespace verify {

namespace {

using mpi_router::status;

std::string layers_table(const checkpoint_result& checkpoint) {
  std::string out = table_head({{"layer"},
                                {"name", true},
                                {"experts"},
                                {"F"},
                                {"D"},
                                {"cosine (mean)"},
                                {"after one step"},
                                {"λ after one step"},
                                {"its null"},
                                {"certified rows"}});
  const auto numbers = layer_numbers(checkpoint);
  for (std::size_t l = 0; l < checkpoint.layers.size(); ++l) {
    const auto& result = checkpoint.layers[l];
    const auto& layer = *result.layer;
    const auto mean = [&](auto value) { return number(summarise(result.experts, value).mean, 3); };
    const auto rows = layer.ffn_dim * std::max<index_t>(1, static_cast<index_t>(layer.measured.size()));
    const auto name = layer.measured.empty()
                          ? layer.name
                          : fmt::format("{} (of {})", layer.name, to_string(weights_of(layer)));
    const auto certified = std::count_if(result.experts.begin(), result.experts.end(),
                                         [](const auto& e) { return is_certified(e, std::numbers::pi / 2); });
    out += fmt::format("<tr><td>{}<td class=word>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}\n",
                       numbers[l], escaped(name), layer.num_experts, layer.ffn_dim, layer.hidden_dim,
                       mean([](const auto& e) { return has_direction(e) ? e.cosine_stored : unknown; }),
                       mean([](const auto& e) { return has_direction(e) ? e.cosine_step : unknown; }),
                       mean([](const auto& e) { return e.lambda_step; }),
                       number(mpi_router::null_model(rows, layer.hidden_dim).one_step, 3), certified);
  }
  return out + std::string(table_tail);
}

std::string experts_table(const layer_result& result, const analysis_options& options) {
  std::string out = table_head({{"expert"},
                                {"σ₁"},
                                {"σ₂/σ₁"},
                                {"cosine"},
                                {"after one step"},
                                {"angle (degrees)"},
                                {"λ"},
                                {"λ after one step"},
                                {"ρ"},
                                {"residual"},
                                {"proven angle (degrees)"},
                                {"certificate", true},
                                {"steps"}});
  for (const auto& e : result.experts) {
    const bool proven = e.certificate != "none";
    const auto cosine = [&](double value) {
      return number(value, 4) + (std::isfinite(value) && !has_direction(e) ? "?" : "");
    };
    out += fmt::format(
        "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td class=word>{}<td>{}\n",
        e.expert, small_number(e.sigma_1), number(e.sigma_2 / e.sigma_1, 3), cosine(e.cosine_stored),
        cosine(e.cosine_step), small_number(e.angle * degrees_per_radian), number(e.lambda_stored, 3),
        number(e.lambda_step, 3), small_number(e.rayleigh), small_number(e.residual),
        proven ? small_number(e.angle_bound * degrees_per_radian) : "–",
        e.state == status::ok ? e.certificate : to_string(e.state),
        e.steps                 ? fmt::format("{}", *e.steps)
        : e.state == status::ok ? fmt::format("> {}", options.max_steps)
                                : "–");
  }
  return out + std::string(table_tail);
}

std::string section(const std::filesystem::path& data, std::size_t index, const checkpoint_result& checkpoint,
                    const analysis_options& options, std::string& problem) {
  const auto drawn = draw_figures(data, fmt::format("checkpoint-{}-", index), checkpoint, options);
  problem = drawn.problem.empty() ? problem : drawn.problem;
  std::string out = fmt::format("<section>\n<h2>{}</h2>\n", escaped(checkpoint.path));
  out += figures_section(drawn, index) + "<h3>Layers</h3>\n" + layers_table(checkpoint);
  const auto numbers = layer_numbers(checkpoint);
  for (std::size_t l = 0; l < checkpoint.layers.size(); ++l) {
    const auto& result = checkpoint.layers[l];
    out += fmt::format("<details{}><summary>Experts of layer {}: {}</summary>\n",
                       checkpoint.layers.size() <= 2 ? " open" : "", numbers[l], escaped(result.layer->name));
    out += experts_table(result, options) + "</details>\n";
  }
  std::vector<left_out> others;
  for (const auto& other : checkpoint.found->omissions) {
    others.push_back({std::string(word_for(other.kind)), other.name, other.reason});
  }
  return out + left_out_section("Left out", others) + "</section>\n";
}

}  // namespace

std::string write_report(mpi_router::atomic_file& page, const std::filesystem::path& data,
                         const std::vector<checkpoint_result>& checkpoints, const report_options& options) {
  std::string problem;
  std::string sections;
  for (std::size_t i = 0; i < checkpoints.size(); ++i) {
    sections += section(data, i, checkpoints[i], options.analysis, problem);
  }
  page.write(format_page(
      {.title = "Router rows and principal directions",
       .heading = "Router rows and the principal directions of their experts",
       .introduction = fmt::format(
           R"html(<p>Each row of a Mixture-of-Experts router should point where its expert responds most: along the principal right
singular direction of the expert’s {}. One step of Manifold Power Iteration turns the row towards it. This
page says how near the stored rows are, how near one step brings them, and how much of that is proven.</p>
)html",
           checkpoints.empty() ? "gate matrix" : escaped(measured_of(checkpoints.front()))),
       .command = options.command,
       .legend = fmt::format(
           R"html(<li>cosine, angle: between the row and {}; “?” where there is no certificate, perhaps no one such direction: these
cosines enter no mean.
<li>σ₂/σ₁: second to first singular value; the smaller, the fewer steps are needed.
<li>λ, alignment: response of the expert to the row, of the strongest there is.
<li>ρ, residual: Rayleigh quotient of the row and its distance from being stationary.
<li>proven angle: an upper bound that needs no SVD, for what its certificate is worth.
<li>steps: until the sine of the angle is at most {:g}.
)html",
           options.analysis.spectrum != spectrum_choice::never
               ? "that direction, by an SVD"
               : "the direction that was found by power iteration",
           options.analysis.tolerance),
       .covered = describe_seen(coverage_of(checkpoints)),
       .sections = std::move(sections)}));
  return problem;
}

std::string quoted_command(int argc, const char* const* argv) {
  constexpr std::string_view plain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-";
  std::string out;
  for (int i = 0; i < argc; ++i) {
    std::string argument = argv[i];
    if (argument.empty() || argument.find_first_not_of(plain) != argument.npos) {
      argument = replaced(std::move(argument), "'", "'\\''");
      argument = "'" + argument + "'";
    }
    out += (i > 0 ? " " : "") + argument;
  }
  return out;
}

}  // namespace verify
