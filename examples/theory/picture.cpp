#include "picture.hpp"

#include "../../tools/figures/gnuplot.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

namespace theory {
namespace {

constexpr int picture_width = 480;  // a telephone shows it at seven tenths, with letters of ten pixels

std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) {
    throw std::runtime_error(path.string() + " cannot be read");
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

/// What follows `# NAME: ` in a script, all lines of it joined.
std::string words_after(const std::string& script, const std::string& name) {
  std::string words;
  std::istringstream lines(script);
  const std::string mark = "# " + name + ": ";
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(mark)) {
      words += (words.empty() ? "" : " ") + line.substr(mark.size());
    }
  }
  return words;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  }
  return out;
}

/// Lines of at most `width` letters of UTF-8, broken between words.
std::vector<std::string> wrapped(const std::string& text, std::ptrdiff_t width) {
  const auto letters = [](const std::string& s) {
    return std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xC0) != 0x80; });
  };
  std::vector<std::string> lines(1);
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (!lines.back().empty() && letters(lines.back()) + 1 + letters(word) > width) {
      lines.emplace_back();
    }
    lines.back() += (lines.back().empty() ? "" : " ") + word;
  }
  return lines;
}

/// Lines of text from `y` on, which moves behind them.
std::string set_lines(const std::string& text, int size, const char* style, double& y) {
  std::string out;
  for (const auto& line : wrapped(text, static_cast<std::ptrdiff_t>(picture_width / (0.54 * size)))) {
    y += 1.3 * size;
    out += fmt::format("<text x=\"8\" y=\"{:.1f}\" font-size=\"{}\" {}>{}</text>\n", y, size, style,
                       escaped(line));
  }
  return out;
}

/// Without gnuplot's titles of series that have none: numbers, which say nothing.
std::string without_numbered_titles(std::string svg) {
  const std::string begin = "<title>gnuplot_plot_";
  const std::string end = "</title>";
  for (auto at = svg.find(begin); at != svg.npos; at = svg.find(begin, at)) {
    svg.erase(at, svg.find(end, at) + end.size() - at);
  }
  return svg;
}

struct picture_words {
  std::string title;
  std::string parameters;
  std::string caption;
};

/// gnuplot's SVG with the words around it, a name and a description of its own, and ink that suits the paper.
std::string dressed(const std::string& name, const std::string& drawn, int plot_height,
                    const picture_words& words) {
  const auto canvas = drawn.find("<g id=\"gnuplot_canvas\">");
  const auto end = drawn.rfind("</svg>");
  if (canvas == drawn.npos || end == drawn.npos) {
    throw std::runtime_error(name + ".svg is not as gnuplot writes it");
  }
  double y = 4;
  std::string above = set_lines(words.title, 18, "font-weight=\"bold\"", y);
  above += set_lines(words.parameters, 14, "", y);
  const double plot = y + 8;
  y = plot + plot_height;
  const std::string below = set_lines(words.caption, 15, "", y);
  const int height = static_cast<int>(y) + 12;
  return fmt::format(R"svg(<?xml version="1.0" encoding="utf-8"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{shown_width}" height="{shown_height}"
 viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-desc" font-family="sans-serif" fill="black">
<title id="{name}-title">{title}</title>
<desc id="{name}-desc">{parameters}. {caption}</desc>
<style>
[fill="black"] {{ fill: #1f2328; }} [stroke="black"] {{ stroke: #1f2328; }} [color="black"] {{ color: #1f2328; }}
@media (prefers-color-scheme: dark) {{
[fill="black"] {{ fill: #e6edf3; }} [stroke="black"] {{ stroke: #e6edf3; }} [color="black"] {{ color: #e6edf3; }}
}}
</style>
{above}<g transform="translate(0,{plot:.1f})">
{body}</g>
{below}</svg>
)svg",
                     fmt::arg("width", picture_width), fmt::arg("height", height),
                     fmt::arg("shown_width", picture_width * 6 / 5), fmt::arg("shown_height", height * 6 / 5),
                     fmt::arg("name", name), fmt::arg("title", escaped(words.title)),
                     fmt::arg("parameters", escaped(words.parameters)),
                     fmt::arg("caption", escaped(words.caption)), fmt::arg("above", above),
                     fmt::arg("plot", plot),
                     fmt::arg("body", without_numbered_titles(drawn.substr(canvas, end - canvas))),
                     fmt::arg("below", below));
}

}  // namespace

void draw_picture(const std::filesystem::path& folder, const std::string& name, const std::string& parameters,
                  const std::string& values) {
  const std::filesystem::path scripts(THEORY_SCRIPTS);
  const std::string script = text_of(scripts / (name + ".gp"));
  const picture_words words{words_after(script, "title"), parameters, words_after(script, "caption")};
  if (words.title.empty() || words.parameters.empty() || words.caption.empty()) {
    throw std::runtime_error(name + ".gp lacks a title, a caption or parameters");
  }
  const std::string height_words = words_after(script, "height");
  const int height = height_words.empty() ? 340 : std::stoi(height_words);
  const std::string terminal = fmt::format(
      "set encoding utf8\nset terminal svg size {},{} dynamic enhanced font \"sans-serif,15\" linewidth 1.3\n"
      "set output \"{}.svg\"\n",
      picture_width, height, name);
  const std::string file = name + ".gp";
  figures::write_file(folder / file, terminal + text_of(scripts / "style.gp") + values + "\n" + script);
  const auto svg = folder / (name + ".svg");
  switch (figures::run_gnuplot(folder, file)) {
    case figures::drawn::yes: break;
    case figures::drawn::no_gnuplot: fmt::print("{}\n", figures::no_gnuplot_advice); return;
    case figures::drawn::failed: throw std::runtime_error("gnuplot could not draw " + file);
  }
  figures::write_file(svg, dressed(name, text_of(svg), height, words));
  fmt::print("Figure: {}\n", svg.string());
}

}  // namespace theory
