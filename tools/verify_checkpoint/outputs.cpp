#include "outputs.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <string_view>
#include <vector>

namespace verify {

namespace {

namespace fs = std::filesystem;
using mpi_router::atomic_file;
using mpi_router::io::file_failure;

/// Where a path leads, whether there is a file yet or not.
fs::path place_of(const fs::path& path) {
  std::error_code error;
  const auto whole = fs::absolute(path, error);
  const auto place = fs::weakly_canonical(whole, error);
  return error ? whole.lexically_normal() : place;
}

/// Whether the report may write a file of this name into its folder of data.
bool is_report_data(const fs::path& path, const fs::path& report) {
  const auto type = path.extension();
  const auto name = path.filename().string();
  return !report.empty() && (type == ".csv" || type == ".gp" || type == ".svg") &&
         (name.starts_with("checkpoint-") || name.starts_with("comparison-")) &&
         place_of(path).parent_path() == place_of(places_of(report).data);
}

struct output {
  std::string_view flag;
  fs::path path;
};

void check_apart(const std::vector<output>& wanted, const std::vector<fs::path>& inputs,
                 const fs::path& report) {
  for (const auto& input : inputs) {
    for (const auto& out : wanted) {
      if (mpi_router::same_file(out.path, input) || place_of(out.path) == place_of(input)) {
        file_failure(out.path, "is part of the input, which is never overwritten");
      }
    }
    if (is_report_data(input, report)) {
      file_failure(input, "is part of the input, and --report may overwrite it");
    }
  }
}

void check_apart(const std::vector<output>& wanted, const fs::path& report) {
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (place_of(wanted[i].path) == place_of(wanted[j].path)) {
        file_failure(wanted[i].path, wanted[j].flag, " and ", wanted[i].flag, " name one file");
      }
    }
    if (is_report_data(wanted[i].path, report)) {
      file_failure(wanted[i].path, wanted[i].flag, " names a file of the report's own");
    }
  }
}

}  // namespace

report_places places_of(const fs::path& report) {
  if (report.empty() || report.extension() != ".html" || fs::is_directory(report)) {
    return {report.empty() ? fs::path() : report / "index.html", report / "data"};
  }
  auto data = report;
  data.replace_extension();
  data += "-data";
  return {report, data};
}

std::vector<fs::path> files_of(const mpi_router::checkpoint& model) {
  std::vector<fs::path> files = model.files();
  for (const auto& path : {model.path(), model.index()}) {
    if (!path.empty()) {
      files.push_back(path);
    }
  }
  return files;
}

void outputs::commit() const {
  for (auto* file : {json.get(), trace.get(), page.get()}) {
    if (file != nullptr) {
      file->commit();
    }
  }
}

outputs open_outputs(const output_paths& paths, const std::deque<mpi_router::checkpoint>& models,
                     const std::vector<fs::path>& others) {
  const auto [page, data] = places_of(paths.report);
  if (page != paths.report && fs::exists(paths.report) && !fs::is_directory(paths.report)) {
    file_failure(paths.report, "--report needs a folder, or FILE.html");
  }
  std::vector<output> wanted;
  for (const auto& out : {output{"--json", paths.json},
                          {"--trace", paths.trace},
                          {"--report", page},
                          {"--lines", paths.lines}}) {
    if (!out.path.empty()) {
      wanted.push_back(out);
    }
  }
  for (const auto& model : models) {
    check_apart(wanted, files_of(model), paths.report);
  }
  check_apart(wanted, others, paths.report);
  check_apart(wanted, paths.report);

  const auto open = [](const fs::path& path) {
    return path.empty() ? nullptr : std::make_unique<atomic_file>(path);
  };
  outputs files{open(paths.json), open(paths.trace), nullptr};
  if (!page.empty()) {
    std::error_code error;
    fs::create_directories(data, error);
    if (error) {
      file_failure(paths.report, "the folder cannot be made: ", error.message());
    }
    files.page = open(page);
  }
  return files;
}

void tell_report(const outputs& files, const std::string& report, const std::string& problem) {
  if (files.page) {
    fmt::print(stderr, "{}{}report: {}\n", problem, problem.empty() ? "" : "\n",
               mpi_router::io::printable(places_of(report).page.string(), 4096));
  }
}

}  // namespace verify
