#include "run_header.hpp"

#include "outputs.hpp"
#include "records.hpp"
#include "weights.hpp"

#include <mpi_router/core/version.hpp>

#include <fmt/format.h>

#include <chrono>
#include <set>

namespace verify {

namespace {

namespace fs = std::filesystem;
using json = nlohmann::ordered_json;

/// Processors of several instruction sets, and GPUs, may differ in the last bits.
std::string kernels_name(const analysis_options& options) {
  if (options.device != nullptr) {
    return options.device->name();
  }
#if defined(VERIFY_CHECKPOINT_DISPATCH)
  return std::string(to_string(mpi_router::best_instruction_set()));
#else
  return "as compiled";
#endif
}

std::string_view spectrum_name(spectrum_choice choice) {
  switch (choice) {
    case spectrum_choice::automatic: return "automatic";
    case spectrum_choice::always: return "always";
    case spectrum_choice::never: return "never";
  }
  return "";
}

/// "2026-11-28T23:05:31.123456789Z".
std::string time_of(fs::file_time_type at) {
  using namespace std::chrono;
  const auto when = floor<nanoseconds>(fs::file_time_type::clock::to_sys(at));
  const auto midnight = floor<days>(when);
  const year_month_day date(midnight);
  const hh_mm_ss time(nanoseconds(when - midnight));
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z", static_cast<int>(date.year()),
                     static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()),
                     time.hours().count(), time.minutes().count(), time.seconds().count(),
                     time.subseconds().count());
}

/// All files that are read for a checkpoint.
json files_record(const mpi_router::checkpoint& model) {
  const auto read = files_of(model);
  std::set<fs::path> files(read.begin(), read.end());
  files.insert((fs::is_directory(model.path()) ? model.path() : model.path().parent_path()) / "config.json");
  json out = json::array();
  for (const auto& file : files) {
    std::error_code error;
    if (fs::is_regular_file(file, error)) {
      out.push_back({{"file", file.string()},
                     {"bytes", fs::file_size(file, error)},
                     {"modified", time_of(fs::last_write_time(file, error))}});
    }
  }
  return out;
}

/// What an entry of a list calls itself, or its place.
std::string name_of(const json& entry, std::size_t place) {
  for (const char* key : {"name", "file"}) {
    if (entry.is_object() && entry.contains(key)) {
      return entry[key].get<std::string>();
    }
  }
  return std::to_string(place);
}

std::string find_difference(const json& was, const json& is, const std::string& where) {
  const auto inside = [&where](const std::string& name) {
    return where.empty() ? name : where + ", " + name;
  };
  if (was.is_array() && is.is_array() && was.size() == is.size()) {
    for (std::size_t i = 0; i < is.size(); ++i) {
      if (was[i] != is[i]) {
        return find_difference(was[i], is[i], inside(name_of(is[i], i)));
      }
    }
  } else if (was.is_object() && is.is_object()) {
    for (const auto& [key, value] : is.items()) {
      if (!was.contains(key) || was[key] != value) {
        return find_difference(was.value(key, json()), value, inside(key));
      }
    }
  }
  const auto brief = [](const json& value) {
    return value.is_array() ? fmt::format("a list of {}", value.size())
                            : value.dump(-1, ' ', false, json::error_handler_t::replace);
  };
  return fmt::format("{} was {} and is {}", where, brief(was), brief(is));
}

}  // namespace

json header_of(const std::vector<checkpoint_result>& checkpoints,
               const std::deque<mpi_router::checkpoint>& models, const analysis_options& options,
               std::optional<index_t> sample) {
  json files = json::array();
  for (const auto& model : models) {
    files.push_back(files_record(model));
  }
  json layers = json::array();
  for (const auto& c : checkpoints) {
    for (const auto& result : c.layers) {
      layers.push_back(layer_record(c.path, {result.layer, {}}));
      layers.back().erase("experts");
    }
  }
  const json header{{"verify_checkpoint", fmt::format("{}.{}.{}", MPIROUTER_VERSION_MAJOR,
                                                      MPIROUTER_VERSION_MINOR, MPIROUTER_VERSION_PATCH)},
                    {"kernels", kernels_name(options)},
                    {"tolerance", options.tolerance},
                    {"max_steps", options.max_steps},
                    {"svd", spectrum_name(options.spectrum)},
                    {"trace", options.trace},
                    {"sample", sample ? json(*sample) : json("all")},
                    {"files", std::move(files)},
                    {"layers", std::move(layers)}};
  // As it is in a file: names that are no UTF-8 are mended, so that a header read back is equal to this.
  return json::parse(header.dump(-1, ' ', false, json::error_handler_t::replace));
}

json without_times(json header) {
  for (auto& model : header["files"]) {
    for (auto& file : model) {
      file.erase("modified");
    }
  }
  return header;
}

std::string difference(const json& was, const json& is) {
  return was == is ? "" : find_difference(was, is, "");
}

}  // namespace verify
