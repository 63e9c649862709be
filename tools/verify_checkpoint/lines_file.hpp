// The file of --lines: a header and a line for each expert, written as experts finish, so that a run which
// was killed can be resumed.
#pragma once

#include "expert_lines.hpp"

#include <mpi_router/io/system.hpp>

#include <nlohmann/json.hpp>

#include <filesystem>
#include <string>
#include <vector>

namespace verify {

class lines_file {
 public:
  /// Begins the file, or, to resume, goes on with it where it is there: whole lines are read, what a killed
  /// run left of its last is dropped. Throws file_error if the file is there and nothing is to be resumed, if
  /// another header or none is in it, a line is damaged, another run is writing to it, or it cannot be
  /// written.
  lines_file(std::filesystem::path path, const nlohmann::ordered_json& header, bool resume);

  /// What the file held.
  [[nodiscard]] const std::vector<placed_result>& found() const noexcept { return found_; }

  /// Writes one more, a whole line at a time. Throws file_error, and then the lines before it remain.
  void append(const placed_result& one);

 private:
  void open(bool resume);
  bool read(const nlohmann::ordered_json& header);  ///< whether half a line is behind the last
  void write(const std::string& line);

  std::filesystem::path path_;
  mpi_router::detail::file_descriptor fd_;
  std::size_t length_ = 0;
  std::vector<placed_result> found_;
};

}  // namespace verify
