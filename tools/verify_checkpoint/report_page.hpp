// What the pages are made of: text as HTML, tables, figures, and the page around them.
#pragma once

#include "results.hpp"

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace verify {

struct report_figure {
  std::string title;
  std::string caption;
  std::string svg;  ///< empty where it was not drawn
};

struct report_figures {
  std::vector<report_figure> figures;
  std::string problem;  ///< why some are not drawn; empty where all are
};

/// Text as HTML; control characters, which HTML does not allow, become spaces.
[[nodiscard]] std::string escaped(std::string_view text);

/// So many digits after the point, or a dash for what is unknown.
[[nodiscard]] std::string number(double value, int digits);
/// Three digits, or a dash.
[[nodiscard]] std::string small_number(double value);

struct heading {
  const char* text;
  bool word = false;
};

/// What a table begins with: headings that sort it. Lines of "<tr><td>…" and table_tail follow.
[[nodiscard]] std::string table_head(std::initializer_list<heading> headings);
inline constexpr std::string_view table_tail = "</tbody></table></div>\n";

/// The figures with their captions, after a note where some could not be drawn; `index` is another for each
/// call of a page.
[[nodiscard]] std::string figures_section(const report_figures& drawn, std::size_t index);

/// A list of them under `title`; nothing where there are none.
[[nodiscard]] std::string left_out_section(std::string_view title, const std::vector<left_out>& all);

/// What a page says beside its tables and figures. All but `title`, `command` and `covered` are HTML.
struct page_text {
  std::string_view title;
  std::string_view heading;
  std::string introduction;
  std::string command;  ///< that makes the page, as a shell reads it
  std::string legend;   ///< items of a list
  std::string covered;  ///< how much the answer is about
  std::string sections;
};

/// The whole page, which needs nothing else.
[[nodiscard]] std::string format_page(const page_text& text);

}  // namespace verify
