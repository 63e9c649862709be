// Figures are drawn by gnuplot from data in files, so that a reader can change the script and draw them
// again.
#pragma once

#include <mpi_router/io/atomic_file.hpp>

#include <fmt/format.h>
#ifdef _WIN32
#include <process.h>
#else
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace figures {

/// Lines and points that can be told apart on white and on black paper: contrast of at least 3 against both.
struct palette {
  static constexpr std::string_view blue = "#3b7fd4";
  static constexpr std::string_view orange = "#d0660a";
  static constexpr std::string_view green = "#2a9058";
  static constexpr std::string_view purple = "#a05ac8";
  static constexpr std::string_view red = "#dd4048";
  static constexpr std::string_view grey = "#808080";
};

/// What became of a drawing.
enum class drawn : unsigned char { yes, no_gnuplot, failed };

inline constexpr std::string_view no_gnuplot_advice =
    "gnuplot is missing, so there are no figures; the numbers are complete. "
    "Debian and Ubuntu: apt-get install gnuplot-nox";

/// Writes a file that is there whole or not at all; throws file_error where it cannot.
inline void write_file(const std::filesystem::path& path, std::string_view text) {
  mpi_router::atomic_file file(path);
  file.write(text);
  file.commit();
}

/// A table of numbers as CSV; NaN is an empty field, which gnuplot leaves out.
inline void write_csv(const std::filesystem::path& path, const std::string& header,
                      const std::vector<std::vector<double>>& rows) {
  std::string text = header + "\n";
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      text += i > 0 ? "," : "";
      text += row[i] == row[i] ? fmt::format("{:.12g}", row[i]) : "";
    }
    text += "\n";
  }
  write_file(path, text);
}

/// Runs gnuplot on `script`, a file in `folder`, where it also finds its data and leaves its figure.
inline drawn run_gnuplot(const std::filesystem::path& folder, const std::string& script) {
  std::fflush(nullptr);
#ifdef _WIN32
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder);
  const auto status = ::_spawnlp(_P_WAIT, "gnuplot", "gnuplot", script.c_str(), nullptr);
  std::filesystem::current_path(before);
  return status == 0 ? drawn::yes : status < 0 ? drawn::no_gnuplot : drawn::failed;
#else
  const pid_t child = ::fork();
  if (child == 0) {
    if (::chdir(folder.c_str()) == 0) {
      // Whatever the locale: without UTF-8 it complains of letters, and some write numbers with commas.
      ::execlp("env", "env", "LC_ALL=C.UTF-8", "gnuplot", script.c_str(), static_cast<char*>(nullptr));
      ::_exit(127);
    }
    ::_exit(126);
  }
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
    return drawn::failed;
  }
  return WEXITSTATUS(status) == 0     ? drawn::yes
         : WEXITSTATUS(status) == 127 ? drawn::no_gnuplot
                                      : drawn::failed;
#endif
}

/// The head of every script: SVG that fits any width, UTF-8, CSV, a quiet frame.
inline std::string script_head(const std::string& output, int width, int height, bool white_paper) {
  return fmt::format(R"(set encoding utf8
set terminal svg size {},{} dynamic enhanced font "sans-serif,13" {} linewidth 1.2
set output "{}"
set datafile separator ","
set datafile missing ""
set border 3
set tics nomirror out
set grid lc rgb "{}" lw 0.4 dt 3
set xlabel offset 0,0.5
set key outside below Left reverse samplen 2 maxcols 2 height 0.6 noenhanced
)",
                     width, height, white_paper ? R"(background rgb "white")" : "", output, palette::grey);
}

}  // namespace figures
