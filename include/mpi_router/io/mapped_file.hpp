// A file as bytes in memory, read only: pages come from disk when they are first touched.
#pragma once

#include <mpi_router/io/file_error.hpp>
#include <mpi_router/io/system.hpp>

#include <cstddef>
#include <span>
#include <utility>

MPIROUTER_BEGIN

/// A read-only memory map of a whole regular file. Movable; the bytes keep their address when it moves.
/// Throws file_error if the file cannot be opened, is no regular file, or cannot be mapped.
/// Like any map, it shows what happens to the file. On POSIX one that is truncated by someone else while it
/// is mapped ends the program at the next touch of a lost page, by SIGBUS, whose handler file_mapped_at()
/// tells which file it was; on Windows a file can be neither truncated nor replaced while it is mapped.
class mapped_file {
 public:
  explicit mapped_file(std::filesystem::path path) : path_(std::move(path)) {
    const detail::file_descriptor fd(detail::open_to_read(path_));
    if (!fd.is_open()) {
      const std::string reason = detail::last_os_error();
      std::error_code error;
      io::file_failure(path_, std::filesystem::is_symlink(path_, error) ? "is a symbolic link, and " : "",
                       "cannot be opened: ", reason);
    }
    const auto facts = detail::examine(fd.get());
    if (!facts.known) {
      io::file_failure(path_, "cannot be examined: ", detail::last_os_error());
    }
    if (!facts.regular) {
      io::file_failure(path_, "is not a regular file");
    }
    size_ = facts.size;
    if (size_ != 0) {
      base_ = detail::map_to_read(fd.get(), size_);
      if (base_ == nullptr) {
        io::file_failure(path_, "cannot be mapped: ", detail::last_os_error());
      }
    }
  }

  mapped_file(mapped_file&& other) noexcept
      : path_(std::move(other.path_)),
        base_(std::exchange(other.base_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  mapped_file& operator=(mapped_file&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(base_, other.base_);
    std::swap(size_, other.size_);
    return *this;
  }
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;
  ~mapped_file() {
    if (base_ != nullptr) {
      detail::unmap(base_, size_);
    }
  }

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    return {static_cast<const std::byte*>(base_), size_};
  }

 private:
  std::filesystem::path path_;
  void* base_ = nullptr;
  std::size_t size_ = 0;
};

MPIROUTER_END
