#include "html_report.hpp"

#include "coverage.hpp"
#include "html_figures.hpp"
#include "layer_numbers.hpp"

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

constexpr double degrees_per_radian = 180 / std::numbers::pi;

constexpr std::string_view style = R"css(
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --head: #f3f5f8;
  --link: #0b57b8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e9ee; --soft: #a7b0bb; --line: #3a424d;
  --head: #1f242c; --link: #7db4ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.3rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 0 0 .3rem; } .figures + h3 { margin-top: 2rem; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--link); }
pre { padding: .7rem; background: var(--head); border: 1px solid var(--line); overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
.drawing { overflow-x: auto; }
.drawing svg { display: block; width: 100%; min-width: 21rem; max-width: 42rem; height: auto; }
.drawing [color="black"] { color: var(--ink); } .drawing [fill="black"] { fill: var(--ink); }
.drawing [stroke="black"] { stroke: var(--ink); }
figcaption { color: var(--soft); font-size: .875rem; max-width: 42rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .55rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { background: var(--head); } th.word, td.word { text-align: left; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible, summary:focus-visible, .scroll:focus-visible, .drawing:focus-visible
  { outline: 2px solid var(--link); outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
summary { cursor: pointer; padding: .4rem 0; overflow-wrap: anywhere; }
.note { border-left: 4px solid var(--link); padding: .3rem .8rem; background: var(--head); }
@media print { body { max-width: none; font-size: 10pt; padding: 0; } .drawing svg { min-width: 0; }
  .scroll { overflow: visible; } .figures { grid-template-columns: 1fr 1fr; }
  table { font-size: 6.5pt; } th, td { padding: .1rem .25rem; white-space: normal; } }
)css";

constexpr std::string_view behaviour = R"js(
"use strict";
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
    const column = head.cellIndex, down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const words = head.classList.contains("word");
    const key = row => {
      const text = row.cells[column].textContent;
      const number = parseFloat(text.replace("> ", ""));
      return words ? text : Number.isNaN(number) ? Infinity : number;
    };
    const sign = down ? -1 : 1;
    const compare = (a, b) => words ? a.localeCompare(b, undefined, { numeric: true }) : a === b ? 0 : a < b ? -1 : 1;
    const rows = Array.from(body.rows, row => [key(row), row]);
    rows.sort((a, b) => sign * compare(a[0], b[0]));
    body.append(...rows.map(entry => entry[1]));
  });
}
const openAll = open => { for (const d of document.querySelectorAll("details")) d.open = open; };
let before = [];
addEventListener("beforeprint", () => { before = [...document.querySelectorAll("details[open]")]; openAll(true); });
addEventListener("afterprint", () => { openAll(false); for (const d of before) d.open = true; });
)js";

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

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (auto at = text.find(from); at != text.npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
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
    replace_all(svg, fmt::format("id=\"{}", id), fmt::format("id=\"{}{}", unique, id));
  }
  replace_all(svg, "id='gp", "id='" + unique + "gp");
  replace_all(svg, "'#gp", "'#" + unique + "gp");
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

template <class Value>
double mean(const layer_report& layer, Value value) {
  double sum = 0;
  double count = 0;
  for (const auto& e : layer.experts) {
    if (const double x = value(e); std::isfinite(x)) {
      sum += x;
      ++count;
    }
  }
  return count > 0 ? sum / count : unknown;
}

std::string layers_table(const checkpoint_report& checkpoint) {
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
    const auto& report = checkpoint.layers[l];
    const auto& layer = *report.layer;
    const auto certified = std::count_if(report.experts.begin(), report.experts.end(),
                                         [](const auto& e) { return is_certified(e, std::numbers::pi / 2); });
    out += fmt::format(
        "<tr><td>{}<td class=word>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}\n", numbers[l],
        escaped(layer.name), layer.num_experts, layer.ffn_dim, layer.hidden_dim,
        number(mean(report, [](const auto& e) { return has_direction(e) ? e.cosine_stored : unknown; }), 3),
        number(mean(report, [](const auto& e) { return has_direction(e) ? e.cosine_step : unknown; }), 3),
        number(mean(report, [](const auto& e) { return e.lambda_step; }), 3),
        number(mpi_router::null_model(layer.ffn_dim, layer.hidden_dim).one_step, 3), certified);
  }
  return out + std::string(table_tail);
}

std::string experts_table(const layer_report& report, const analysis_options& options) {
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
  for (const auto& e : report.experts) {
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

std::string section(const std::filesystem::path& data, std::size_t index, const checkpoint_report& checkpoint,
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
    const auto& report = checkpoint.layers[l];
    out += fmt::format("<details{}><summary>Experts of layer {}: {}</summary>\n",
                       checkpoint.layers.size() <= 2 ? " open" : "", numbers[l], escaped(report.layer->name));
    out += experts_table(report, options) + "</details>\n";
  }
  if (!checkpoint.found->others.empty()) {
    out += "<h3>Not used</h3>\n<ul>";
    for (const auto& other : checkpoint.found->others) {
      out += fmt::format("<li>{}: {}\n", escaped(other.name), escaped(other.reason));
    }
    out += "</ul>\n";
  }
  return out + "</section>\n";
}

}  // namespace

std::string write_html_report(mpi_router::atomic_file& page, const std::filesystem::path& folder,
                              const std::vector<checkpoint_report>& checkpoints,
                              const html_report_options& options) {
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
singular direction of the expert’s gate matrix. One step of Manifold Power Iteration turns the row towards it. This
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
      style, MPIROUTER_VERSION_MAJOR, MPIROUTER_VERSION_MINOR, MPIROUTER_VERSION_PATCH,
      escaped(options.command),
      options.analysis.exact ? "that direction, by an SVD"
                             : "the direction that was found by power iteration",
      options.analysis.tolerance, sections, behaviour, escaped(describe_seen(coverage_of(checkpoints)))));
  return problem;
}

std::string quoted_command(int argc, const char* const* argv) {
  constexpr std::string_view plain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-";
  std::string out;
  for (int i = 0; i < argc; ++i) {
    std::string argument = argv[i];
    if (argument.empty() || argument.find_first_not_of(plain) != argument.npos) {
      replace_all(argument, "'", "'\\''");
      argument = "'" + argument + "'";
    }
    out += (i > 0 ? " " : "") + argument;
  }
  return out;
}

}  // namespace verify
