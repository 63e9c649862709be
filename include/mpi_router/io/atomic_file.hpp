// A file that is either whole under its final name or not there at all.
#pragma once

#include <mpi_router/io/file_error.hpp>
#include <mpi_router/io/file_mapped_at.hpp>
#include <mpi_router/io/system.hpp>
#include <mpi_router/io/unfinished.hpp>

#include <array>
#include <optional>
#include <random>
#include <span>

MPIROUTER_BEGIN

namespace detail {

/// A name beside `target` that no other process uses by chance: ".NAME.XXXXXXXX.tmp".
[[nodiscard]] inline std::filesystem::path temporary_sibling(const std::filesystem::path& target) {
  constexpr std::string_view alphabet = "abcdefghijklmnopqrstuvwxyz0123456789";
  std::random_device entropy;
  std::uniform_int_distribution<std::size_t> letter(0, alphabet.size() - 1);
  std::string suffix;
  for (int i = 0; i < 8; ++i) {
    suffix += alphabet[letter(entropy)];
  }
  // A file name has room for 255 bytes; the target may use all of them.
  std::filesystem::path name = ".";
  name += target.filename().native().substr(0, 200);
  name += "." + suffix + ".tmp";
  return target.parent_path() / name;
}

/// The file that writing to `path` replaces: what a symbolic link names, in place of the link.
[[nodiscard]] inline std::filesystem::path file_to_replace(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::path target = path;
  if (fs::is_symlink(path, error)) {
    target = fs::canonical(path, error);
    if (error) {
      io::file_failure(path, "is a symbolic link to nowhere");
    }
  }
  const auto kind = fs::status(target, error).type();
  if (kind == fs::file_type::none) {
    io::file_failure(target, "cannot be examined: ", error.message());
  }
  if (kind != fs::file_type::not_found && kind != fs::file_type::regular) {
    io::file_failure(target, kind == fs::file_type::directory ? "is a folder" : "is not a regular file");
  }
  return target;
}

/// Why the last write of these bytes failed.
[[nodiscard]] inline std::string write_error(std::span<const std::byte> bytes) {
  std::string reason = last_os_error();
  if (memory_was_lost()) {
    std::array<char, 4096> name{};
    if (const auto length = file_mapped_at(bytes.data(), name); length > 0) {
      return core::concatenate("its bytes come from ", io::printable({name.data(), length}, name.size()),
                               ", which was cut short meanwhile");
    }
  }
  return reason;
}

}  // namespace detail

/// Whether two paths name one file, also by way of symbolic or hard links. False if either does not exist.
[[nodiscard]] inline bool same_file(const std::filesystem::path& a, const std::filesystem::path& b) {
  std::error_code error;
  return std::filesystem::equivalent(a, b, error) && !error;
}

/// Writes to a temporary file in the folder of `target`; commit() syncs it to disk and renames it over the
/// target in one step. Without commit(), whatever happens, the target stays as it was, and the destructor
/// removes the temporary file, and so does remove_unfinished() where a signal ends the program. A symbolic
/// link is followed: the file it names is replaced, not the link. Throws file_error, also if the target
/// exists and is no regular file, and on Windows from commit() while it is mapped, as by an open checkpoint.
class atomic_file {
 public:
  explicit atomic_file(const std::filesystem::path& target) : target_(detail::file_to_replace(target)) {
    for (int attempt = 0; attempt < 16 && !fd_.is_open() && (attempt == 0 || detail::name_was_taken());
         ++attempt) {
      temporary_ = detail::temporary_sibling(target_);
      unfinished_.emplace(temporary_);
      fd_ = detail::file_descriptor(detail::create_file(temporary_));
    }
    if (!fd_.is_open()) {
      io::file_failure(target_, "cannot be written: ", detail::last_os_error());
    }
  }
  atomic_file(const atomic_file&) = delete;
  atomic_file& operator=(const atomic_file&) = delete;
  ~atomic_file() {
    if (unfinished_.has_value()) {
      fd_.reset();  // Windows removes no open file
      detail::remove_file(temporary_.c_str());
    }
  }

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return target_; }

  /// Appends bytes.
  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto written = detail::write_some(fd_.get(), bytes);
      if (written <= 0) {
        io::file_failure(target_, "cannot be written: ",
                         written < 0 ? detail::write_error(bytes) : "the file takes no more bytes");
      }
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }

  /// Puts the file under its final name.
  void commit() {
    if (!detail::sync_file(fd_.get())) {
      io::file_failure(target_, "cannot be written: ", detail::last_os_error());
    }
    fd_.reset();  // Windows renames no open file
    if (!detail::rename_over(temporary_, target_)) {
      io::file_failure(target_, "cannot be put in place: ", detail::rename_error());
    }
    unfinished_.reset();
    detail::sync_folder(target_.parent_path());
  }

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;
  std::optional<unfinished> unfinished_;
  detail::file_descriptor fd_;
};

MPIROUTER_END
