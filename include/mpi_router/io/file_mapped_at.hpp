// Which file an address in memory is mapped from, for the handler of a bus error.
#pragma once

#include <mpi_router/io/system.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

MPIROUTER_BEGIN

namespace detail {

/// Reads the lines of /proc/self/maps byte by byte: "7f00-7f20 r--p 00000000 08:01 42     /a/file".
class map_line {
 public:
  map_line(std::uintptr_t address, std::span<char> name) : address_(address), name_(name) {}

  /// Takes the next byte; true at the end of the line whose range holds the address.
  bool take(char c) noexcept {
    if (c == '\n') {
      return first_ <= address_ && address_ < end_ ? true : (start_line(), false);
    }
    if (field_ < path_field && (c == ' ' || c == '-') && (c == ' ' || field_ == 0)) {
      ++field_;
    } else if (field_ < 2) {
      auto& bound = field_ == 0 ? first_ : end_;
      bound = bound * 16 + static_cast<std::uintptr_t>(c <= '9' ? c - '0' : c - 'a' + 10);
    } else if (field_ == path_field && (c != ' ' || length_ > 0) && length_ < name_.size()) {
      name_[length_++] = is_shown(static_cast<unsigned char>(c)) ? c : '?';
    }
    return false;
  }
  /// The bytes of the name; zero if it is not that of a file.
  [[nodiscard]] std::size_t length() const noexcept { return length_ > 0 && name_[0] == '/' ? length_ : 0; }

 private:
  static constexpr int path_field = 6;
  /// No control byte, nor the second of a control that UTF-8 writes as two.
  [[nodiscard]] bool is_shown(unsigned char byte) const noexcept {
    const bool after_c2 = length_ > 0 && name_[length_ - 1] == '\xc2';
    return byte >= 0x20U && byte != 0x7fU && (!after_c2 || byte >= 0xa0U);
  }
  void start_line() noexcept {
    field_ = 0;
    first_ = end_ = 0;
    length_ = 0;
  }

  std::uintptr_t address_;
  std::span<char> name_;
  int field_ = 0;
  std::uintptr_t first_ = 0;
  std::uintptr_t end_ = 0;
  std::size_t length_ = 0;
};

}  // namespace detail

/// Writes the path of the file that `address` is mapped from into `name`, as much as there is room for,
/// control bytes as '?'. Returns its length: zero if no file is mapped there, or where there is no
/// /proc/self/maps. Async-signal-safe: a file that becomes shorter while it is mapped ends its reader with
/// SIGBUS, whose handler can so say which file it was. The library installs no handler.
#ifdef _WIN32
[[nodiscard]] inline std::size_t file_mapped_at(const void*, std::span<char>) noexcept { return 0; }
#else
[[nodiscard]] inline std::size_t file_mapped_at(const void* address, std::span<char> name) noexcept {
  const int fd = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return 0;
  }
  detail::map_line line(reinterpret_cast<std::uintptr_t>(address), name);
  char block[512];
  std::size_t length = 0;
  bool found = false;
  for (ssize_t count = 0; !found && (count = ::read(fd, block, sizeof block)) > 0;) {
    for (ssize_t i = 0; !found && i < count; ++i) {
      found = line.take(block[i]);
    }
  }
  length = found ? line.length() : 0;
  ::close(fd);
  return length;
}
#endif

MPIROUTER_END
