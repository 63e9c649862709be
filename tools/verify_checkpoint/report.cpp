#include "report.hpp"

#include "coverage.hpp"
#include "layer_numbers.hpp"
#include "report_figures.hpp"
#include "report_style.hpp"
#include "text.hpp"

#include <mpi_router/core/version.hpp>
#include <mpi_router/verify/null_model.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>

namespace verify {

namespace {

using mpi_router::status;

/// Text as HTML; control characters, which HTML does not allow, become spaces.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

/// gnuplot's file as part of a page: without prologue and white paper, its ids made unique, named for those
/// who cannot see it.
std::string inlined(std::string svg, const std::string& unique, const std::string& title) {
  svg.erase(0, svg.find("<svg"));
  const auto cut = [&svg](std::string_view from, std::string_view to) {
    const auto begin = svg.find(from);
    const auto end = svg.find(to, begin);
    if (begin != svg.npos && end != svg.npos) {
      svg.erase(begin, end + to.size() - begin);
    }
  };
  cut("<title>", "</title>");
  cut("<desc>", "</desc>");
  cut("<filter id='textbox'", "</filter>");
  cut("<filter id='greybox'", "</filter>");
  for (const std::string_view id : {"gnuplot_canvas", "gnuplot_plot_"}) {
    svg = replaced(std::move(svg), fmt::format("id=\"{}", id), fmt::format("id=\"{}{}", unique, id));
  }
  svg = replaced(std::move(svg), "id='gp", "id='" + unique + "gp");
  svg = replaced(std::move(svg), "'#gp", "'#" + unique + "gp");
  svg.insert(4, fmt::format(" role=\"img\" aria-label=\"{}\"", escaped(title)));
  return svg;
}

std::string number(double value, int digits) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "–";
}
std::string small_number(double value) { return std::isfinite(value) ? fmt::format("{:.3g}", value) : "–"; }

struct heading {
  const char* text;
  bool word = false;
};

std::string table_head(std::initializer_list<heading> headings) {
  std::string out = "<div class=scroll tabindex=0><table><thead><tr>";
  for (const auto& h : headings) {
    out += fmt::format("<th scope=col{}><button type=button>{}</button></th>", h.word ? " class=word" : "",
                       h.text);
  }
  return out + "</tr></thead><tbody>\n";
}
constexpr std::string_view table_tail = "</tbody></table></div>\n";

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
  std::string out = fmt::format("<section>\n<h2>{}</h2>\n", escaped(checkpoint.path));
  if (!drawn.problem.empty()) {
    problem = drawn.problem;
    out += fmt::format("<p class=note>{}</p>\n", escaped(drawn.problem));
  }
  out += "<div class=figures>\n";
  for (std::size_t i = 0; i < drawn.figures.size(); ++i) {
    const auto& figure = drawn.figures[i];
    out += fmt::format("<figure><h3>{}</h3>\n", escaped(figure.title));
    if (!figure.svg.empty()) {
      out += fmt::format("<div class=drawing tabindex=0>{}</div>\n",
                         inlined(figure.svg, fmt::format("c{}f{}", index, i), figure.title));
    }
    out += fmt::format("<figcaption>{}</figcaption></figure>\n", escaped(figure.caption));
  }
  out += "</div>\n<h3>Layers</h3>\n" + layers_table(checkpoint);
  const auto numbers = layer_numbers(checkpoint);
  for (std::size_t l = 0; l < checkpoint.layers.size(); ++l) {
    const auto& result = checkpoint.layers[l];
    out += fmt::format("<details{}><summary>Experts of layer {}: {}</summary>\n",
                       checkpoint.layers.size() <= 2 ? " open" : "", numbers[l], escaped(result.layer->name));
    out += experts_table(result, options) + "</details>\n";
  }
  if (!checkpoint.found->omissions.empty()) {
    out += "<h3>Not used</h3>\n<ul>";
    for (const auto& other : checkpoint.found->omissions) {
      out += fmt::format("<li>{}: {}\n", escaped(other.name), escaped(other.reason));
    }
    out += "</ul>\n";
  }
  return out + "</section>\n";
}

}  // namespace

std::string write_report(mpi_router::atomic_file& page, const std::filesystem::path& folder,
                         const std::vector<checkpoint_result>& checkpoints, const report_options& options) {
  std::string problem;
  std::string sections;
  for (std::size_t i = 0; i < checkpoints.size(); ++i) {
    sections += section(folder / "data", i, checkpoints[i], options.analysis, problem);
  }
  page.write(fmt::format(
      R"html(<!DOCTYPE html>
<html lang=en>
<head><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>Router rows and principal directions</title>
<link rel=icon href="data:,">
<style>{0}</style></head>
<body>
<main>
<h1>Router rows and the principal directions of their experts</h1>
<p>Each row of a Mixture-of-Experts router should point where its expert responds most: along the principal right
singular direction of the expert’s {10}. One step of Manifold Power Iteration turns the row towards it. This
page says how near the stored rows are, how near one step brings them, and how much of that is proven.</p>
<p>Made by verify_checkpoint {1}.{2}.{3} with this command:</p>
<pre>{4}</pre>
<ul>
<li>cosine, angle: between the row and {5}; “?” where there is no certificate, perhaps no one such direction: these
cosines enter no mean.
<li>σ₂/σ₁: second to first singular value; the smaller, the fewer steps are needed.
<li>λ, alignment: response of the expert to the row, of the strongest there is.
<li>ρ, residual: Rayleigh quotient of the row and its distance from being stationary.
<li>proven angle: an upper bound that needs no SVD, for what its certificate is worth.
<li>steps: until the sine of the angle is at most {6:g}.
</ul>
<p class=note>{9}.</p>
<p>Tables sort by the column whose heading is pressed.</p>
{7}</main>
<script>{8}</script>
</body></html>
)html",
      report_style, MPIROUTER_VERSION_MAJOR, MPIROUTER_VERSION_MINOR, MPIROUTER_VERSION_PATCH,
      escaped(options.command),
      options.analysis.spectrum != spectrum_choice::never ? "that direction, by an SVD"
                                                          : "the direction that was found by power iteration",
      options.analysis.tolerance, sections, report_script, escaped(describe_seen(coverage_of(checkpoints))),
      checkpoints.empty() ? "gate matrix" : escaped(measured_of(checkpoints.front()))));
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
