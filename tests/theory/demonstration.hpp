// Runs a demonstration and reads what it wrote; asks what a page of docs/ says.
#pragma once

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <numbers>
#include <sstream>
#include <string>
#include <vector>

namespace claims {

inline std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

using table = std::vector<std::map<std::string, double>>;

/// Runs theory_<name> in a new folder, which goes when the object does.
class demonstration {
 public:
  explicit demonstration(const std::string& name, const std::string& environment = "")
      : name_(name), folder_(make_folder()) {
    const std::string command =
        environment + " '" + THEORY_PROGRAMS + "/theory_" + name + "' '" + folder_.string() + "' 2>&1";
    std::FILE* const pipe = ::popen(command.c_str(), "r");
    REQUIRE(pipe != nullptr);
    for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) {
      words_ += static_cast<char>(c);
    }
    const int status = ::pclose(pipe);
    CAPTURE(words_);
    REQUIRE(WIFEXITED(status));
    REQUIRE(WEXITSTATUS(status) == 0);
  }
  demonstration(const demonstration&) = delete;
  demonstration& operator=(const demonstration&) = delete;
  ~demonstration() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  [[nodiscard]] const std::string& words() const { return words_; }
  /// The SVG of a picture of it; empty where there is none.
  [[nodiscard]] std::string picture(const std::string& name) const {
    return text_of(folder_ / (name + ".svg"));
  }

  [[nodiscard]] table read(const std::string& part) const {
    std::ifstream file(folder_ / (name_ + "-" + part + ".csv"));
    std::string line;
    REQUIRE(std::getline(file, line));
    const auto names = fields(line);
    table rows;
    while (std::getline(file, line)) {
      if (line.empty()) {
        continue;
      }
      const auto values = fields(line);
      REQUIRE(values.size() == names.size());
      auto& row = rows.emplace_back();
      for (std::size_t i = 0; i < names.size(); ++i) {
        row[names[i]] =
            values[i].empty()
                ? std::numeric_limits<double>::quiet_NaN()
                : std::strtod(values[i].c_str(), nullptr);  // subnormal numbers too, which stod refuses
      }
    }
    REQUIRE(!rows.empty());
    return rows;
  }

 private:
  static std::filesystem::path make_folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "theory-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    return pattern;
  }
  static std::vector<std::string> fields(const std::string& line) {
    std::vector<std::string> out(1);
    for (const char c : line) {
      if (c == ',') {
        out.emplace_back();
      } else {
        out.back() += c;
      }
    }
    return out;
  }

  std::string name_;
  std::filesystem::path folder_;
  std::string words_;
};

inline bool has_gnuplot() { return std::system("gnuplot --version >/dev/null 2>&1") == 0; }

inline std::string rounded(double x, int digits) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, x);
  return text.data();
}

/// Whether a page of docs/ has these words, wherever its lines break.
inline bool page_says(const std::string& page, const std::string& words) {
  std::istringstream in(text_of(std::filesystem::path(THEORY_PAGES) / page));
  std::string text;
  for (std::string word; in >> word;) {
    text += word + " ";
  }
  return text.find(words) != text.npos;
}

}  // namespace claims
