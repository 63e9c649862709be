// The seam to the operating system: the same calls from posix.hpp or from windows.hpp, and descriptors that
// close themselves.
#pragma once

#include <mpi_router/io/posix.hpp>
#include <mpi_router/io/windows.hpp>

#include <utility>

MPIROUTER_BEGIN

namespace detail {

/// A file descriptor, or a HANDLE of Windows, closed at the end of its life.
class file_descriptor {
 public:
  file_descriptor() = default;
  explicit file_descriptor(raw_descriptor fd) : fd_(fd) {}
  file_descriptor(file_descriptor&& other) noexcept : fd_(std::exchange(other.fd_, no_descriptor)) {}
  file_descriptor& operator=(file_descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  file_descriptor(const file_descriptor&) = delete;
  file_descriptor& operator=(const file_descriptor&) = delete;
  ~file_descriptor() { reset(); }

  [[nodiscard]] raw_descriptor get() const noexcept { return fd_; }
  [[nodiscard]] bool is_open() const noexcept { return fd_ != no_descriptor; }
  void reset() noexcept {
    if (is_open()) {
      close_file(std::exchange(fd_, no_descriptor));
    }
  }

 private:
  raw_descriptor fd_ = no_descriptor;
};

}  // namespace detail

MPIROUTER_END
