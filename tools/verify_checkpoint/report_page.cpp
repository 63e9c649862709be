#include "report_page.hpp"

#include "report_style.hpp"
#include "text.hpp"

#include <mpi_router/core/version.hpp>

#include <fmt/format.h>

#include <cmath>

namespace verify {

namespace {

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

}  // namespace

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

std::string number(double value, int digits) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "–";
}

std::string small_number(double value) { return std::isfinite(value) ? fmt::format("{:.3g}", value) : "–"; }

std::string table_head(std::initializer_list<heading> headings) {
  std::string out = "<div class=scroll tabindex=0><table><thead><tr>";
  for (const auto& h : headings) {
    out += fmt::format("<th scope=col{}><button type=button>{}</button></th>", h.word ? " class=word" : "",
                       h.text);
  }
  return out + "</tr></thead><tbody>\n";
}

std::string figures_section(const report_figures& drawn, std::size_t index) {
  std::string out =
      drawn.problem.empty() ? "" : fmt::format("<p class=note>{}</p>\n", escaped(drawn.problem));
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
  return out + "</div>\n";
}

std::string left_out_section(std::string_view title, const std::vector<left_out>& all) {
  if (all.empty()) {
    return "";
  }
  std::string out = fmt::format("<h3>{}</h3>\n<ul>", title);
  for (const auto& one : all) {
    out += fmt::format("<li>{}: {}: {}\n", escaped(one.what), escaped(one.name), escaped(one.reason));
  }
  return out + "</ul>\n";
}

std::string format_page(const page_text& text) {
  return fmt::format(
      R"html(<!DOCTYPE html>
<html lang=en>
<head><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>{}</title>
<link rel=icon href="data:,">
<style>{}</style></head>
<body>
<main>
<h1>{}</h1>
{}<p>Made by verify_checkpoint {}.{}.{} with this command:</p>
<pre>{}</pre>
<ul>
{}</ul>
<p class=note>{}.</p>
<p>Tables sort by the column whose heading is pressed.</p>
{}</main>
<script>{}</script>
</body></html>
)html",
      escaped(text.title), report_style, text.heading, text.introduction, MPIROUTER_VERSION_MAJOR,
      MPIROUTER_VERSION_MINOR, MPIROUTER_VERSION_PATCH, escaped(text.command), text.legend,
      escaped(text.covered), text.sections, report_script);
}

}  // namespace verify
