// A folder that is either whole under its final name or not there at all.
#pragma once

#include <mpi_router/io/atomic_file.hpp>

#include <deque>

MPIROUTER_BEGIN

/// A new folder, filled under a temporary name beside `target`; commit() puts it in place in one step.
/// Without commit(), whatever happens, there is no `target`, and the destructor removes what was written.
/// Throws file_error, also if the target exists.
class atomic_folder {
 public:
  explicit atomic_folder(const std::filesystem::path& target)
      : target_(target.has_filename() ? target : target.parent_path()) {  // "out/"
    std::error_code error;
    if (std::filesystem::exists(std::filesystem::symlink_status(target_, error))) {
      io::file_failure(target_, "exists; name a folder that does not");
    }
    temporary_ = detail::temporary_sibling(target_);
    names_.emplace_back(temporary_);
    if (!detail::make_folder(temporary_)) {
      io::file_failure(target_, "cannot be made: ", detail::last_os_error());
    }
    made_ = true;
  }
  atomic_folder(const atomic_folder&) = delete;
  atomic_folder& operator=(const atomic_folder&) = delete;
  ~atomic_folder() {
    if (made_) {
      std::error_code error;
      std::filesystem::remove_all(temporary_, error);
    }
  }

  /// Where to write the file of that name, with atomic_file or write_safetensors.
  [[nodiscard]] std::filesystem::path add(const std::filesystem::path& name) {
    const auto path = temporary_ / name;
    names_.emplace_back(path);
    return path;
  }

  /// Puts the folder under its final name.
  void commit() {
    if (!detail::rename_over(temporary_, target_)) {
      io::file_failure(target_, "cannot be put in place: ", detail::last_os_error());
    }
    made_ = false;
    names_.clear();
    detail::sync_folder(target_.parent_path());
  }

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;
  std::deque<unfinished> names_;  // of the folder and of all in it
  bool made_ = false;
};

MPIROUTER_END
