// Draws the figures of the page, one after another.
#pragma once

#include "../figures/gnuplot.hpp"
#include "report_page.hpp"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

namespace verify {

using number_rows = std::vector<std::vector<double>>;

/// Draws one figure after another into one folder, and remembers why one could not be drawn.
class artist {
 public:
  artist(std::filesystem::path folder, std::string prefix)
      : folder_(std::move(folder)), prefix_(std::move(prefix)) {}

  void csv(const std::string& part, const std::string& header, const number_rows& numbers) const {
    figures::write_csv(folder_ / data(part), header, numbers);
  }
  [[nodiscard]] std::string data(const std::string& part) const { return prefix_ + part + ".csv"; }

  void draw(const std::string& name, int height, const std::string& title, const std::string& caption,
            const std::string& script) {
    const std::string file = prefix_ + name;
    figures::write_file(folder_ / (file + ".gp"), figures::script_head(file + ".svg", 480, height, false) +
                                                      "set datafile columnheaders\n" + script);
    report_figure figure{title, caption, {}};
    const auto done =
        result_.problem.empty() ? figures::run_gnuplot(folder_, file + ".gp") : figures::drawn::no_gnuplot;
    if (done == figures::drawn::yes) {
      std::ifstream in(folder_ / (file + ".svg"), std::ios::binary);
      figure.svg.assign(std::istreambuf_iterator<char>(in), {});
    } else if (result_.problem.empty()) {
      result_.problem = done == figures::drawn::no_gnuplot ? std::string(figures::no_gnuplot_advice)
                                                           : "gnuplot could not draw " + file + ".gp";
    }
    result_.figures.push_back(std::move(figure));
  }
  void leave_out(const std::string& title, const std::string& why) {
    result_.figures.push_back({title, why, {}});
  }
  [[nodiscard]] report_figures result() && { return std::move(result_); }

 private:
  std::filesystem::path folder_;
  std::string prefix_;
  report_figures result_;
};

}  // namespace verify
